"""What the program takes for a remnant of an interrupted update on a Docker Engine, and what for another's."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest

from clients import ClientError, remnants
from clients.managers import Container
from clients.remnants import Place, find, remove
from clients.state import State, StateUnknown

ALIVE = ("running", "paused", "restarting")
NOT_ALIVE = ("created", "exited", "dead")


@dataclass
class Engine:
    """An engine whose managers end when their jobs have: at the third look after SIGQUIT, or never."""

    there: list[Container] = field(default_factory=list)
    labelled: set[str] = field(default_factory=set)
    jobs_end: bool = True
    heard: list[str] = field(default_factory=list)

    async def containers(self, _stack: str, _server: str) -> list[Container]:
        if self.jobs_end and sum(line == "look" for line in self.heard) == 2:
            self.there = [replace(each, state="exited") for each in self.there]
        if any(line.startswith("quit") for line in self.heard):
            self.heard.append("look")
        return self.there

    async def volumes(self, _stack: str, _server: str, *, unused: bool) -> set[str]:
        used = {name for each in self.there for name in each.volumes}
        return self.labelled - used if unused else self.labelled

    async def quit(self, container: str) -> None:
        self.heard.append(f"quit {container}")

    async def remove(self, container: str, *, kill: bool = False) -> None:
        self.heard.append(f"{'kill' if kill else 'remove'} {container}")
        self.there = [each for each in self.there if each.id != container]

    async def remove_volume(self, name: str) -> None:
        self.heard.append(f"remove volume {name}")

    def __str__(self) -> str:
        return "Docker at unix:///docker.sock"


def container(id_: str, state: str, *volumes: str, manager: bool = False) -> Container:
    volume = volumes[0] if manager else ""
    return Container(id_, state, runner="app", volume=volume, name=f"dev-1-{id_}", volumes=frozenset(volumes))


def cleared(engine: Engine, known: Iterable[str], grace: int = 60) -> list[str]:
    """What an update does on the engine, when its state has these ids."""
    state = State(lambda: json.dumps({"deployment": {"resources": [{"id": id_} for id_ in known]}}))
    place = Place("dev", "", engine)  # type: ignore[arg-type]

    async def clear() -> None:
        found = await find(place, state, lambda: "file:///states")
        await remove(place, found, grace, lambda _line: None)

    asyncio.run(clear())
    return engine.heard


@pytest.fixture(autouse=True)
def _without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remnants, "_POLL_SECONDS", 0)


@pytest.mark.parametrize("state", [*ALIVE, *NOT_ALIVE, "removing"])
def test_what_the_state_knows_stays_as_it_is(state: str) -> None:
    assert cleared(Engine([container("1", state, "v", manager=True)], {"v"}), ["1", "v"]) == []


@pytest.mark.parametrize("state", NOT_ALIVE)
@pytest.mark.parametrize("volumes", [["v"], []], ids=["on a volume of the stack's", "without a volume"])
def test_what_never_started_or_has_ended_is_removed(state: str, volumes: list[str]) -> None:
    assert cleared(Engine([container("1", state, *volumes)], {"v"}), ["v"]) == ["remove 1"]


@pytest.mark.parametrize("state", ALIVE)
def test_a_manager_on_a_volume_of_the_stacks_is_removed_when_its_jobs_have_ended(state: str) -> None:
    heard = cleared(Engine([container("1", state, "v", manager=True)], {"v"}), ["v"])
    assert [heard[0], heard[-1]] == ["quit 1", "remove 1"]
    assert heard.count("look") == 3


def test_jobs_that_outlast_the_grace_fail_the_update_in_one_line() -> None:
    engine = Engine([container("1", "running", "v", manager=True)], {"v"}, jobs_end=False)
    with pytest.raises(ClientError, match="jobs of dev-1-1 still run after -1 s"):
        cleared(engine, ["v"], grace=-1)
    assert "remove 1" not in engine.heard


def test_what_has_no_jobs_is_not_waited_for() -> None:
    assert cleared(Engine([container("cache", "running", "v")], {"v"}), ["v"]) == ["kill cache"]


def test_a_volume_that_no_container_uses_is_removed() -> None:
    there = [container("1", "running", "known", "used")]
    heard = cleared(Engine(there, {"known", "used", "unused"}), ["1", "known"])
    assert heard == ["remove volume unused"]


OTHERS = {
    **{f"a manager that is {state}": [container("1", state, "theirs", manager=True)] for state in ALIVE},
    "what runs without a volume": [container("1", "running")],
    "a stack whose managers are stopped": [container("1", "exited", "theirs"), container("2", "created", "theirs")],
}


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS.keys())
def test_beside_anothers_nothing_is_done(others: list[Container]) -> None:
    engine = Engine([*others, container("remnant", "created", "ours")], {"theirs", "ours", "unused"})
    with pytest.raises(ClientError) as stopped:
        cleared(engine, ["ours"])
    assert engine.heard == []
    line = str(stopped.value)
    assert line.startswith(f"Docker at unix:///docker.sock has dev-1-1 ({others[0].state})")
    assert "stack dev" in line
    assert "file:///states" in line
    assert "recover-a-state.md" in line
    assert "\n" not in line


def test_not_all_of_anothers_are_named() -> None:
    others = [container(str(number), "running") for number in range(1, 6)]
    with pytest.raises(ClientError, match=r"dev-1-3 \(running\), 2 more with"):
        cleared(Engine(others), [])


def unreadable() -> str:
    raise StateUnknown("no pulumi on PATH")


def test_where_the_state_cannot_be_read_nothing_is_told_of_what_is_there() -> None:
    engine = Engine([container("1", "exited")])
    with pytest.raises(StateUnknown):
        asyncio.run(find(Place("dev", "", engine), State(unreadable), lambda: ""))  # type: ignore[arg-type]


def test_where_nothing_is_the_state_need_not_be_read() -> None:
    found = asyncio.run(find(Place("dev", "", Engine()), State(unreadable), lambda: ""))  # type: ignore[arg-type]
    assert found == remnants.Remnants([], [], set())
