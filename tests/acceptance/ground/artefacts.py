"""What is made once per machine: folders in the user's cache whose names change with all that goes into them."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sandbox.packages import cache_directory
from scripts.console import Step

UNUSED_S = 86400.0  # what nothing has used for a day goes when something of its kind is made


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
    for other in wanted.parent.glob(f"{kind}-*"):
        if other == wanted or not other.is_dir():
            continue
        with _lock_file(other).open("a") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(lock.fileno()).st_mtime > UNUSED_S:
                shutil.rmtree(other)


def _lock_file(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")
