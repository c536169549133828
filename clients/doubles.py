"""Machines of a stack that its state does not know: another state backend's, or those of a state that was lost."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from openstack.connection import Connection

from clients import ClientError
from clients.marks import Marks
from clients.openstack import Catalogue, Server, explained
from clients.state import State

# components.docker_connection
_CONNECTION = "gitlab-runners:docker:Connection"
RECOVERY_PAGE = "docs/how-to/recover-a-state.md"


def what_to_do(stack: str) -> str:
    """A clause for what the state of a stack does not know in its clouds."""
    return f"`make orphans STACK={stack}` lists what the state does not know, and {RECOVERY_PAGE} says what to do"


def machines_of(project: str, stack: str, catalogue: Catalogue) -> list[Server]:
    """The servers that carry a stack's marks and the name of one of its hosts, whatever their number."""
    return [
        server
        for server in catalogue.servers(stack)
        if re.fullmatch(rf"{re.escape(stack)}-[0-9]+", server.name) and Marks(project, stack).are_in(server.metadata)
    ]


def check_no_doubles(project: str, stack: str, catalogue: Catalogue, state: State, backend: Callable[[], str]) -> None:
    """Refuses, with a ClientError, to work beside machines of the stack that its state does not know.

    They may run jobs; a remnant is no such machine. `backend` names where the state is. Raises StateUnknown too.
    """
    machines = {server.id: server for server in machines_of(project, stack, catalogue)}
    unknown = state.unknown(machines) if machines else set()
    with explained():
        strangers = [
            machines[id_] for id_ in machines if id_ in unknown and not is_remnant(catalogue.connection, id_, state)
        ]
    if strangers:
        named = ", ".join(f"{server.name} ({server.id})" for server in strangers)
        where = backend() or "this backend"
        raise ClientError(
            f"stack {stack}: the cloud has {named} with this stack's marks, but the state in {where} does not know "
            f"{'it' if len(strangers) == 1 else 'them'}: is it another state backend, or was a state lost? Jobs may be "
            f"running there, so nothing is made beside {'it' if len(strangers) == 1 else 'them'}; "
            f"{what_to_do(stack)}"
        )


def is_remnant(cloud: Connection, server: str, state: State) -> bool:
    """Whether a server that the state does not know was never used, since the answer to its creation was lost.

    It is on a port that the state knows, and no connection in the state leads to an address of it: what is declared on
    a machine has one, which stays when the server alone is taken out of the state. Raises StateUnknown.
    """
    ports = {port.id for port in cloud.network.ports(device_id=server)}
    if not ports - state.unknown(ports):
        return False
    networks = cloud.compute.get_server(server).addresses or {}
    addresses = {each["addr"] for network in networks.values() for each in network}
    urls = ((each.get("outputs") or {}).get("url") for each in state.resources if each["type"] == _CONNECTION)
    return addresses.isdisjoint(urlsplit(url).hostname for url in urls if isinstance(url, str))
