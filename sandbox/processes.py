"""Pid files that survive the reuse of a pid: a process is known by its number *and* its start time."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Process:
    """A process of this machine. ``start`` is in clock ticks since boot (proc(5), field 22 of /proc/PID/stat)."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has this pid now. Raises ProcessLookupError when there is none (or only a zombie)."""
        start = _start_time(pid)
        if start is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, start)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The process a pid file names, or None: no file, or a file that was cut short."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Writes the pid file, whole or not at all."""
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self)) + "\n")
        draft.replace(path)

    @property
    def alive(self) -> bool:
        """Whether it still runs: the same pid with the same start time, and not a zombie."""
        return _start_time(self.pid) == self.start


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses and may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
