"""What an interrupted update left on a Docker Engine, which the stack's state does not know.

A container that never started or has ended is removed, and so is a volume that no container uses. A manager that runs
on a volume of the stack's may have jobs: it is removed when they have ended. All else that carries the stack's labels
is another's: a stack of this name in another backend, or this one before its state was lost. It is left alone, and
nothing is done beside it.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from clients import ClientError
from clients.doubles import RECOVERY_PAGE
from clients.managers import Container, Engine
from clients.state import State
from clients.threads import in_thread

_POLL_SECONDS = 1
_NAMED = 3
"""So many of another's containers are named."""
_NEVER_STARTED_OR_ENDED = ("created", "exited", "dead")


@dataclass(frozen=True)
class Place:
    """Where a stack has something: its name, the machine's id (empty for an engine that exists) and the engine."""

    stack: str
    server: str
    engine: Engine


@dataclass(frozen=True)
class Remnants:
    """What is to be removed: `ended` containers at once, `running` ones when their jobs have ended, then `volumes`."""

    ended: list[Container]
    running: list[Container]
    volumes: set[str]


async def find(place: Place, state: State, backend: Callable[[], str]) -> Remnants:
    """The remnants in a place; `backend` names where the state is. Where nothing is, the state is not asked.

    Raises ClientError for what is another's, and StateUnknown.
    """
    containers, volumes = await asyncio.gather(
        place.engine.containers(place.stack, place.server),
        place.engine.volumes(place.stack, place.server, unused=False),
    )

    async def unknown(ids: set[str]) -> set[str]:
        return await in_thread(state.unknown, ids) if ids else set()

    strange = await unknown({each.id for each in containers} | volumes)
    candidates = [each for each in containers if each.id in strange]
    strange |= await unknown({name for each in candidates for name in each.volumes})
    ended: list[Container] = []
    running: list[Container] = []
    others: list[Container] = []
    for container in candidates:
        is_ours = bool(container.volumes - strange)
        if container.may_have_jobs:
            (running if is_ours else others).append(container)
        elif container.state in _NEVER_STARTED_OR_ENDED:
            uses_others = not is_ours and not container.volumes.isdisjoint(volumes)
            (others if uses_others else ended).append(container)
    if others:
        raise ClientError(_of_another(place, others, await in_thread(backend)))
    return Remnants(ended, running, volumes & strange)


async def remove(place: Place, remnants: Remnants, grace: int, report: Callable[[str], None]) -> None:
    """Removes the remnants. `report` gets a line for what is removed, and for what is waited for.

    Raises ClientError when jobs still run after `grace` seconds.
    """
    engine = place.engine
    for container in remnants.ended:
        await engine.remove(container.id)
        report(f"removed container {container.name}")
    managers = [each for each in remnants.running if each.volume]
    for container in remnants.running:
        if container in managers:
            report(f"letting the jobs of container {container.name} end")
            await engine.quit(container.id)
        else:
            # The registry's cache, which jobs can do without.
            await engine.remove(container.id, kill=True)
            report(f"removed container {container.name}")
    end = time.monotonic() + grace
    while managers:
        alive = {each.id for each in await engine.containers(place.stack, place.server) if each.may_have_jobs}
        for container in [each for each in managers if each.id not in alive]:
            await engine.remove(container.id)
            report(f"removed container {container.name}")
            managers.remove(container)
        if managers:
            if time.monotonic() > end:
                names = ", ".join(each.name for each in managers)
                raise ClientError(f"{engine}: jobs of {names} still run after {grace} s; repeat this later")
            await asyncio.sleep(_POLL_SECONDS)
    if remnants.volumes:
        unused = await engine.volumes(place.stack, place.server, unused=True)
        for name in sorted(remnants.volumes & unused):
            await engine.remove_volume(name)
            report(f"removed volume {name}")


def _of_another(place: Place, containers: list[Container], backend: str) -> str:
    named = [f"{each.name} ({each.state})" for each in containers[:_NAMED]]
    more = [f"{len(containers) - _NAMED} more"] if len(containers) > _NAMED else []
    return (
        f"{place.engine} has {', '.join([*named, *more])} with the labels of stack {place.stack}, but the state in "
        f"{backend or 'this backend'} does not know them: is it another state backend, or was a state lost? Jobs may "
        f"be running there, so nothing is made beside them; {RECOVERY_PAGE} says what to do"
    )
