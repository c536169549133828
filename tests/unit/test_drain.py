"""What the drain of a machine does when its time is over: jobs are aborted only where the operator says so."""

from contextlib import nullcontext

import pytest

from clients import ClientError
from clients.ssh import Answer, Login
from components import drain
from components.abort import ABORT_JOBS

LOGIN = {"address": "192.0.2.1", "user": "debian", "port": 22, "options": []}
OLD = LOGIN | {"server": "1", "grace": 3600, "stack": "dev"}


@pytest.mark.parametrize(
    ("switch", "signal", "refused"),
    [("", "QUIT", True), ("prod", "QUIT", True), ("dev", "TERM", False)],
    ids=["no switch", "another stack", "this stack"],
)
def test_jobs_that_outlast_the_grace_are_aborted_only_where_the_stack_is_named(
    monkeypatch: pytest.MonkeyPatch, switch: str, signal: str, refused: bool
) -> None:
    commands = []

    async def time_is_over(_host: str, _login: Login, command: str) -> Answer:
        commands.append(command)
        return Answer(124, "", "")

    monkeypatch.setattr(drain, "run", time_is_over)
    monkeypatch.setenv(ABORT_JOBS, switch)
    with pytest.raises(ClientError, match="ABORT_JOBS=dev") if refused else nullcontext():
        drain._DrainProvider().delete("1", OLD)
    assert f"--signal {signal}" in commands[0]
