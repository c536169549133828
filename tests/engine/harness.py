"""The real program on the real engine, against a sandbox of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import docker
import gitlab
import openstack
import requests
import yaml
from docker.models.containers import Container
from openstack.connection import Connection

from sandbox.engine import Engine
from sandbox.job import readable
from sandbox.packages import unpacked_engine
from scripts.stack import Stack, sandbox_stack
from settings.layers import stack_file

ROOT = Path(__file__).parents[2]
OWN_LABEL = "gitlab-runners.stack"
Plan = dict[str, str]
# What a job with a Docker-in-Docker service needs to reach it, and to have an image of its own shell there (with the C
# library of Docker's own image).
DIND_TLS = {"DOCKER_HOST": "tcp://docker:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/certs/client"}
SHELL_IN_DIND = [
    "until docker info >/dev/null 2>&1; do sleep 1; done",
    "mkdir -p /tmp/shell/bin /tmp/shell/lib /tmp/shell/tmp",
    "cp /bin/busybox /tmp/shell/bin/",
    "cp /lib/ld-musl-* /tmp/shell/lib/ || true",
    "/bin/busybox --install /tmp/shell/bin",
    "tar -C /tmp/shell -c . | docker import - shell",
]


class Clouds:
    """What a stack is brought up on: an OpenStack, and the sandbox's GitLab, which hands out the jobs."""

    openstack: Connection
    patience_seconds = 120.0
    """How long anything may take; it only ends a run that would hang."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.environment = stack.environment
        self.gitlab = gitlab.Gitlab(
            self.environment["GITLAB_BASE_URL"].removesuffix("/api/v4"),
            private_token=self.environment["SANDBOX_GITLAB_ADMINISTRATOR_TOKEN"],
        )

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the control API."""
        answer = requests.request(method, f"{self.environment['SANDBOX_CONTROL_URL']}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def requests(self) -> list[dict[str, Any]]:
        """The numbered API calls since the last `control("DELETE", "requests")`."""
        return [entry for entry in self.control("GET", "requests") if entry["n"] is not None]

    def put_job(self, script: Iterable[str], *, project: int = 100, **more: Any) -> int:
        """Queues a job and returns its id."""
        image = self.environment["SANDBOX_JOB_IMAGE"]
        body = {"project": project, "tags": ["docker"], "image": image, "script": list(script)} | more
        return int(self.control("POST", "jobs", body)["id"])

    def job(self, id_: int) -> dict[str, Any]:
        """A job with its status and trace, which is as GitLab shows it."""
        found: dict[str, Any] = self.control("GET", f"jobs/{id_}")
        return found | {"trace": readable(found["trace"])}

    def wait_for_job(self, id_: int, *states: str) -> dict[str, Any]:
        """The job once it is in one of the states (by default: ended)."""
        wanted = states or ("success", "failed", "canceled")
        what = f"job {id_} to be {' or '.join(wanted)}"
        wait_until(lambda: self.job(id_)["status"] in wanted, what, self.patience_seconds)
        return self.job(id_)

    def openstack_inventory(self) -> dict[str, int]:
        """How many of each thing there are in the project, whoever made them."""
        cloud = self.openstack
        groups = [group for group in cloud.network.security_groups() if group.name != "default"]
        return {
            "servers": _count(cloud.compute.servers()),
            "key pairs": _count(cloud.compute.keypairs()),
            "server groups": _count(cloud.compute.server_groups()),
            # Routers have ports of their own.
            "ports": _count(port for port in cloud.network.ports() if "router" not in (port.device_owner or "")),
            "floating IPs": _count(cloud.network.ips()),
            "disks": _count(cloud.block_storage.volumes()) if has_service(cloud, "block-storage") else 0,
            "object containers": _count(cloud.object_store.containers()) if has_service(cloud, "object-store") else 0,
            "EC2 credentials": len(ec2_credentials(cloud)),
            "security groups": len(groups),
            "security group rules": sum(len(group.security_group_rules) for group in groups),
        }


class Sandbox(Clouds):
    """A sandbox's clouds, and how to steer them."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._command("up")
        super().__init__(sandbox_stack(state))
        self.docker = docker.DockerClient(base_url=self.environment["SANDBOX_DOCKER_HOST"])
        clouds = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]["sandbox"]
        self.openstack: Connection = openstack.connect(load_yaml_config=False, load_envvars=False, **clouds)

    def close(self) -> None:
        """Ends the sandbox and checks nothing."""
        self.docker.close()
        self._command("down")

    def clear(self) -> None:
        """Empties the clouds, as nobody's program would: for tests that need a new start quickly."""
        self.control("DELETE", "jobs")
        cloud = self.openstack
        for server in cloud.compute.servers():
            cloud.compute.delete_server(server)
            cloud.compute.wait_for_delete(server, interval=0.2)
        for volume in cloud.block_storage.volumes():
            cloud.block_storage.delete_volume(volume.id)
            cloud.block_storage.wait_for_delete(volume, interval=0.2)
        for container in cloud.object_store.containers():
            cloud.object_store.delete_container(container.name)
        for credential in ec2_credentials(cloud):
            cloud.identity.delete(f"/users/{cloud.current_user_id}/credentials/OS-EC2/{credential['access']}")
        for address in cloud.network.ips():
            cloud.network.delete_ip(address)
        for port in cloud.network.ports():
            cloud.network.delete_port(port)
        for group in cloud.network.security_groups():
            if group.name != "default":
                cloud.network.delete_security_group(group)
        for key in cloud.compute.keypairs():
            cloud.compute.delete_keypair(key)
        for runner in self.gitlab.runners_all.list(get_all=True):
            self.gitlab.runners.delete(runner.id)

    def _command(self, command: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "sandbox", "--state", str(self.state), command],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )

    def managers(self) -> list[Container]:
        """Runner managers that run."""
        return [
            container
            for container in self.docker.containers.list(filters={"label": OWN_LABEL})
            if container.status == "running"
        ]

    def inventory(self) -> dict[str, int]:
        """How many of each thing there are in the three clouds, whoever made them."""
        return self.openstack_inventory() | {
            "runners": len(self.gitlab.runners_all.list(get_all=True)),
            "containers": len(self.docker.containers.list(all=True)),
            # The runner's image brings further ones without a name, which go with their container.
            "volumes": len(self.docker.volumes.list(filters={"label": OWN_LABEL})),
        }


