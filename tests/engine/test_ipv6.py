"""IPv6 for containers and jobs: an engine with the daemon.json that machines get, and what is reached from there."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from docker.models.containers import Container

from renderers.cloud_init import CloudInit, user_data
from renderers.metrics import METRICS_PORT
from sandbox import engine as engines
from sandbox import packages
from sandbox.engine import Engine, EngineError
from tests.ci.images import CLI_IMAGE, DIND_IMAGE, ensure
from tests.engine.harness import DIND_TLS, SHELL_IN_DIND, Project, Sandbox, inside, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]
FILES = {
    file["path"]: file["content"]
    for file in yaml.safe_load(
        user_data(CloudInit("debian", 1450, True, "PRIVATE\n", "PUBLIC", metrics=True, ipv6=True))
    )["write_files"]
}
METADATA = "fe80::a9fe:a9fe"
OUTSIDE = "2001:db8::2"
MACHINE, SERVICE = IPv6Network("fd5a:fb2:692d::/63"), IPv6Network("fd5a:fb2:692d:2::/63")
ADDRESS = "ip -6 -o address show dev eth0 scope global"
FETCH = "timeout 5 wget -q -O - http://{} || echo nothing"
SERVE = "mkdir /tmp/www; echo reached > /tmp/www/index.html; exec busybox httpd -f -p {} -h /tmp/www"
NETWORKS = ("bridge", "user-defined")
# 26.1.5, and one whose networks GitLab Runner can read.
OLDER, NEWER = "trixie", "sid"


@pytest.fixture(scope="module", params=[OLDER, NEWER])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox on an engine that is configured as that of a machine, from a suite of Debian's."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine's kernel has no IPv6")
    plain = engines._Own._write_daemon_configuration

    def write(own: engines._Own) -> None:
        plain(own)
        file = own.directory / "daemon.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | json.loads(FILES["/etc/docker/daemon.json"])))

    def unpacked(log: Callable[[str], None]) -> Path:
        with pytest.MonkeyPatch.context() as suite:
            suite.setattr(packages, "ENGINE_SUITE", request.param)
            return packages.unpacked_engine(log)

    # A short path, as in conftest.py.
    with TemporaryDirectory(prefix="glr-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "unpacked_engine", unpacked)
        patch.setattr(engines._Own, "_write_daemon_configuration", write)
        own = engines._Own(Path(folder))
        try:
            own.start(print)
        except EngineError as error:
            pytest.skip(f"no Docker Engine of Debian {request.param}: {error}")
        # It takes the engine that is there already.
        started = Sandbox(Path(folder))
        try:
            yield started
        finally:
            started.close()


@pytest.fixture(scope="module")
def machine(sandbox: Sandbox) -> Engine:
    return Engine(**json.loads((sandbox.state / "engine.json").read_text()))


@pytest.fixture(scope="module")
def outside(machine: Engine) -> None:
    """A host beyond the machine, which knows nothing of the containers' addresses."""
    busybox = packages.unpacked_busybox(print)
    inside(
        machine,
        f"""set -e
        ip netns add outside
        ip link add uplink mtu 1450 type veth peer name eth0 netns outside
        ip address add 2001:db8::1/64 dev uplink nodad
        ip link set uplink up
        ip -n outside address add {OUTSIDE}/64 dev eth0 nodad
        ip -n outside link set eth0 up
        mkdir /run/outside
        echo reached > /run/outside/index.html
        ip netns exec outside {busybox} httpd -p [{OUTSIDE}]:80 -h /run/outside""",
    )


@pytest.fixture(scope="module", autouse=True)
def networks(sandbox: Sandbox) -> Iterator[None]:
    """Further networks, each with what it gets for itself."""
    made = [sandbox.docker.networks.create(name, enable_ipv6=True) for name in ("user-defined", "another")]
    yield
    for network in made:
        network.remove()


def run(sandbox: Sandbox, command: str, network: str) -> str:
    """What a command in a container says."""
    image = sandbox.environment["SANDBOX_JOB_IMAGE"]
    output: bytes = sandbox.docker.containers.run(image, ["sh", "-c", command], network=network, remove=True)
    return output.decode().strip()


@contextmanager
def serving(sandbox: Sandbox, port: str, network: str) -> Iterator[Container]:
    """A container that answers HTTP at [address:]port."""
    image = sandbox.environment["SANDBOX_JOB_IMAGE"]
    server = sandbox.docker.containers.run(image, ["sh", "-c", SERVE.format(port)], network=network, detach=True)
    try:
        yield server
    finally:
        server.remove(force=True)


def address_in(text: str) -> IPv6Address:
    """The one address in what `ip` says."""
    (found,) = re.findall(r"inet6 ([0-9a-f:]+)/", text)
    return IPv6Address(found)


