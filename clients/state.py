"""What the state of a stack knows, as the Pulumi CLI exports it.

An export takes neither the lock nor the passphrase, and during an update it shows what has been made so far.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Self

from clients import ClientError
from clients.text import one_line

# The folder of Pulumi.yaml, by which the CLI finds the project.
_PROJECT = Path(__file__).parents[1]
_EXPORT_SECONDS = 120
# Exit status of the CLI from 3.226.1 on (Pulumi docs, "Pulumi CLI exit codes"); older ones end with another.
_NO_SUCH_STACK = 6
Export = Callable[[], str]


class StateUnknown(ClientError):
    """The state of the stack cannot be read."""


class NoSuchStack(StateUnknown):
    """The backend has no such stack."""


class State:
    """The state of one stack. Everything but the constructor raises StateUnknown where the state cannot be read."""

    def __init__(self, export: Export) -> None:
        """`export` returns what `pulumi stack export` prints, and raises StateUnknown."""
        self._export = export
        self._newest: frozenset[str] | None = None
        self._reading = Lock()
        self._first: Future[list[Mapping[str, Any]]] | None = None

    def begin(self) -> Self:
        """Begins to read, in a thread: an export takes as long as the look-ups in a cloud."""
        self._first = self._first or ThreadPoolExecutor(thread_name_prefix="state").submit(self._read)
        return self

    @property
    def resources(self) -> list[Mapping[str, Any]]:
        """The resources as they were at first: those that wait for their deletion, and those of operations that broke
        off, included. Secrets are encrypted."""
        first = self.begin()._first
        assert first is not None
        return first.result()

    def ids(self, type_: str) -> frozenset[str]:
        """Ids of the resources of a type, as in `resources`."""
        return frozenset(each["id"] for each in self.resources if each["type"] == type_ and each.get("id"))

    def unknown(self, ids: Collection[str]) -> set[str]:
        """Those of the ids that no resource has, whatever its type; what was made a moment ago is known."""
        with self._reading:
            known = self._newest if self._newest is not None else _ids(self.resources)
            if set(ids) - known:
                known = _ids(self._read())
            self._newest = known
            return set(ids) - known

    def is_settled(self) -> bool:
        """Whether, at this moment, no update is under way, and none broke off with operations of unknown outcome."""
        return not self._read_both()[1]

    def _read(self) -> list[Mapping[str, Any]]:
        resources, pending = self._read_both()
        return resources + pending

    def _read_both(self) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """The resources, and those of operations that have not ended."""
        try:
            deployment = json.loads(self._export())["deployment"] or {}
            pending = [each["resource"] for each in deployment.get("pending_operations") or []]
            return list(deployment.get("resources") or []), pending
        except (ValueError, KeyError, TypeError) as error:
            raise StateUnknown(
                f"the stack's state cannot be read: `pulumi stack export` printed no state ({error})"
            ) from error


def exported(stack: str) -> Export:
    """An export of the stack with this name, by the Pulumi CLI on PATH, from the backend of the environment.

    `stack` is the fully qualified name (organization/project/stack), which every backend takes.
    """

    def export() -> str:
        if (pulumi := shutil.which("pulumi")) is None:
            raise StateUnknown("the stack's state cannot be read: there is no pulumi on PATH")
        command = [pulumi, "stack", "export", f"--stack={stack}", "--non-interactive"]
        try:
            done = subprocess.run(
                command, cwd=_PROJECT, capture_output=True, text=True, check=False, timeout=_EXPORT_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StateUnknown(f"the stack's state cannot be read: {error}") from error
        if done.returncode == _NO_SUCH_STACK:
            raise NoSuchStack(" ".join(done.stderr.split()))
        if done.returncode:
            raise StateUnknown(f"the stack's state cannot be read: {one_line(done.stderr)}")
        return done.stdout

    return export


def backend() -> str:
    """URL of the backend in which `exported` finds the state; empty where the CLI does not tell."""
    if (pulumi := shutil.which("pulumi")) is None:
        return ""
    done = subprocess.run([pulumi, "whoami", "--json"], cwd=_PROJECT, capture_output=True, text=True, check=False)
    try:
        return str(json.loads(done.stdout)["url"])
    except (ValueError, KeyError, TypeError):
        return ""


def _ids(resources: list[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(each["id"] for each in resources if each.get("id"))
