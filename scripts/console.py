"""What a person at the terminal sees: a line per step with its time, and one line for what failed."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Failure(Exception):
    """One line: what failed and what to do about it."""


class Step:
    """A step that says what it does while it lasts, and its result and seconds once."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._begun = time.monotonic()

    def doing(self, what: str) -> None:
        """Says what takes long."""
        print(f"{self._title}: {what} ...", flush=True)

    def done(self, result: str) -> None:
        """Says how the step ended."""
        print(f"{self._title}: {result} ({time.monotonic() - self._begun:.1f} s)", flush=True)


@contextmanager
def failures_in_one_line() -> Iterator[None]:
    """Ends the process with status 1 and one line for a Failure; 130 for an interruption by the keyboard."""
    try:
        yield
    except Failure as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)


def last_line(text: str) -> str:
    """The last line that says something; what programs print there is mostly why they gave up."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")
