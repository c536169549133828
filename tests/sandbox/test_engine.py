"""Where the sandbox's Docker Engine comes from, and that nothing of it stays."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import engine as module
from sandbox.engine import Engine, EngineError, ensure, stop
from sandbox.packages import machine_release
from sandbox.processes import Process

own_engine = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or machine_release() is None, reason="needs Debian and root"
)


def silent(_: str) -> None:
    pass


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where no engine answers."""
    monkeypatch.setattr(module, "_candidates", lambda: iter(()))


@pytest.fixture
def state(tmp_path: Path, no_engine: None) -> Iterator[Path]:
    state = tmp_path / "state"
    yield state
    stop(state)


def docker(engine: Engine, *arguments: str, stdin: bytes = b"") -> str:
    environment = os.environ | {"DOCKER_HOST": engine.docker_host, "PATH": f"{os.environ['PATH']}:{engine.tools}"}
    done = subprocess.run(["docker", *arguments], env=environment, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def load(engine: Engine, root: Path) -> None:
    archive = subprocess.run(["tar", "-C", str(root), "-c", "."], capture_output=True, check=True).stdout
    docker(engine, "import", "-", "shell", stdin=archive)


def keeper_of(engine: Engine) -> Process:
    keeper = Process.read(Path(engine.namespace or ""))
    assert keeper is not None
    return keeper


def wait_for_end(process: Process) -> None:
    deadline = time.monotonic() + 10
    while process.alive:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def leftovers(state: Path) -> list[str]:
    """Processes, mounts, links and control groups that name the state directory or the engine made for it."""
    name = module._Own(state).name
    found = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{name}")]
    found += [link.name for link in Path("/sys/class/net").iterdir() if link.name == name]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(state) in line]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if str(state) in command:
            found.append(command)
    return found


def test_nothing_to_be_had_is_one_clear_line(tmp_path: Path, no_engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "machine_release", lambda: None)
    with pytest.raises(
        EngineError, match=r"^no Docker Engine answers .*: install Docker Engine 24 or newer and start it$"
    ):
        ensure(tmp_path, silent)


def test_state_directory_with_too_long_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="choose a shorter state directory"):
        ensure(tmp_path / ("x" * 100), silent)


def test_remote_engine_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    assert list(module._candidates()) == ["unix:///var/run/docker.sock"]


def test_socket_nobody_listens_on_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "docker.sock"))
    assert not module.answers(f"unix://{tmp_path}/docker.sock")
    assert not module.answers(f"unix://{tmp_path}/none.sock")


@own_engine
@pytest.mark.docker
def test_own_engine_runs_containers_that_reach_the_host(state: Path, shell_root: Path) -> None:
    engine = ensure(state, silent)
    load(engine, shell_root)
    with socket.create_server((engine.gateway, 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"from the host\n"), daemon=True).start()
        port = listener.getsockname()[1]
        script = (
            f"read line </dev/tcp/{engine.gateway}/{port}; echo $line; read mtu </sys/class/net/eth0/mtu; echo $mtu"
        )
        docker(engine, "network", "create", "job")
        told = docker(engine, "run", "--rm", "--privileged", "--network", "job", "shell", "bash", "-c", script)
    assert told == "from the host\n1450"
    assert ensure(state, silent) == engine


@own_engine
@pytest.mark.docker
def test_two_engines_share_a_machine_and_leave_nothing(state: Path, tmp_path: Path, shell_root: Path) -> None:
    other = tmp_path / "other"
    first, second = ensure(state, silent), ensure(other, silent)
    try:
        assert first.gateway != second.gateway
        load(first, shell_root)
        docker(first, "run", "-d", "-i", "shell", "bash", "-c", "read line")
        assert docker(second, "ps", "-aq") == ""
    finally:
        stop(other)
    assert leftovers(other) == []
    assert docker(first, "ps", "-q") != ""
    stop(state)
    assert leftovers(state) == []
    assert not (state / "engine").exists()


@own_engine
@pytest.mark.docker
def test_engine_that_crashed_comes_back_with_its_containers(state: Path, shell_root: Path) -> None:
    engine = ensure(state, silent)
    load(engine, shell_root)
    container = docker(engine, "run", "-d", "-i", "--restart", "always", "shell", "bash", "-c", "read line")
    dead = keeper_of(engine)
    os.kill(dead.pid, signal.SIGKILL)
    wait_for_end(dead)
    again = ensure(state, silent)
    assert again.gateway == engine.gateway
    assert keeper_of(again) != dead
    assert docker(again, "ps", "-q", "--no-trunc") == container


@own_engine
@pytest.mark.docker
def test_engine_ends_when_its_state_directory_is_deleted(state: Path) -> None:
    engine = ensure(state, silent)
    keeper = keeper_of(engine)
    Path(engine.namespace or "").unlink()
    wait_for_end(keeper)
