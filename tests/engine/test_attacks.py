"""What jobs can reach and ask for in each mode of builds, on a real Docker Engine; the docs have the same table.

Which images, services and pull policies a job may have is decided by GitLab Runner; all else by Docker and the kernel.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.models.containers import Container

from renderers.cloud_init import CloudInit, user_data
from sandbox.engine import Engine
from tests.ci.images import CLI_IMAGE, DIND_IMAGE, ensure
from tests.engine.harness import DIND_TLS, ROOT, SHELL_IN_DIND, Project, Sandbox, inside, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.acceptance, pytest.mark.xdist_group("attacks")]

MODES = ("none", "rootless", "dind")
HEADING = "| a job can | `none` | `rootless` | `dind` |"
METADATA = "169.254.169.254"
SERVE = f"echo reached > /tmp/index.html; exec busybox httpd -f -p {METADATA}:80 -h /tmp"
# The word in its command line is what other jobs look for.
VICTIM = [
    "mkdir /tmp/web; echo reached > /tmp/web/index.html; busybox httpd -p 8000 -h /tmp/web",
    "sh -c 'sleep 600; : the-victim'",
]

# Commands that succeed where the attack does. $VICTIM is the address of another job of the same runner, $DISK the
# device number of a disk of the host, $SETTING a setting of its kernel.
ATTACKS = {
    "reach docker.sock": "find / -xdev -name '*docker.sock' | grep .",
    "reach the metadata service": f"timeout 5 wget -q -O - http://{METADATA}/index.html",
    "reach another job over the network": "timeout 5 wget -q -O - http://$VICTIM:8000/index.html",
    "see another job's processes": "grep -s the-victi[m] /proc/[0-9]*/cmdline",
    "read the manager's token": "grep -rs glrt- /etc /home /root /run /tmp /var /proc/[0-9]*/environ",
    "become root by a setuid program": "grep 'NoNewPrivs:.0' /proc/self/status",
    "make namespaces": "unshare -U -m true",
    "mount file systems": "mkdir -p /tmp/mount; mount -t tmpfs none /tmp/mount",
    "read the host's disks": "rm -f /tmp/disk; mknod /tmp/disk b $DISK; dd if=/tmp/disk count=1 | grep the-disk",
    "change the host's kernel settings": "value=$(cat $SETTING); echo $value > $SETTING",
}
# Here the job can have its Docker-in-Docker service do it.
BY_THE_SERVICE = ("mount file systems", "read the host's disks", "change the host's kernel settings")
SETTING = "/proc/sys/vm/swappiness"
# That such an image works, too.
SHELL = [*SHELL_IN_DIND, "docker run --rm --privileged shell sh -c true"]


@pytest.fixture(scope="module")
def runners(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A runner for each mode, whose tag is the mode's name; the image that their jobs may use."""
    project = Project(sandbox, tmp_path_factory.mktemp("project"))
    image = sandbox.environment["SANDBOX_JOB_IMAGE"]
    runner: dict[str, Any] = {
        "project": 100,
        "image": image,
        "pullPolicies": ["if-not-present"],
        "allowedImages": [image, CLI_IMAGE],
        "allowedServices": ["docker:*dind*", image],
    }
    project.configure(
        lambda config: config.update(runners={mode: runner | {"tags": [mode], "builds": mode} for mode in MODES})
    )
    project.up()
    yield image
    sandbox.clear()


