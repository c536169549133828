"""Network, mounts, processes and host name of their own, which the kernel takes away with the first process in them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from scripts.console import Failure

HOST_TOOLS = ("chroot", "ip", "mount", "perl", "setpriv", "unshare")
_ENTER = (
    *("setpriv", "--pdeathsig", "KILL", "--"),  # ends with the process that started it, however that ends
    *("unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
)


def run(command: Sequence[str]) -> int:
    """Runs the command as the first process of new namespaces; its exit status.

    An interruption by the keyboard reaches the command too, which says what becomes of it.
    """
    ended: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        # unshare blocks signals while it waits; its child takes all others inside with it.
        ended.append(number)
        for child in _children(process.pid) or [process.pid]:
            os.kill(child, signal.SIGKILL)

    with subprocess.Popen([*_ENTER, *command]) as process, _handlers(end):
        status = process.wait()
    return 128 + ended[0] if ended else status


@contextlib.contextmanager
def _handlers(end: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children(pid: int) -> list[int]:
    """Children of a process (proc(5), field 4 of /proc/PID/stat is the parent)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def become_init() -> None:
    """Goes on in a child; this process, the first one inside, waits for it and for all orphans.

    libvirt takes a QEMU that has ended for one that does not end until somebody has waited for it.
    """
    child = os.fork()
    if child == 0:
        return
    signal.signal(signal.SIGINT, lambda number, frame: None)  # not SIG_IGN, which a child would inherit
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def mount_root(lower: Sequence[Path], writable: Path) -> Path:
    """A root file system to chroot into: what is written lands in ``writable/upper``, the lower ones (topmost first)
    stay as they are.
    """
    root, upper, work = (writable / name for name in ("root", "upper", "work"))
    for directory in (root, upper, work):
        directory.mkdir(exist_ok=True)
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    for command in (
        ("-t", "overlay", "-o", options, "overlay", str(root)),
        ("-t", "proc", "proc", str(root / "proc")),
        ("-t", "sysfs", "sysfs", str(root / "sys")),  # shows the interfaces of the namespace it is mounted in
        ("--rbind", "/dev", str(root / "dev")),
        ("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "run")),
    ):
        run_tool("mount", *command)
    return root


def bring_up_network(host_name: str) -> None:
    """The loopback interface, and a host name that is the same on every machine."""
    run_tool("ip", "link", "set", "lo", "up")
    Path("/proc/sys/kernel/hostname").write_text(host_name)


def add_bridge(name: str, mtu: int, address: str) -> None:
    """A bridge with this address (with prefix length)."""
    run_tool("ip", "link", "add", name, "mtu", str(mtu), "type", "bridge")
    run_tool("ip", "address", "add", address, "dev", name)
    run_tool("ip", "link", "set", name, "up")


def run_tool(*command: str) -> None:
    """Runs a command that says why it fails on its standard error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package."""
    return [sys.executable, "-m", f"{__package__}.{name}", *arguments]


def wait_until(deadline_s: float) -> Iterator[None]:
    """Yields until so many seconds have passed."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        yield
        time.sleep(0.1)
