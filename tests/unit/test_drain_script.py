"""The script that drains a machine, with a Docker CLI that writes down what it is asked."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from renderers.drain import TIME_IS_OVER, drain

DOCKER = """\
#!/bin/sh
echo "$*" >>"$HOME/asked"
case $1 in
  ps) cat "$HOME/managers" ;;
  exec) [ ! -e "$HOME/paused" ] ;;
  wait) until [ -e "$HOME/ended" ]; do sleep 0.05; done ;;
esac
"""
UNDONE = ["update --restart always m1", "start m1"]


@dataclass
class Machine:
    """A machine with one manager."""

    home: Path

    def start(self, name: str = "QUIT", seconds: int = 60, *, even_if_jobs_run: bool = False) -> subprocess.Popen[str]:
        """The script, with an input that does not end."""
        script = drain("id", name, seconds, even_if_jobs_run=even_if_jobs_run)
        environment = {"HOME": str(self.home), "PATH": f"{self.home}:{os.environ['PATH']}"}
        return subprocess.Popen(
            ["sh", "-c", script], env=environment, stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    @property
    def asked(self) -> list[str]:
        """What Docker was asked to do, without the question for managers."""
        file = self.home / "asked"
        return [line for line in file.read_text().splitlines() if not line.startswith("ps ")] if file.exists() else []

    def wait_until_asked(self, words: str) -> None:
        """Waits until Docker is asked that."""
        deadline = time.monotonic() + 30
        while words not in self.asked:
            assert time.monotonic() < deadline, self.asked
            time.sleep(0.05)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    (tmp_path / "managers").write_text("m1\n")
    return Machine(tmp_path)


def status(process: subprocess.Popen[str]) -> int:
    """Its exit status, once it has ended by itself."""
    found = process.wait(60)
    assert process.stdin is not None
    process.stdin.close()
    return found


def test_managers_end_with_their_jobs_and_stay_stopped(machine: Machine) -> None:
    process = machine.start()
    machine.wait_until_asked("wait m1")
    (machine.home / "ended").touch()
    assert status(process) == 0
    assert machine.asked == ["update --restart no m1", "exec m1 sh -c kill -QUIT 1", "wait m1"]


def test_a_machine_without_managers_is_drained(machine: Machine) -> None:
    (machine.home / "managers").write_text("")
    assert status(machine.start()) == 0
    assert machine.asked == []


def test_one_that_cannot_be_told_itself_gets_the_signal_from_docker(machine: Machine) -> None:
    (machine.home / "paused").touch()
    (machine.home / "ended").touch()
    assert status(machine.start("TERM")) == 0
    assert "kill --signal TERM m1" in machine.asked


@pytest.mark.parametrize(("even_if_jobs_run", "undone"), [(False, UNDONE), (True, [])], ids=["waits", "aborts"])
def test_when_its_time_is_over_managers_that_stay_are_at_work_again(
    machine: Machine, even_if_jobs_run: bool, undone: list[str]
) -> None:
    assert status(machine.start(seconds=1, even_if_jobs_run=even_if_jobs_run)) == TIME_IS_OVER
    assert machine.asked[3:] == undone


def test_when_nobody_waits_any_more_managers_are_at_work_again(machine: Machine) -> None:
    process = machine.start()
    machine.wait_until_asked("wait m1")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) != 0
    assert machine.asked[3:] == UNDONE


def test_what_ends_the_session_does_not_end_what_undoes_it(machine: Machine) -> None:
    process = machine.start()
    machine.wait_until_asked("wait m1")
    os.killpg(process.pid, signal.SIGKILL)
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    machine.wait_until_asked("start m1")


def test_another_drain_waits_until_the_first_has_ended(machine: Machine) -> None:
    first = machine.start()
    machine.wait_until_asked("wait m1")
    second = machine.start()
    time.sleep(0.5)
    assert machine.asked.count("update --restart no m1") == 1
    (machine.home / "ended").touch()
    assert (status(first), status(second)) == (0, 0)
    assert machine.asked.count("update --restart no m1") == 2
