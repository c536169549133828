"""The sandbox's Docker Engine: the one that answers on this machine, else one that is started by hand.

The engine started by hand lives in namespaces of its own (mount, network, process), so that

* inside, it is at /var/run/docker.sock with its own docker0 and iptables, as on a VM, and eth0 has the MTU of a tenant
  network;
* outside, it is at ``<state>/docker.sock``, and the host's network is untouched but for one end of a veth pair;
* ending it ends every daemon, shim, container and mount in it, whatever state they are in: the kernel does that when
  the first process of a process namespace ends.

Nothing routes between it and the world: it cannot pull images.

That first process, the keeper's child, ends by itself when dockerd does or when the state directory is deleted.
"""

import functools
import hashlib
import http.client
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandbox.packages import PackageError, machine_release, unpacked_engine
from sandbox.processes import Process

GUEST_MTU = 1450  # bytes: a VXLAN tenant network over a 1500-byte physical one
LINK_SPACE = ipaddress.IPv4Network("198.18.0.0/15")  # RFC 2544: reserved for tests, so in nobody's routes
START_TIMEOUT = 60.0  # seconds; a warm start takes two
SOCKET_PATH_LIMIT = 107  # bytes, sockaddr_un.sun_path of unix(7) less its final zero
LONGEST_SOCKET_NAME = "/vms/00000000.sock"
HOST_TOOLS = ("apt-get", "dpkg", "ip", "mount", "mountpoint", "nsenter", "unshare")


class EngineError(RuntimeError):
    """No Docker Engine can be had; the message says in one line what to do."""


@dataclass(frozen=True)
class Engine:
    """A Docker Engine that answers.

    docker_host: its address for clients on this machine (``unix://...``).
    namespace:   for an engine started by hand the file that names the keeper of its namespaces, else None.
    gateway:     the host as containers see it: an address, or a name where the engine runs in a VM of its own.
    tools:       directory with a docker CLI to put on PATH where the machine has none; empty when not needed.
    """

    docker_host: str
    namespace: str | None
    gateway: str
    tools: str = ""

    def enter(self) -> list[str]:
        """What to put before a command so that it runs where the engine runs. Raises EngineError when it has ended."""
        if self.namespace is None:
            return []
        keeper = Process.read(Path(self.namespace))
        if keeper is None or not keeper.alive:
            raise EngineError("the sandbox's Docker Engine has ended")
        namespaces = f"/proc/{keeper.pid}/ns"
        return [
            "nsenter",
            f"--mount={namespaces}/mnt",
            f"--net={namespaces}/net",
            f"--pid={namespaces}/pid_for_children",
            "--",
        ]


def ensure(state: Path, log: Callable[[str], None]) -> Engine:
    """Finds the engine, or starts one that keeps running; idempotent.

    state: the sandbox's state directory (absolute). Raises EngineError when there is none to be had.
    """
    if len(os.fsencode(state)) + len(LONGEST_SOCKET_NAME) > SOCKET_PATH_LIMIT:
        raise EngineError(f"{state} is too long for Unix sockets below it: choose a shorter state directory")
    own = _Own(state)
    if engine := own.running():
        return engine
    for docker_host in _candidates():
        if answers(docker_host):
            log(f"using the Docker Engine at {docker_host}")
            return Engine(docker_host, None, _gateway(docker_host))
    return own.start(log)


def stop(state: Path) -> None:
    """Ends the engine that ensure() started for this state directory and removes all it left; idempotent.

    An engine that was there before is left alone.
    """
    own = _Own(state)
    own.end()
    if own.directory.exists():
        shutil.rmtree(own.directory)


def answers(docker_host: str, timeout: float = 2.0) -> bool:
    """Whether an engine answers GET /_ping at this unix:// address within timeout (seconds)."""
    try:
        _get(docker_host, "/_ping", timeout)
    except (OSError, http.client.HTTPException):
        return False
    return True


def _candidates() -> Iterator[str]:
    """Local engines this user's docker would use. A remote one is no use: containers must reach this machine."""
    hosts = [os.environ.get("DOCKER_HOST", "")]
    if shutil.which("docker"):
        context = subprocess.run(
            ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"],
            capture_output=True,
            text=True,
            check=False,
        )
        hosts.append(context.stdout.strip())
    hosts.append("unix:///var/run/docker.sock")
    yield from dict.fromkeys(host for host in hosts if host.startswith("unix://"))