@pytest.fixture
def metadata_service(sandbox: Sandbox, engine: Engine, runners: str) -> Iterator[None]:
    """What answers on the machines' side, and the rule that machines get."""
    inside(engine, f"ip address add {METADATA}/32 dev lo")
    server = sandbox.docker.containers.run(runners, ["sh", "-c", SERVE], network_mode="host", detach=True)
    files = yaml.safe_load(user_data(CloudInit("debian", 1450, True, "PRIVATE\n", "PUBLIC")))["write_files"]
    (unit,) = [file["content"] for file in files if file["path"].endswith("block-metadata.service")]
    start = re.search(r"ExecStart=/bin/sh -c '(.*?)'", unit, re.DOTALL)
    assert start is not None
    wait_until(lambda: answers(sandbox, runners, f"http://{METADATA}/index.html"), "an answer without the rule")
    inside(engine, start[1])
    yield
    server.remove(force=True)
    inside(engine, f"ip address del {METADATA}/32 dev lo; iptables -w -t raw -F PREROUTING")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of this machine."""
    file = tmp_path / "disk"
    file.write_bytes(b"the-disk\n".ljust(1 << 20, b"\0"))
    device = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True).stdout
    yield Path(device.strip())
    subprocess.run(["losetup", "--detach", device.strip()], check=True)


@pytest.mark.usefixtures("metadata_service")
def test_what_jobs_can_do_is_what_the_docs_say(sandbox: Sandbox, engine: Engine, runners: str, disk: Path) -> None:
    ensure(engine, print)
    measured = {mode: attacked(sandbox, runners, mode, disk) | asked(sandbox, runners, mode) for mode in MODES}
    table = [HEADING, "|---|---|---|---|"]
    for attack in measured[MODES[0]]:
        cells = ("**yes**" if measured[mode][attack] else "no" for mode in MODES)
        table.append(f"| {attack} | {' | '.join(cells)} |")
    print("\n" + "\n".join(table))
    lines = (ROOT / "docs/explanation/security.md").read_text().splitlines()
    start = lines.index(HEADING)
    assert lines[start : start + len(table)] == table
    assert not lines[start + len(table)]


def attacked(sandbox: Sandbox, image: str, mode: str, disk: Path) -> dict[str, bool]:
    """Which attacks succeed from inside a job."""
    victim = sandbox.put_job(VICTIM, tags=[mode])
    sandbox.wait_for_job(victim, "running")
    (container,) = running(sandbox, victim)
    ((network, endpoint),) = container.attrs["NetworkSettings"]["Networks"].items()
    url = f"http://{endpoint['IPAddress']}:8000/index.html"
    # Whoever is on its network reaches it.
    wait_until(lambda: answers(sandbox, image, url, network=network), "the victim's answer")
    number = disk.stat().st_rdev
    variables = {
        "VICTIM": endpoint["IPAddress"],
        "DISK": f"{os.major(number)} {os.minor(number)}",
        "SETTING": SETTING,
    }
    results = outcome(sandbox, ATTACKS, tags=[mode], variables=variables)
    if mode == "dind":
        settings = " ".join(f"-e {name}" for name in variables)
        run = f"docker run --rm --privileged {settings} shell sh -c"
        through = {name: f"{run} '{ATTACKS[name].replace(chr(39), chr(34))}'" for name in BY_THE_SERVICE}
        more = {"image": CLI_IMAGE, "services": [{"name": DIND_IMAGE, "alias": "docker"}]}
        results |= outcome(sandbox, through, SHELL, tags=[mode], variables=variables | DIND_TLS, **more)
    container.kill()
    return results


def outcome(sandbox: Sandbox, attacks: dict[str, str], first: list[str] | None = None, **job: Any) -> dict[str, bool]:
    """Which of the commands succeed in one job, after what it does first."""
    script = [
        f"if ( {command}; ) >/dev/null; then echo 'RESULT {number} yes'; else echo 'RESULT {number} no'; fi"
        for number, command in enumerate(attacks.values())
    ]
    ended = sandbox.wait_for_job(sandbox.put_job([*(first or []), *script], **job))
    assert ended["status"] == "success", ended["trace"]
    found = dict(re.findall(r"RESULT (\d+) (yes|no)$", ended["trace"], re.MULTILINE))
    assert len(found) == len(attacks), ended["trace"]
    return {name: found[str(number)] == "yes" for number, name in enumerate(attacks)}


def asked(sandbox: Sandbox, image: str, mode: str) -> dict[str, bool]:
    """Which requests of a job are granted."""
    refused: dict[str, dict[str, Any]] = {
        "have an image that is not allowed": {"image": "debian:13"},
        "have a service that is not allowed": {"services": ["redis:8"]},
        "have another pull policy": {"pull_policy": ["never"]},
    }
    granted = {}
    for name, wish in refused.items():
        ended = sandbox.wait_for_job(sandbox.put_job(["true"], tags=[mode], **wish))
        granted[name] = not re.search("not present on list of allowed|allowed_pull_policies", ended["trace"])
    for name, service in {
        "have a privileged Docker-in-Docker service": DIND_IMAGE,
        "have another privileged service": image,
    }.items():
        job = sandbox.put_job(["sleep 600"], tags=[mode], services=[service])
        (build,), (beside,) = running(sandbox, job), containers(sandbox, job, "service")
        assert not build.attrs["HostConfig"]["Privileged"]
        granted[name] = beside.attrs["HostConfig"]["Privileged"]
        build.kill()
        sandbox.wait_for_job(job)
    return granted


def containers(sandbox: Sandbox, job: int, kind: str) -> list[Container]:
    """The running containers of a job, `build` or `service`."""
    labels = [f"com.gitlab.gitlab-runner.{label}" for label in (f"job.id={job}", f"type={kind}")]
    filters: dict[str, str | list[str] | bool] = {"label": labels}
    return list(sandbox.docker.containers.list(filters=filters, all=kind == "service"))


def running(sandbox: Sandbox, job: int) -> list[Container]:
    """The job's own container, once it runs."""
    wait_until(lambda: bool(containers(sandbox, job, "build")), "the job's container")
    return containers(sandbox, job, "build")


def answers(sandbox: Sandbox, image: str, url: str, **options: Any) -> bool:
    """Whether a container that is no job gets an answer."""
    command = ["sh", "-c", f"timeout 5 wget -q -O - {url} || true"]
    output: bytes = sandbox.docker.containers.run(image, command, remove=True, **options)
    return output.decode().strip() == "reached"