NOTHING = {
    "servers": 0,
    "key pairs": 0,
    "server groups": 0,
    "ports": 0,
    "floating IPs": 0,
    "disks": 0,
    "object containers": 0,
    "EC2 credentials": 0,
    "security groups": 0,
    "security group rules": 0,
    "runners": 0,
    "containers": 0,
    "volumes": 0,
}


@dataclass
class Result:
    """What a command of Pulumi printed and how it ended."""

    status: int
    output: str

    @property
    def errors(self) -> list[str]:
        """Lines that tell an error."""
        return [line.strip() for line in self.output.splitlines() if line.strip().startswith("error:")]


@dataclass
class Project:
    """The program with a stack file of a test's own and a state of its own."""

    clouds: Clouds
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    like: Stack | None = None
    """The stack to begin with; that of the clouds when absent."""
    program: Path = ROOT
    """The folder of the program: this checkout's, or an earlier release's."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        backend = self.folder / "state"
        backend.mkdir(exist_ok=True)
        stack = self.like or self.clouds.stack
        self.stack = stack.name
        # The stack's file, completed for this machine.
        file = stack.config_file
        assert file is not None
        self.file = self.folder / f"Pulumi.{stack.name}.yaml"
        self.file.write_text(file.read_text())
        self.environment = {
            **self.clouds.environment,
            "PULUMI_BACKEND_URL": backend.as_uri(),
            **self.environment,
        }
        in_program = stack_file(self.stack, self.program / "stacks")
        has_file = in_program.exists()
        assert self.run("stack", "init", self.stack).status == 0
        if not has_file:
            # Pulumi has made one with a salt. The stack has its file here, and the program's folder stays as it was.
            in_program.unlink()

    def as_stack(self) -> Stack:
        """The stack, as the project's own commands have it."""
        return Stack(self.stack, self.environment, self.file)

    @property
    def config(self) -> dict[str, Any]:
        """The stack's configuration; change it with `configure`."""
        config: dict[str, Any] = yaml.safe_load(self.file.read_text())["config"]
        return config

    def configure(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Changes the stack file: `change` gets the program's keys without their namespace."""
        content = yaml.safe_load(self.file.read_text())
        config = content["config"]
        own = {key.removeprefix("gitlab-runners:"): value for key, value in config.items() if ":" in key}
        change(own)
        content["config"] = {key if ":" in key else f"gitlab-runners:{key}": value for key, value in own.items()}
        self.file.write_text(yaml.safe_dump(content, sort_keys=False))

    def run(self, *arguments: str, config: bool = False) -> Result:
        """Runs a command of Pulumi; `config` hands it the stack file."""
        file = [f"--config-file={self.file}"] if config else []
        command = ["pulumi", *arguments, *file, "--non-interactive"]
        with TemporaryFile("w+") as output:
            try:
                done = subprocess.run(
                    command,
                    cwd=self.program,
                    env=self.environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=self.clouds.patience_seconds * 10,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                output.seek(0)
                raise AssertionError(f"{error}\n{output.read()}") from error
            output.seek(0)
            return Result(done.returncode, output.read())

    def preview(self) -> Plan:
        """The plan: what would happen to which resource, without those that stay as they are."""
        result = subprocess.run(
            ["pulumi", "preview", f"--stack={self.stack}", "--json", f"--config-file={self.file}"],
            cwd=self.program,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return plan_of(json.loads(result.stdout)["steps"])

    def failing_preview(self) -> Result:
        """A preview that must fail."""
        result = self.run("preview", f"--stack={self.stack}", config=True)
        assert result.status != 0, result.output
        return result

    def up(self, *arguments: str) -> Result:
        """Updates the stack; it must succeed."""
        result = self.try_up(*arguments)
        assert result.status == 0, result.output
        return result

    def try_up(self, *arguments: str) -> Result:
        """Updates the stack, whatever comes of it."""
        return self.run("up", f"--stack={self.stack}", "--yes", "--skip-preview", *arguments, config=True)

    def refresh(self) -> Plan:
        """Takes what is really there into the state and says what was found to be different."""
        preview = subprocess.run(
            ["pulumi", "refresh", f"--stack={self.stack}", "--preview-only", "--json", f"--config-file={self.file}"],
            cwd=self.program,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert preview.returncode == 0, preview.stdout + preview.stderr
        result = self.run("refresh", f"--stack={self.stack}", "--yes", "--skip-preview", config=True)
        assert result.status == 0, result.output
        return plan_of(json.loads(preview.stdout)["steps"])

    def destroy(self) -> Result:
        """Destroys the stack; it must succeed."""
        result = self.run("destroy", f"--stack={self.stack}", "--yes", "--skip-preview", config=True)
        assert result.status == 0, result.output
        return result

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs."""
        result = self.run("stack", "output", f"--stack={self.stack}", "--json")
        assert result.status == 0, result.output
        found: dict[str, Any] = json.loads(result.output)
        return found

    def export(self, *arguments: str) -> dict[str, Any]:
        """The state as it is stored."""
        result = self.run("stack", "export", f"--stack={self.stack}", *arguments)
        assert result.status == 0, result.output
        found: dict[str, Any] = json.loads(result.output)
        return found

    def take_over(self, state: dict[str, Any]) -> None:
        """Makes an exported state the stack's own."""
        file = self.folder / "state.json"
        file.write_text(json.dumps(state))
        result = self.run("stack", "import", f"--stack={self.stack}", f"--file={file}")
        assert result.status == 0, result.output


def plan_of(steps: Iterable[dict[str, Any]]) -> Plan:
    """Steps by "Type name"; a replacement counts once, and components are left out."""
    plan: Plan = {}
    for step in steps:
        type_, name = step["urn"].split("::")[2].rpartition("$")[2], step["urn"].rpartition("::")[2]
        own = type_.startswith(("gitlab-runners:", "pulumi:pulumi:"))
        operation = {"create-replacement": "replace", "delete-replaced": "replace"}.get(step["op"], step["op"])
        # What a refresh has looked at and found as it was.
        if operation not in {"same", "refresh"} and not own:
            plan[f"{type_.rpartition(':')[2]} {name}"] = operation
    return plan


def restarted(before: list[Container], after: list[Container]) -> set[str | None]:
    """Names of managers that are not the same container any more."""
    return {container.name for container in before} - {container.name for container in after}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Waits until something is so; the bound only ends a run that would hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"gave up waiting for {what}"
        time.sleep(0.2)


def at_once(jobs: list[dict[str, Any]]) -> int:
    """How many of the jobs ran at the same time, at most: from their starts to their ends as GitLab knows them."""
    starts = [(datetime.fromisoformat(job["started_at"]), 1) for job in jobs]
    ends = [(datetime.fromisoformat(job["finished_at"]), -1) for job in jobs]
    running = most = 0
    for _, step in sorted(starts + ends):
        running += step
        most = max(most, running)
    return most


def inside(engine: Engine, command: str) -> str:
    """Runs a shell command where the engine runs, which has a network and a firewall of its own."""
    (libraries,) = unpacked_engine(print).glob("usr/lib/*-linux-gnu")
    environment = [f"LD_LIBRARY_PATH={libraries}", f"XTABLES_LIBDIR={libraries}/xtables"]
    words = [*engine.enter(), "env", *environment, "sh", "-c", f"PATH=/run/bin:$PATH:{engine.tools}; {command}"]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def has_service(cloud: Connection, type_: str) -> bool:
    """Whether the cloud has a service of that type."""
    return cloud.endpoint_for(type_) is not None


def ec2_credentials(cloud: Connection) -> list[dict[str, str]]:
    """The EC2 credentials of the user."""
    answer = cloud.identity.get(f"/users/{cloud.current_user_id}/credentials/OS-EC2")
    answer.raise_for_status()
    found: list[dict[str, str]] = answer.json()["credentials"]
    return found


def _count(things: Iterable[Any]) -> int:
    return sum(1 for _ in things)
