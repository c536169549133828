"""A stack on the real ground: its clouds, and what its machines say of themselves."""

import contextlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import openstack
import yaml
from docker import DockerClient

from sandbox.images import Images
from scripts.stack import LOOPBACK, SANDBOX_PASSPHRASE, Stack, public_key
from scripts.toolchain import Toolchain
from tests.engine import harness
from tests.engine.harness import ROOT, Clouds
from tests.sandbox.inprocess import InProcess

PATIENCE_SECONDS = 900
"""How long anything may take here: an emulated machine needs minutes for what takes seconds, where others use the same
processor. It only ends a run that would hang."""

NETWORKS = {"runners": 1450, "runners-1442": 1442}
"""Networks of the ground with their MTU in bytes."""
# The networks' gateways and the external network's, where the tests are.
SSH_FROM = ["10.20.0.1/32", "10.30.0.1/32", "203.0.113.1/32"]
METADATA = "169.254.169.254"
# As the service's patterns in config.toml want it; what it is follows below.
DIND_IMAGE = "docker:26-dind"
_DIND_ENTRYPOINT = "#!/bin/sh\nexec dockerd --host unix:///var/run/docker.sock\n"
# It holds nothing but links into the machine's own /usr, which the runner mounts: the engine is the machine's, real.
_MACHINES_USR = "/machine/usr"
_DIND_LINKS = {
    "usr": "machine/usr",
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "etc/alternatives/iptables": "/usr/sbin/iptables-nft",
    "etc/alternatives/ip6tables": "/usr/sbin/ip6tables-nft",
}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Waits until something is so."""
    harness.wait_until(condition, what, PATIENCE_SECONDS)


class Ground(Clouds):
    """The real OpenStack that these tests run beside, and the sandbox's GitLab at the machines' gateway."""

    patience_seconds = PATIENCE_SECONDS

    def __init__(self, gitlab: InProcess, gateways: Mapping[str, str], folder: Path, images: Images) -> None:
        identity = folder / "id_ed25519"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PULUMI_", "GITLAB_"))},
            **Toolchain.load().environment(),
            "PULUMI_CONFIG_PASSPHRASE": SANDBOX_PASSPHRASE,
            "GITLAB_BASE_URL": f"{gitlab.gitlab_url}/api/v4",
            "GITLAB_TOKEN": gitlab.tokens.platform,
            "SANDBOX_CONTROL_URL": f"{gitlab.gitlab_url}/sandbox",
            "SANDBOX_GITLAB_ADMINISTRATOR_TOKEN": gitlab.tokens.administrator,
            "SANDBOX_JOB_IMAGE": images.job,
            "NO_PROXY": f"{LOOPBACK},{','.join(gateways.values())}",
        }
        content = yaml.safe_load((ROOT / "stacks" / "Pulumi.sandbox.yaml").read_text())
        manager, _, version = images.runner.rpartition(":")
        runner = {"project": 100, "pullPolicies": ["if-not-present"], "image": images.job}
        content["config"] = {
            "openstack:cloud": os.environ["OS_CLOUD"],
            "gitlab-runners:gitlabUrl": gitlab.gitlab_external_url,
            "gitlab-runners:host": {
                "kind": "openstack",
                "flavor": "m1.small",
                "image": "debian-13",
                "network": "runners",
                "floatingIpPool": "public",
                "docker": "preinstalled",
                "keyPair": {"publicKey": public_key(identity)},
                "sshFrom": SSH_FROM,
                "ssh": {"identityFile": str(identity)},
            },
            "gitlab-runners:runners": {
                "app": runner | {"tags": ["docker"]},
                "images": runner
                | {"tags": ["images"], "builds": "dind", "protected": True, "volumes": [f"/usr:{_MACHINES_USR}:ro"]},
            },
            "gitlab-runners:manager": {"image": manager, "version": version, "concurrent": 2},
        }
        file = folder / "Pulumi.sandbox.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        super().__init__(Stack("sandbox", environment, file))
        self.identity = identity
        self.gateways = gateways
        self.openstack = openstack.connect(cloud=os.environ["OS_CLOUD"])

    def machine(self) -> "Machine":
        """The only machine that there is."""
        (server,) = self.openstack.compute.servers()
        return self._machine(server)

    @contextlib.contextmanager
    def machine_without_user_data(self, like: "Machine") -> Iterator["Machine"]:
        """Another machine of the same image, flavor, network and key pair, which is told nothing; until the end."""
        compute = self.openstack.compute
        model = compute.get_server(like.id)
        (port,) = self.openstack.network.ports(device_id=like.id)
        server = compute.create_server(
            name="without-user-data",
            image_id=model.image.id,
            flavor_id=compute.find_flavor(model.flavor.original_name, ignore_missing=False).id,
            networks=[{"uuid": port.network_id}],
            key_name=model.key_name,
        )
        try:
            yield self._machine(compute.wait_for_server(server, wait=PATIENCE_SECONDS))
        finally:
            compute.delete_server(server)
            compute.wait_for_delete(server, wait=PATIENCE_SECONDS)

    def _machine(self, server: Any) -> "Machine":
        addresses = [each["addr"] for addresses in server.addresses.values() for each in addresses]
        # Neutron knows of the floating one, Nova a moment later: the fixed one comes first.
        return Machine(server.id, addresses[0], self.identity)

    def boot(self, machine: "Machine") -> dict[str, float]:
        """How far a machine that has just booted for the first time was when, in seconds of the epoch: as Nova,
        systemd and cloud-init have noted it."""
        server = self.openstack.compute.get_server(machine.id)
        # Both are UTC; Nova says so of one of them only.
        created, active = (
            datetime.fromisoformat(f"{text.removesuffix('Z')}+00:00")
            for text in (server.created_at, server.launched_at)
        )
        since = 'date --date "$(systemctl show {} --property ActiveEnterTimestamp --value)" +%s'
        noted = machine.run(
            f"{since.format('ssh')}; {since.format('docker')}; stat --format %Y /var/lib/cloud/data/result.json"
        )
        sshd, docker, done = map(float, noted.split())
        return {
            "VM asked for": created.timestamp(),
            "VM active": active.timestamp(),
            "sshd": sshd,
            "Docker answers": docker,
            "cloud-init done": done,
        }


@dataclass(frozen=True)
class Machine:
    """A virtual machine, looked at over SSH as its operator would."""

    id: str
    address: str
    identity: Path

    def run(self, command: str, *, input: bytes | None = None, check: bool = True) -> str:
        """Output of a shell command; fails when the command does and `check` is set."""
        done = subprocess.run(
            [*self._ssh(), *self._shared_connection(), f"debian@{self.address}", command],
            input=input,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        output = done.stdout.decode(errors="replace").strip()
        assert done.returncode == 0 or not check, f"{command}\n{output}\n{done.stderr.decode(errors='replace')}"
        return output

    def _ssh(self) -> tuple[str, ...]:
        return ("ssh", "-i", str(self.identity), *_NO_CHECK)

    def _shared_connection(self) -> tuple[str, ...]:
        """A log-in costs an emulated processor seconds: commands share one."""
        path = self.identity.with_name(f"ssh-{self.id[:8]}")
        return ("-o", "ControlMaster=auto", "-o", f"ControlPath={path}", "-o", "ControlPersist=60")

    def succeeds(self, command: str) -> bool:
        """Whether a shell command ends with status 0."""
        return self.run(f"if {command} >/dev/null 2>&1; then echo yes; fi", check=False) == "yes"

    @contextlib.contextmanager
    def engine(self) -> Iterator[DockerClient]:
        """The machine's engine, through SSH."""
        with tempfile.TemporaryDirectory() as folder:
            socket = Path(folder) / "docker.sock"
            forward = ("-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{socket}:/var/run/docker.sock")
            command = [*self._ssh(), *forward, f"debian@{self.address}"]
            with subprocess.Popen(command, stdin=subprocess.DEVNULL) as tunnel:
                try:
                    wait_until(socket.exists, "the engine's socket")
                    with contextlib.closing(
                        DockerClient(base_url=f"unix://{socket}", timeout=PATIENCE_SECONDS)
                    ) as client:
                        yield client
                finally:
                    tunnel.terminate()

    def container(self, *arguments: str, image: str) -> int:
        """MTU in bytes of a container's interface, `docker run` with these arguments."""
        options = " ".join(arguments)
        return int(self.run(f"docker run --rm {options} {image} cat /sys/class/net/eth0/mtu"))

    def interface_mtu(self) -> int:
        """MTU in bytes of the machine's own interface."""
        return int(self.run("cat /sys/class/net/$(ip -o route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/')/mtu"))

    def job_container(self) -> str:
        """Id of the container in which the only job that runs has its script."""
        wait_until(lambda: bool(self._job_containers()), "the job's container")
        (found,) = self._job_containers()
        return found

    def _job_containers(self) -> list[str]:
        return self.run("docker ps --quiet --filter name=build").split()

    def make_dind_image(self) -> None:
        """Gives the machine's engine an image for Docker-in-Docker."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for folder in (
                "machine",
                "machine/usr",
                "etc",
                "etc/docker",
                "etc/alternatives",
                "tmp",
                "var",
                "var/lib",
                "var/lib/docker",
            ):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            for name, target in _DIND_LINKS.items():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                tar.addfile(entry)
            entry = tarfile.TarInfo("entrypoint")
            entry.mode, entry.size = 0o755, len(_DIND_ENTRYPOINT)
            tar.addfile(entry, io.BytesIO(_DIND_ENTRYPOINT.encode()))
        changes = "--change 'ENTRYPOINT [\"/entrypoint\"]' --change 'VOLUME /var/lib/docker'"
        self.run(f"docker import {changes} - {DIND_IMAGE}", input=archive.getvalue())


# What the program checks strictly is not for the observer to check again.
_NO_CHECK = (
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
    *("-o", "ConnectTimeout=10", "-o", "ConnectionAttempts=30", "-o", "BatchMode=yes"),
    # A machine that is reset says no good-bye.
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)


def layers(ground: Ground, machine: Machine) -> dict[str, Any]:
    """MTU in bytes of every layer of a machine, from its interface to a container inside Docker-in-Docker."""
    image = ground.environment["SANDBOX_JOB_IMAGE"]
    found = {"machine's interface": machine.interface_mtu()}
    found["default bridge"] = machine.container(image=image)
    machine.run("docker network create user-made")
    found["user-defined network"] = machine.container("--network user-made", image=image)
    machine.run("docker network rm user-made")
    return found | _layers_of_a_job(ground, machine, image)


def _layers_of_a_job(ground: Ground, machine: Machine, image: str) -> dict[str, int]:
    machine.make_dind_image()
    job = ground.put_job(
        ["cat /sys/class/net/eth0/mtu", "until [ -e /tmp/measured ]; do sleep 1; done"],
        tags=["images"],
        services=[{"name": DIND_IMAGE, "alias": "docker"}],
        protected=True,
    )
    ground.wait_for_job(job, "running")
    wait_until(
        lambda: machine.succeeds(f"docker exec $(docker ps --quiet --filter ancestor={DIND_IMAGE}) docker version"),
        "Docker-in-Docker",
    )
    service = machine.run(f"docker ps --quiet --filter ancestor={DIND_IMAGE}")
    inside = f"docker exec {service} docker"
    machine.run(f"docker save {image} | docker exec -i {service} docker load")
    measure = f"run --rm {{}} {image} cat /sys/class/net/eth0/mtu"
    found = {"inside Docker-in-Docker": int(machine.run(f"{inside} {measure.format('')}"))}
    machine.run(f"{inside} network create user-made")
    found["user-defined network inside it"] = int(machine.run(f"{inside} {measure.format('--network user-made')}"))
    machine.run(f"docker exec {machine.job_container()} touch /tmp/measured")
    ended = ground.wait_for_job(job)
    assert ended["status"] == "success", ended["trace"]
    trace = ended["trace"].splitlines()
    return {"network of a job": next(int(line) for line in trace if line.strip().isdecimal())} | found
