"""`python -m sandbox`: up, status, env, down."""

import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.__main__ import SandboxError, main, read_environment
from sandbox.engine import EngineError, ensure, stop
from sandbox.processes import Process


def _sandbox(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandbox", "--state", str(state), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_without_a_sandbox_every_command_says_so(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--state", str(state), "status"]) == 1
    assert main(["--state", str(state), "env"]) == 1
    assert "run `python -m sandbox up` first" in capsys.readouterr().err
    assert main(["--state", str(state), "down"]) == 0
    assert not state.exists()
    with pytest.raises(SandboxError):
        read_environment(state)


def test_it_comes_up_stays_what_it_is_and_leaves_nothing(state: Path) -> None:
    try:
        ensure(state, print)
    except EngineError as error:
        pytest.skip(str(error))
    try:
        up = _sandbox(state, "up")
        assert up.returncode == 0, up.stderr + up.stdout
        process, environment = Process.read(state / "sandbox.pid"), read_environment(state)
        assert process is not None
        assert process.alive
        assert (state / "env").stat().st_mode & 0o777 == 0o600
        assert _sandbox(state, "env").stdout == (state / "env").read_text()
        assert environment["GITLAB_BASE_URL"] in _sandbox(state, "status").stdout

        again = _sandbox(state, "up")
        assert again.returncode == 0, again.stderr
        assert Process.read(state / "sandbox.pid") == process
        assert read_environment(state) == environment

        kept = _sandbox(state, "down", "--keep-state")
        assert kept.returncode == 0, kept.stderr
        assert not process.alive
        assert _sandbox(state, "up").returncode == 0
        assert read_environment(state) == environment
    finally:
        down = _sandbox(state, "down")
        stop(state)
    assert down.returncode == 0, down.stderr
    assert not state.exists()
