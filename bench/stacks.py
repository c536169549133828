"""Stacks of any size in a sandbox, as the program and the bare one declare them, and what a command on them takes."""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

from tests.engine.harness import ROOT, Project, Sandbox

Which = Literal["program", "bare"]
FOLDERS: Mapping[Which, Path] = {"program": ROOT, "bare": ROOT / "bench" / "bare"}
# Whose property is another class for each of the two: that of a dynamic provider, pickled.
_PICKLED = "__provider"


class Wrong(Exception):
    """A result that is wrong, however long it took."""


@dataclass(frozen=True)
class Size:
    """How many runners on how many hosts; each on all of them, or each on one, in turn, where they are spread."""

    runners: int
    hosts: int = 1
    spread: bool = False

    def __str__(self) -> str:
        each = ", each on one" if self.spread else ""
        return f"{_counted(self.runners, 'runner')} on {_counted(self.hosts, 'host')}{each}"


@dataclass(frozen=True)
class Cost:
    """What a command took: wall and processor seconds of all its processes; peak memory of the largest one, in MiB.

    `calls` are API calls by API, `connections` are log-ins by SSH.
    """

    wall: float
    cpu: float
    memory: float
    calls: Counter[str]
    connections: int


class Stack:
    """A new stack of a size, which either program can bring up."""

    def __init__(self, sandbox: Sandbox, folder: Path, size: Size) -> None:
        self._sandbox = sandbox
        self.project = Project(sandbox, Path(mkdtemp(dir=folder)))
        self.project.environment["PYTHONPATH"] = str(ROOT)

        def resize(config: dict[str, Any]) -> None:
            runner = config["runners"]["app"]
            numbers = range(1, size.runners + 1)
            where = {number: {"hosts": [number % size.hosts + 1]} if size.spread else {} for number in numbers}
            config["runners"] = {f"r{number}": runner | where[number] for number in numbers}
            config["host"]["count"] = size.hosts

        self.project.configure(resize)

    def preview(self, which: Which) -> Cost:
        """Shows what would change. Raises Wrong."""
        return self._run(which, "preview")[0]

    def up(self, which: Which) -> Cost:
        """Brings the stack up. Raises Wrong."""
        return self._run(which, "up", "--yes", "--skip-preview")[0]

    def plan(self, which: Which) -> dict[str, dict[str, Any]]:
        """Inputs of all that a preview would make, by type and name; components are left out. Raises Wrong."""
        steps = json.loads(self._run(which, "preview", "--json")[1])["steps"]
        made = [step["newState"] for step in steps if step["newState"].get("custom")]
        return {
            f"{state['type']} {state['urn'].rpartition('::')[2]}": {
                key: value for key, value in state.get("inputs", {}).items() if key != _PICKLED
            }
            for state in made
        }

    def clear(self) -> None:
        """Takes all that is there away, without the time that an orderly end needs."""
        for container in self._sandbox.docker.containers.list(all=True):
            container.remove(force=True, v=True)
        for volume in self._sandbox.docker.volumes.list():
            volume.remove()
        self._sandbox.clear()

    def _run(self, which: Which, command: str, *arguments: str) -> tuple[Cost, str]:
        project, sandbox = self.project, self._sandbox
        sandbox.control("DELETE", "requests")
        sandbox.control("DELETE", "ssh")
        words = ["pulumi", f"--cwd={FOLDERS[which]}", command, f"--stack={project.stack}", *arguments]
        begun = time.monotonic()
        process = subprocess.Popen(
            [*words, f"--config-file={project.file}", "--non-interactive"],
            env=project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        output = process.stdout.read()
        # Unlike `wait`, it tells what the process and those that it waited for have used.
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise Wrong(f"`pulumi {command}` of the {which} program failed:\n{output[-4000:]}")
        calls = Counter(entry["api"] for entry in sandbox.requests())
        cost = Cost(
            wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, calls, len(sandbox.control("GET", "ssh"))
        )
        return cost, output


def in_turn(runs: int, measure: Callable[[Which], Cost]) -> list[tuple[Cost, Cost]]:
    """Measures the program and the bare one in turn, each as often first; pairs of the program's and the other's."""
    pairs = []
    for number in range(runs):
        order: tuple[Which, Which] = ("program", "bare") if number % 2 == 0 else ("bare", "program")
        measured = {which: measure(which) for which in order}
        pairs.append((measured["program"], measured["bare"]))
    return pairs


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
