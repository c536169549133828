"""What the drain of a machine does when its time is over (jobs are aborted only where the operator says so), and when
the machine is not there or cannot be reached.
"""

from contextlib import nullcontext
from types import SimpleNamespace

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

    async def time_is_over(_host: str, _login: Login, command: str, *, held: bool) -> Answer:
        assert held
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
    async def unreachable(*_arguments: object, held: bool) -> Answer:
        return Answer(SSH_FAILED, "", "no route to host")

    nova_says(monkeypatch, status)
    monkeypatch.setattr(drain, "run", unreachable)
    with pytest.raises(ClientError, match="openstack server stop 1") if refused else nullcontext():
        drain._DrainProvider().delete("1", OLD)


class Resumed:
    """In the place of an engine: what it was asked to have at work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[dict[str, str], list[str]]] = []
        monkeypatch.setattr("clients.managers.Engine.of_machine", lambda _address, _login: self)

    async def resume(self, labels: dict[str, str], containers: list[str]) -> None:
        self.calls.append((labels, containers))


def test_a_drain_made_anew_has_the_managers_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = Resumed(monkeypatch)
    drain._DrainProvider().create(OLD | {"server": "2", "managers": ["m1", "m2"]})
    assert resumed.calls == [({"gitlab-runners.server": "2"}, ["m1", "m2"])]


def test_which_managers_there_are_is_no_change() -> None:
    assert (
        not drain._DrainProvider().diff("3", OLD | {"server": "3"}, OLD | {"server": "3", "managers": ["m1"]}).changes
    )


@pytest.mark.parametrize("declared", ["create", "diff"])
def test_a_machine_that_keeps_a_drain_is_not_drained(monkeypatch: pytest.MonkeyPatch, declared: str) -> None:
    Resumed(monkeypatch)
    props = OLD | {"server": declared, "managers": []}
    if declared == "create":
        drain._DrainProvider().create(props)
    else:
        drain._DrainProvider().diff(declared, props, props)
    monkeypatch.setattr(drain._DrainProvider, "_status", lambda *_arguments: pytest.fail("asks for the machine"))
    drain._DrainProvider().delete(declared, props)


def test_a_refresh_keeps_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --refresh, `destroy` and `up` ask for a difference of what they then delete."""
    asked = []

    async def drained(_host: str, _login: Login, command: str, *, held: bool) -> Answer:
        asked.append(command)
        return Answer(0, "", "")

    nova_says(monkeypatch, "ACTIVE")
    monkeypatch.setattr(drain, "run", drained)
    props = OLD | {"server": "refreshed", "managers": []}
    provider = drain._DrainProvider()
    provider.read("refreshed", props)
    provider.diff("refreshed", props, props)
    provider.delete("refreshed", props)
    assert len(asked) == 1


def test_a_machine_that_is_replaced_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    async def drained(_host: str, _login: Login, command: str, *, held: bool) -> Answer:
        commands.append((command, held))
        return Answer(0, "", "")

    nova_says(monkeypatch, "ACTIVE")
    monkeypatch.setattr(drain, "run", drained)
    drain._DrainProvider().diff("4", OLD | {"server": "4"}, OLD | {"server": "5", "managers": []})
    drain._DrainProvider().delete("4", OLD | {"server": "4"})
    assert len(commands) == 1


@pytest.mark.parametrize(("ports", "status"), [(["port"], "ACTIVE"), ([], None)])
def test_a_machine_without_a_port_has_no_jobs_to_wait_for(
    monkeypatch: pytest.MonkeyPatch, ports: list[str], status: str | None
) -> None:
    cloud = SimpleNamespace(
        compute=SimpleNamespace(find_server=lambda id_: SimpleNamespace(id=id_, status="ACTIVE")),
        network=SimpleNamespace(ports=lambda device_id: ports if device_id == "1" else ["of another"]),
    )
    monkeypatch.setattr(drain._DrainProvider, "openstack", lambda _self, _props: nullcontext(cloud))
    assert drain._DrainProvider()._status(OLD) == status