@pytest.mark.parametrize("name", ["daemon.json", "daemon-before-24.json"])
def test_dockerd_takes_the_file(machine: Engine, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[f"/etc/docker/{name}"])
    there = 'program=$(readlink /proc/$(cat /run/docker.pid)/exe); PATH="$PATH:${program%/*}"'
    said = inside(machine, f"{there} dockerd --validate --config-file={tmp_path / name} 2>&1")
    assert "configuration OK" in said


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("network", NETWORKS)
def test_a_container_reaches_its_neighbour_and_the_world(sandbox: Sandbox, network: str) -> None:
    assert address_in(run(sandbox, ADDRESS, network)) in MACHINE
    with serving(sandbox, "[::]:8000", network) as server:
        server.reload()
        neighbour = f"[{server.attrs['NetworkSettings']['Networks'][network]['GlobalIPv6Address']}]:8000"
        wait_until(lambda: run(sandbox, FETCH.format(neighbour), network) == "reached", "the neighbour's answer")
        # As over IPv4, networks are kept apart.
        assert run(sandbox, FETCH.format(neighbour), "another") == "nothing"
    assert run(sandbox, FETCH.format(f"[{OUTSIDE}]"), network) == "reached"


def test_every_network_has_the_mtu(sandbox: Sandbox) -> None:
    assert {run(sandbox, "cat /sys/class/net/eth0/mtu", network) for network in NETWORKS} == {"1450"}


@pytest.fixture
def metadata_service(sandbox: Sandbox, machine: Engine) -> Iterator[None]:
    """What answers at its address on the containers' networks, as a gateway would."""
    bridges = ["docker0", f"br-{sandbox.docker.networks.get('user-defined').attrs['Id'][:12]}"]
    for bridge in bridges:
        inside(machine, f"ip address add {METADATA}/64 dev {bridge} nodad")
    with serving(sandbox, "[::]:80", "host"):
        yield
    inside(machine, "ip6tables -w -t raw -F PREROUTING; iptables -w -t raw -F PREROUTING")
    for bridge in bridges:
        inside(machine, f"ip address del {METADATA}/64 dev {bridge}")


@pytest.mark.usefixtures("metadata_service")
def test_but_not_the_metadata_service(sandbox: Sandbox, machine: Engine) -> None:
    def answers() -> set[str]:
        return {run(sandbox, FETCH.format(f"[{METADATA}%eth0]"), network) for network in NETWORKS}

    wait_until(lambda: answers() == {"reached"}, "answers, as long as nothing is in the way")
    unit = FILES["/etc/systemd/system/block-metadata.service"]
    commands = re.findall(r"ExecStart=/bin/sh -c '(.*?)'", unit, re.DOTALL)
    for _ in range(2):
        for command in commands:
            inside(machine, command)
        assert answers() == {"nothing"}
    assert inside(machine, "ip6tables -w -t raw -S PREROUTING").count(METADATA) == 1


def test_nor_the_machines_port_for_metrics(sandbox: Sandbox, machine: Engine) -> None:
    def answers() -> set[str]:
        gateway = "$(ip -6 route | awk '/default/ {print $3}')"
        return {run(sandbox, FETCH.format(f"[{gateway}]:{METRICS_PORT}"), network) for network in NETWORKS}

    with serving(sandbox, f"[::]:{METRICS_PORT}", "host"):
        wait_until(lambda: answers() == {"reached"}, "answers, as long as nothing is in the way")
        rule = re.search(r"ExecStartPre=/bin/sh -c '(.*)'", FILES["/etc/systemd/system/runner-metrics.socket"])
        assert rule is not None
        inside(machine, rule[1])
        assert answers() == {"nothing"}
    inside(machine, "ip6tables -w -t raw -F PREROUTING; iptables -w -t raw -F PREROUTING")


@pytest.mark.parametrize("sandbox", [OLDER], indirect=True, scope="module")
def test_an_engine_whose_networks_gitlab_runner_cannot_read_is_refused(sandbox: Sandbox, project: Project) -> None:
    project.configure(lambda config: config["host"].update(ipv6=True))
    failed = project.try_up()
    assert failed.status != 0
    assert "host.ipv6: the Docker Engine of sandbox-1 is 26.1.5" in failed.output
    assert "Traceback" not in failed.output
    assert sandbox.managers() == []


@pytest.mark.parametrize("sandbox", [NEWER], indirect=True, scope="module")
@pytest.mark.usefixtures("outside")
def test_jobs_and_their_docker_in_docker_have_it_too(sandbox: Sandbox, machine: Engine, project: Project) -> None:
    ensure(machine, print)
    project.configure(lambda config: config["host"].update(ipv6=True))
    project.up()
    world = FETCH.format(f"[{OUTSIDE}]")
    job = sandbox.wait_for_job(sandbox.put_job([ADDRESS, world, "cat /sys/class/net/eth0/mtu"]))
    assert address_in(job["trace"]) in MACHINE
    assert re.search("^reached\n(.*\n)?1450$", job["trace"], re.MULTILINE)

    def in_service(network: str) -> str:
        through = [f'docker run --rm --network {network} shell sh -c "{command}"' for command in (ADDRESS, world)]
        service = {"name": DIND_IMAGE, "alias": "docker"}
        number = sandbox.put_job(
            [*SHELL_IN_DIND, "docker network create --ipv6 inner", *through],
            tags=["images"],
            image=CLI_IMAGE,
            services=[service],
            variables=DIND_TLS,
            protected=True,
        )
        return str(sandbox.wait_for_job(number)["trace"])

    for network in ("bridge", "inner"):
        trace = in_service(network)
        assert address_in(trace) in SERVICE, trace
        assert re.search("^reached$", trace, re.MULTILINE), trace
