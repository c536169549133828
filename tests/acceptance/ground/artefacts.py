"""What is made once per machine: folders in the user's cache whose names change with all that goes into them."""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sandbox.packages import cache_directory
from scripts.console import Step

KEPT = 2  # of each kind: the one that is made, and the one that was used last before it


def digest(*ingredients: object) -> str:
    """A short name for these values; a path stands for the file's content."""
    total = hashlib.sha256()
    for ingredient in ingredients:
        content = ingredient.read_bytes() if isinstance(ingredient, Path) else repr(ingredient).encode()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()[:12]


@contextlib.contextmanager
def artefact(kind: str, version: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """The folder of this kind and version; ``make`` fills it when the cache has none.

    It is not removed as long as the context lasts, whoever makes another of its kind.
    """
    directory = cache_directory() / "ground" / f"{kind}-{version}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(directory).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not directory.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.is_dir():  # another process may have been faster
                _make(kind, directory, make)
            fcntl.flock(lock, fcntl.LOCK_SH)  # lets go for a moment, hence the loop
        os.utime(lock.fileno())
        yield directory


def _make(kind: str, directory: Path, make: Callable[[Path], None]) -> None:
    step = Step(kind)
    step.doing("making it, once for this machine")
    _remove_unused(kind, directory)
    draft = directory.with_name(f".draft-{directory.name}")
    if draft.exists():  # of a process that was killed: it had the lock that is ours now
        shutil.rmtree(draft)
    draft.mkdir()
    try:
        make(draft)
        draft.rename(directory)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    step.done("made")


def _remove_unused(kind: str, wanted: Path) -> None:
    """Removes all but the newest of this kind, and drafts whose makers were killed; not what somebody uses."""
    others = [other for other in wanted.parent.glob(f"{kind}-*") if other.is_dir() and other != wanted]
    others.sort(key=_last_used, reverse=True)
    for other in others[KEPT - 1 :]:
        _remove_unless_used(other, _lock_file(other))
    for draft in wanted.parent.glob(f".draft-{kind}-*"):
        if (other := draft.with_name(draft.name.removeprefix(".draft-"))) != wanted:
            _remove_unless_used(draft, _lock_file(other))


def _last_used(directory: Path) -> float:
    lock = _lock_file(directory)
    return lock.stat().st_mtime if lock.exists() else 0.0


def _remove_unless_used(directory: Path, lock_file: Path) -> None:
    with lock_file.open("a") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)


def _lock_file(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")
