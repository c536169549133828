"""The switch that aborts running jobs: an environment variable that names the stack, for one command."""

from collections.abc import Mapping

ABORT_JOBS = "ABORT_JOBS"
"""Name of the variable. It is no key of the stack file, where it would stay on."""


def aborts_jobs(stack: str | None, environment: Mapping[str, str]) -> bool:
    """Whether jobs of managers that go are to be aborted instead of waited for: the variable has the stack's name."""
    return stack is not None and environment.get(ABORT_JOBS) == stack
