"""What the drain of a machine does when its time is over (jobs are aborted only where the operator says so), and when
the machine is not there or cannot be reached.
"""

from contextlib import nullcontext

import pytest

from clients import ClientError
from clients.ssh import SSH_FAILED, Answer, Login
from components import drain
from components.abort import ABORT_JOBS

LOGIN = {"address": "192.0.2.1", "user": "debian", "port": 22, "options": []}
OLD = LOGIN | {"server": "1", "grace": 3600, "stack": "dev"}


def nova_says(monkeypatch: pytest.MonkeyPatch, status: str | None) -> None:
    monkeypatch.setattr(drain._DrainProvider, "_status", lambda _self, _props: status)


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

    nova_says(monkeypatch, "ACTIVE")
    monkeypatch.setattr(drain, "run", time_is_over)
    monkeypatch.setenv(ABORT_JOBS, switch)
    with pytest.raises(ClientError, match="ABORT_JOBS=dev") if refused else nullcontext():
        drain._DrainProvider().delete("1", OLD)
    assert f"--signal {signal}" in commands[0]


@pytest.mark.parametrize("status", [None, "SHUTOFF"])
def test_a_machine_that_is_gone_or_off_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, status: str | None) -> None:
    nova_says(monkeypatch, status)
    monkeypatch.setattr(drain, "run", lambda *_arguments: pytest.fail("SSH to a machine that cannot answer"))
    drain._DrainProvider().delete("1", OLD)


@pytest.mark.parametrize(("status", "refused"), [("ACTIVE", True), ("PAUSED", False)])
def test_only_a_machine_that_runs_has_to_be_reached(
    monkeypatch: pytest.MonkeyPatch, status: str, refused: bool
) -> None:
    async def unreachable(*_arguments: object) -> Answer:
        return Answer(SSH_FAILED, "", "no route to host")

    nova_says(monkeypatch, status)
    monkeypatch.setattr(drain, "run", unreachable)
    with pytest.raises(ClientError, match="openstack server stop 1") if refused else nullcontext():
        drain._DrainProvider().delete("1", OLD)
