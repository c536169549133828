"""Machines of a stack that its state does not know: another state backend's, or those of a state that was lost."""

import re
from collections.abc import Callable

from clients import ClientError
from clients.marks import Marks
from clients.openstack import Catalogue, Server, explained
from clients.state import State

RECOVERY_PAGE = "docs/how-to/recover-a-state.md"


def machines_of(project: str, stack: str, catalogue: Catalogue) -> list[Server]:
    """The servers that carry a stack's marks and the name of one of its hosts, whatever their number."""
    return [
        server
        for server in catalogue.servers(stack)
        if re.fullmatch(rf"{re.escape(stack)}-[0-9]+", server.name) and Marks(project, stack).are_in(server.metadata)
    ]


def check_no_doubles(project: str, stack: str, catalogue: Catalogue, state: State, backend: Callable[[], str]) -> None:
    """Refuses, with a ClientError, to work beside machines of the stack that its state does not know.

    They may run jobs. One on a port that the state knows is another thing: the answer to its creation was lost, nobody
    ever used it, and the next update removes it. `backend` names where the state is. Raises StateUnknown too.
    """
    machines = {server.id: server for server in machines_of(project, stack, catalogue)}
    unknown = state.unknown(machines) if machines else set()
    strangers = [machines[id_] for id_ in machines if id_ in unknown and not _on_known_port(id_, catalogue, state)]
    if strangers:
        named = ", ".join(f"{server.name} ({server.id})" for server in strangers)
        where = backend() or "this backend"
        raise ClientError(
            f"stack {stack}: the cloud has {named} with this stack's marks, but the state in {where} does not know "
            f"{'it' if len(strangers) == 1 else 'them'}: is it another state backend, or was a state lost? Jobs may be "
            f"running there, so nothing is made beside {'it' if len(strangers) == 1 else 'them'}; {RECOVERY_PAGE} "
            "says what to do"
        )


def _on_known_port(server: str, catalogue: Catalogue, state: State) -> bool:
    with explained():
        ports = {port.id for port in catalogue.connection.network.ports(device_id=server)}
    return bool(ports - state.unknown(ports))