def _gateway(docker_host: str) -> str:
    if "Docker Desktop" in _get(docker_host, "/info").get("OperatingSystem", ""):
        return "host.docker.internal"
    networks = _get(docker_host, "/networks/bridge")
    return str(networks["IPAM"]["Config"][0]["Gateway"])


def _get(docker_host: str, path: str, timeout: float = 10.0) -> Any:
    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(docker_host.removeprefix("unix://"))

    connection = Connection("docker")
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"GET {path}: {response.status}")
        return json.loads(body) if "json" in response.getheader("Content-Type", "") else body
    finally:
        connection.close()


@dataclass(frozen=True)
class _Link:
    """The veth pair between the host and the engine."""

    name: str
    host: str
    guest: str


class _Own:
    """The engine started by hand for one state directory."""

    def __init__(self, state: Path) -> None:
        self.state = state = state.resolve()
        self.directory = state / "engine"
        self.keeper_file = self.directory / "keeper.json"
        self.link_file = self.directory / "link.json"
        self.init_file = self.directory / "init"
        self.socket = state / "docker.sock"
        self.log_file = state / "log" / "engine.log"
        self.name = "glr" + hashlib.sha256(str(state).encode()).hexdigest()[:8]

    def running(self) -> Engine | None:
        keeper = Process.read(self.keeper_file)
        if keeper is None or not keeper.alive or not answers(f"unix://{self.socket}"):
            return None
        return self._engine(_Link(**json.loads(self.link_file.read_text())))

    def start(self, log: Callable[[str], None]) -> Engine:
        self._check()
        try:
            root = unpacked_engine(log)
        except PackageError as error:
            raise EngineError(f"{error}; install Docker Engine 24 or newer and start it") from error
        log("starting a Docker Engine of the sandbox's own")
        self.end()
        for directory in (self.directory, self.log_file.parent):
            directory.mkdir(parents=True, exist_ok=True)
        link = self._free_link()
        self.link_file.write_text(json.dumps(asdict(link)) + "\n")
        self._write_daemon_configuration()
        self.init_file.write_text(_INIT)
        self._start_keeper(root, link)
        return self._engine(link)

    def end(self) -> None:
        """Everything but the data: an engine that crashed comes back with its containers, as a VM that reboots."""
        processes = _processes_with(str(self.init_file))
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        # The first process inside is gone when all the others are.
        _wait(lambda: not any(process.alive for process in processes), "the processes of the Docker Engine to end")
        _wait(functools.partial(_remove_link, self.name), f"the network link {self.name} to go")
        for tree in [Path("/sys/fs/cgroup", self.name), *Path("/sys/fs/cgroup").glob(f"*/{self.name}")]:
            for group, _, _ in os.walk(tree, topdown=False):
                _wait(functools.partial(_remove_group, Path(group)), f"the control group {group} to be empty")
        for leftover in (self.keeper_file, self.socket):
            leftover.unlink(missing_ok=True)

    def _engine(self, link: _Link) -> Engine:
        tools = "" if shutil.which("docker") else str(unpacked_engine(lambda _: None) / "usr/bin")
        return Engine(f"unix://{self.socket}", str(self.keeper_file), link.host, tools)

    def _check(self) -> None:
        remedy = "install Docker Engine 24 or newer and start it"
        if machine_release() is None:
            raise EngineError(f"no Docker Engine answers on this machine: {remedy}")
        if os.geteuid() != 0:
            raise EngineError(f"no Docker Engine answers, and only root can start one for the sandbox: {remedy}")
        if missing := [tool for tool in HOST_TOOLS if not shutil.which(tool)]:
            raise EngineError(f"no Docker Engine answers, and starting one needs {', '.join(missing)}: {remedy}")
        if self.state.is_relative_to("/run"):
            raise EngineError(
                f"{self.state} is below /run, which the engine has one of its own: choose another directory"
            )

    def _free_link(self) -> _Link:
        """A /30 that no interface has, the same one each time where that is possible."""
        addresses = json.loads(subprocess.run(["ip", "-json", "-4", "addr"], capture_output=True, check=True).stdout)
        taken = {
            ipaddress.IPv4Interface(f"{info['local']}/30").network for link in addresses for info in link["addr_info"]
        }
        candidates = list(LINK_SPACE.subnets(new_prefix=30))
        first = int(self.name.removeprefix("glr"), 16) % len(candidates)
        for network in candidates[first:] + candidates[:first]:
            if network not in taken:
                host, guest = network.hosts()
                return _Link(self.name, str(host), str(guest))
        raise EngineError(f"every network in {LINK_SPACE} is taken on this machine")

    def _write_daemon_configuration(self) -> None:
        configuration = {
            "hosts": ["unix:///var/run/docker.sock", f"unix://{self.socket}"],
            "data-root": str(self.directory / "data"),
            "cgroup-parent": f"/{self.name}",
            "mtu": GUEST_MTU,
            "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": str(GUEST_MTU)}},
            "default-address-pools": [{"base": "10.128.0.0/12", "size": 24}],  # a network per job: 31 would not do
        }
        (self.directory / "daemon.json").write_text(json.dumps(configuration, indent=2) + "\n")

    def _start_keeper(self, root: Path, link: _Link) -> None:
        libraries = next(root.glob("usr/lib/*-linux-gnu"))
        environment = {
            "PATH": f"/run/bin:{root}/usr/sbin:{root}/usr/bin:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(libraries),
            "XTABLES_LIBDIR": str(libraries / "xtables"),
            "ROOT": str(root),
            "KEEPER": str(self.keeper_file),
            "CONFIGURATION": str(self.directory / "daemon.json"),
            "HOST": link.host,
            "GUEST": link.guest,
            "MTU": str(GUEST_MTU),
        }
        with self.log_file.open("ab") as output:
            keeper = subprocess.Popen(
                [*_UNSHARE, "/bin/sh", str(self.init_file)],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        Process.of(keeper.pid).write(self.keeper_file)
        try:
            own_network = Path("/proc/self/ns/net").readlink()
            self._await(keeper, lambda: Path(f"/proc/{keeper.pid}/ns/net").readlink() != own_network)
            for command in (
                f"link add {link.name} mtu {GUEST_MTU} type veth peer name eth0 mtu {GUEST_MTU} netns {keeper.pid}",
                f"address add {link.host}/30 dev {link.name}",
                f"link set {link.name} up",
            ):
                subprocess.run(["ip", *command.split()], check=True)
            self._await(keeper, lambda: answers(f"unix://{self.socket}"))
        except BaseException:
            self.end()
            keeper.wait()
            raise

    def _await(self, keeper: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not condition():
            if keeper.poll() is not None or time.monotonic() > deadline:
                last = self.log_file.read_text(errors="replace").strip().splitlines()[-1:]
                raise EngineError(f"the Docker Engine did not start: {''.join(last)} (all of it in {self.log_file})")
            time.sleep(0.02)


_UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")

# The first process inside. sysfs is mounted anew because it shows the network namespace it was mounted in; the control
# groups below it are kept. The rule that is tried for iptables is the first one that Docker needs and a kernel without
# the nft compatibility layer refuses.
_INIT = """\
set -eu
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/bin /run/cgroup
if mountpoint -q /sys/fs/cgroup; then mount --rbind /sys/fs/cgroup /run/cgroup; fi
mount -t sysfs sysfs /sys
if mountpoint -q /run/cgroup; then mount --rbind /run/cgroup /sys/fs/cgroup; umount -R /run/cgroup; fi
for variant in nft legacy; do
    for command in iptables ip6tables; do
        for suffix in '' -save -restore; do
            ln -sf "$ROOT/usr/sbin/xtables-$variant-multi" "/run/bin/$command$suffix"
        done
    done
    rule='OUTPUT -t nat -m addrtype --dst-type LOCAL -j RETURN'
    if iptables -A $rule && iptables -D $rule; then break; fi
done
ip link set lo up
until ip link set dev eth0 mtu "$MTU" up 2>/run/eth0; do sleep 0.02; done
ip address add "$GUEST/30" dev eth0
ip route add default via "$HOST"
dockerd --config-file "$CONFIGURATION" &
while [ -e "$KEEPER" ] && kill -0 $! 2>/run/dockerd; do sleep 2; done
"""


def _processes_with(argument: str) -> list[Process]:
    """All processes that were started with this argument."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if os.fsencode(argument) in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(Process.of(int(entry.name)))
    return found


def _remove_link(name: str) -> bool:
    """The kernel removes it too, some time after the last process inside has ended: whoever is first."""
    if not Path("/sys/class/net", name).exists():
        return True
    return subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False).returncode == 0


def _remove_group(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # EBUSY until the kernel has accounted for the last process
        return False
    return True


def _wait(condition: Callable[[], bool], what: str, timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise EngineError(f"gave up waiting for {what} after {timeout:.0f} s")
        time.sleep(0.02)
