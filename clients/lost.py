"""What lies on machines that Nova does not have any more: it is gone with them, whatever the state says.

Pulumi's docker provider would ask those machines over SSH, at addresses that lead nowhere or to somebody else, when it
refreshes or deletes what was on them. `deletedWith` spares that only where the machine is deleted in the same command.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any
from urllib.parse import urlsplit

from openstack.connection import Connection
from openstack.exceptions import NotFoundException

from clients import ClientError
from clients.openstack import explained

_PROVIDER = "pulumi:providers:docker"
_SERVER = "openstack:compute/instance:Instance"
# Things with an id of their own, and how OpenStack is asked for one.
_KINDS = {
    _SERVER: "compute.get_server",
    "openstack:networking/secGroup:SecGroup": "network.get_security_group",
    "openstack:networking/port:Port": "network.get_port",
    "openstack:networking/floatingIp:FloatingIp": "network.get_ip",
    "openstack:compute/serverGroup:ServerGroup": "compute.get_server_group",
}
Resource = Mapping[str, Any]


def server_of(resource: Resource) -> str | None:
    """Id of the machine that a resource of Docker is on, or None for other resources and for engines that existed.

    `components.docker_connection` replaces them with their machine: its id begins what triggers that.
    """
    if not resource["type"].startswith(("docker:", _PROVIDER)):
        return None
    trigger = resource.get("replacementTrigger")
    return trigger.partition(" ")[0] if isinstance(trigger, str) else None


def servers(resources: Iterable[Resource]) -> set[str]:
    """Ids of the machines on which there is anything of these resources."""
    return {server for server in map(server_of, resources) if server}


def lost(cloud: Connection, resources: Collection[Resource], there: Collection[str] = ()) -> set[str]:
    """Ids of the machines of these resources that Nova does not have; it is not asked for those that are `there`.

    Raises ClientError, also where the cloud may be another one than the stack's: with the credentials of another
    project or region everything would seem to be gone.
    """
    wanted = servers(resources) | {each["id"] for each in resources if each["type"] == _SERVER and each.get("id")}
    with explained():
        gone = {server for server in wanted.difference(there) if not _has(cloud, _SERVER, server)}
        if gone and not any(_is_in(cloud, each) for each in resources if each.get("id") not in gone):
            raise ClientError(
                f"Nova has no server {', '.join(sorted(gone))}, but nothing else of the stack is in this cloud either: "
                "its credentials may lead to another project or region. Nothing is taken for gone"
            )
    return gone


def check_nothing_lost(
    stack: str, cloud: Connection, resources: Collection[Resource], there: Collection[str] = ()
) -> None:
    """Refuses, with a ClientError, to go on where a machine of the stack is gone and Pulumi would ask it all the same.

    That is so for a machine that the state takes for living, and for what was on one that is not in the state any more,
    unless its address is still one of the stack's: then the machine's successor answers, and has nothing of it. `there`
    is as in `lost`.
    """
    living = [each for each in resources if not each.get("delete")]
    # What goes with its machine is not asked for.
    going = {each["id"] for each in resources if each["type"] == _SERVER and each.get("delete")}
    addresses = str([each.get("outputs") for each in living if each["type"].startswith("openstack:networking/")])
    needed = {each["id"] for each in living if each["type"] == _SERVER and each.get("id")}
    for each in resources:
        server = server_of(each)
        if each["type"] == _PROVIDER and server and server not in going and _address(each) not in addresses:
            needed.add(server)
    if needed and (gone := lost(cloud, resources, there) & needed):
        raise ClientError(
            f"Nova has no server {', '.join(sorted(gone))} any more, which the state of {stack} still has: run "
            f"`make refresh STACK={stack}`, and then this again"
        )


def _address(provider: Resource) -> str:
    return urlsplit((provider.get("inputs") or {}).get("host") or "").hostname or ""


def _is_in(cloud: Connection, resource: Resource) -> bool:
    """Whether a resource is known to be of the project and region that are asked."""
    found = resource.get("outputs") or {}
    if found.get("tenantId") and (found["tenantId"], found.get("region") or "") == (
        cloud.current_project_id,
        cloud.config.get_region_name() or "",
    ):
        return True
    return resource["type"] in _KINDS and bool(resource.get("id")) and _has(cloud, resource["type"], resource["id"])


def _has(cloud: Connection, type_: str, id_: str) -> bool:
    service, _, call = _KINDS[type_].partition(".")
    try:
        getattr(getattr(cloud, service), call)(id_)
    except NotFoundException:
        return False
    return True


def cut_off(cloud: Connection, resources: Iterable[Resource]) -> list[str]:
    """URNs of what lies on machines that Nova has, but at an address that is not theirs any more.

    Somebody took the floating IP or the port away. Raises ClientError.
    """
    resources = list(resources)
    addresses: dict[str, set[str]] = {}
    with explained():
        for server in servers(resources):
            try:
                found = cloud.compute.get_server(server).addresses or {}
            except NotFoundException:
                continue
            addresses[server] = {each["addr"] for network in found.values() for each in network}
    lonely = set()
    for each in resources:
        server = server_of(each) or ""
        if each["type"] == _PROVIDER and server in addresses and _address(each) not in addresses[server]:
            lonely.add(f"{each['urn']}::{each['id']}")
    return sorted({each["urn"] for each in resources if each.get("provider") in lonely})


def without(deployment: Mapping[str, Any], gone: Collection[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A deployment, as `pulumi stack export` has it, without what was on these machines, and what was taken out.

    What remains refers to nothing that was taken out.
    """
    edited = deepcopy(dict(deployment))
    resources: list[dict[str, Any]] = edited.get("resources") or []
    providers = Counter(each.get("provider") for each in resources if server_of(each) not in gone)
    # A provider stays for as long as anything has it.
    removed = [
        each for each in resources if server_of(each) in gone and f"{each['urn']}::{each.get('id')}" not in providers
    ]
    edited["resources"] = kept = [each for each in resources if each not in removed]
    pending = edited.get("pending_operations") or []
    edited["pending_operations"] = [each for each in pending if server_of(each["resource"]) not in gone]
    names = {each["urn"] for each in kept}
    for each in kept:
        _forget(each, names)
    return edited, removed


def _forget(resource: dict[str, Any], known: Collection[str]) -> None:
    for key in ("dependencies", "replaceWith"):
        if key in resource:
            resource[key] = [urn for urn in resource[key] if urn in known]
    for key, urns in (resource.get("propertyDependencies") or {}).items():
        resource["propertyDependencies"][key] = [urn for urn in urns or [] if urn in known]
    if resource.get("deletedWith") not in known:
        resource.pop("deletedWith", None)
