"""What carries a stack's marks in OpenStack, in GitLab and on an existing Docker Engine, whoever made it.

What of it the stack's state does not know is another state backend's, or that of a state that was lost. It is removed
by the operator's word alone, and not before its jobs have ended.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from openstack.connection import Connection
from openstack.exceptions import NotFoundException

from clients.gitlab import GitLab
from clients.managers import Engine
from clients.marks import Marks
from clients.openstack import explained
from renderers.autoscaler import GROUP_KEY
from settings import Settings

SERVER = "server"
CONTAINER = "container"
_SECONDS_TO_DELETE = 300
# Status of servers on which no manager runs, not yet or not any more (Compute API, "Server status").
_WITHOUT_JOBS = frozenset({"BUILD", "SHUTOFF", "SHELVED", "SHELVED_OFFLOADED", "SOFT_DELETED"})


@dataclass(frozen=True)
class Marked:
    """Something with a stack's marks. `use` says in a few words whether it may be in use.

    `known_as` is the id by which a state knows it: that of a worker's group, else its own.
    """

    kind: str
    name: str
    id: str
    use: str
    known_as: str
    may_have_jobs: bool = False
    is_worker: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.name == self.id else f"{self.kind} {self.name} ({self.id})"


@dataclass(frozen=True)
class InCloud(Marked):
    """The same in OpenStack; `remove` removes it, or returns what uses it, if somebody does. Raises ClientError."""

    how: Callable[[], str | None] = field(kw_only=True)

    def remove(self) -> str | None:
        """Waits until it is gone."""
        with explained():
            return self.how()


@dataclass(frozen=True)
class Registration:
    """A runner in GitLab with the description that the stack gives; `is_marked` says whether that names the stack."""

    id: int
    description: str
    contacted: bool
    is_marked: bool

    def __str__(self) -> str:
        return f"runner {self.description} ({self.id})"


def in_openstack(cloud: Connection, marks: Marks, containers: Collection[str]) -> list[InCloud]:
    """What carries the marks, in the order in which it can be removed. Raises ClientError.

    `containers` are the names that those of the object store may have.
    """
    with explained():
        found = [*_servers(cloud, marks), *_addresses_and_ports(cloud, marks)]
        if cloud.endpoint_for("block-storage") is not None:
            found += _volumes(cloud, marks)
        found += _groups_and_credentials(cloud, marks)
        if cloud.endpoint_for("object-store") is not None:
            found += _containers(cloud, marks, containers)
        return found


def unused_by_name(cloud: Connection, marks: Marks, runners: Collection[str]) -> list[Marked]:
    """What no mark tells from others' and only its name makes the stack's: unused key pairs and server groups.

    Raises ClientError.
    """
    with explained():
        used = {server.key_name for server in cloud.compute.servers()}
        pairs = [
            each.name
            for each in cloud.compute.keypairs()
            if marks.may_name_key_pair(each.name, runners) and each.name not in used
        ]
        groups = [each for each in cloud.compute.server_groups() if each.name == marks.stack and not each.member_ids]
    return [
        *(Marked("key pair", name, name, "unused", name) for name in pairs),
        *(Marked("server group", each.name, each.id, "empty", each.id) for each in groups),
    ]


def in_gitlab(gitlab: GitLab, stack: str, settings: Settings, *, shared: bool) -> dict[str, list[Registration]]:
    """The runners that have a stack's descriptions, by their names there; one with a given token has none.

    `shared` is as in Runner.registered_as. Raises ClientError.
    """
    found = {}
    for name, runner in settings.runners.items():
        if runner.scope is not None:
            described = runner.registered_as(stack, name, shared=shared)
            ids = gitlab.runners(runner.scope, runner.project or runner.group, described)
            marked = runner.is_marked(shared=shared)
            found[name] = [Registration(id_, described, not never, marked) for id_, never in ids.items()]
    return found


async def on_engine(engine: Engine, stack: str) -> list[Marked]:
    """A stack's containers and volumes on an engine that exists, in the order in which they can be removed.

    Raises ClientError.
    """
    found = []
    for each in await engine.containers(stack, ""):
        use = f"manager of {each.runner}, {each.state}" if each.volume else f"{each.state}, no manager"
        found.append(Marked(CONTAINER, each.name, each.id, use, each.id, bool(each.volume) and each.may_have_jobs))
    used = await engine.volumes(stack, "", unused=False) - await engine.volumes(stack, "", unused=True)
    for name in sorted(await engine.volumes(stack, "", unused=False)):
        found.append(Marked("volume", name, name, "a container uses it" if name in used else "unused", name))
    return found


def _servers(cloud: Connection, marks: Marks) -> Iterator[InCloud]:
    # Workers go last: their managers, on the other servers, would make new ones.
    servers = [each for each in cloud.compute.servers() if marks.are_in(each.metadata)]
    for server in sorted(servers, key=lambda each: GROUP_KEY in each.metadata):
        group = server.metadata.get(GROUP_KEY)
        busy = server.status not in _WITHOUT_JOBS
        use = f"{server.status}, jobs may be running there" if busy else str(server.status)
        how = partial(_remove_server, cloud, server)
        yield InCloud(SERVER, server.name, server.id, use, group or server.id, busy, group is not None, how=how)


def _addresses_and_ports(cloud: Connection, marks: Marks) -> Iterator[InCloud]:
    # An administrator's lists have other projects' too.
    own, network = cloud.current_project_id, cloud.network
    for address in network.ips(project_id=own):
        if marks.describe(address.description):
            use = f"of port {address.port_id}" if address.port_id else "unused"
            how = partial(_remove_address, cloud, address.id)
            yield InCloud("floating IP", address.floating_ip_address, address.id, use, address.id, how=how)
    for port in network.ports(project_id=own):
        if marks.describe(port.description):
            use = f"of server {port.device_id}" if port.device_id else "unused"
            yield InCloud("port", port.name, port.id, use, port.id, how=partial(_remove_port, cloud, port.id))


def _volumes(cloud: Connection, marks: Marks) -> Iterator[InCloud]:
    for volume in cloud.block_storage.volumes():
        if marks.are_in(volume.metadata):
            servers = ", ".join(each["server_id"] for each in volume.attachments)
            use = f"of server {servers}" if servers else f"{volume.status}, may hold data"
            how = partial(_remove_volume, cloud, volume.id)
            yield InCloud("volume", volume.name, volume.id, use, volume.id, how=how)


def _groups_and_credentials(cloud: Connection, marks: Marks) -> Iterator[InCloud]:
    for group in cloud.network.security_groups(project_id=cloud.current_project_id):
        if marks.describe(group.description):
            use = "ports use it" if _ports_of(cloud, group.id) else "unused"
            how = partial(_remove_group, cloud, group.id)
            yield InCloud("security group", group.name, group.id, use, group.id, how=how)
    # By its type it may be of version 2, which has none.
    for credential in cast(Any, cloud.identity).application_credentials(cloud.current_user_id):
        if marks.describe(credential.description):
            use, drop = "managers may use it to make workers", partial(_remove_credential, cloud, credential.id)
            yield InCloud("application credential", credential.name, credential.id, use, credential.id, how=drop)


def _containers(cloud: Connection, marks: Marks, names: Collection[str]) -> Iterator[InCloud]:
    for name in sorted(names):
        try:
            found = cloud.object_store.get_container_metadata(name)
        except NotFoundException:
            continue
        if marks.are_in(found.metadata):
            use = f"holds {found.object_count} objects of the jobs' cache"
            yield InCloud("object store container", name, name, use, name, how=partial(_remove_container, cloud, name))


def _remove_server(cloud: Connection, server: Any) -> None:
    cloud.compute.delete_server(server)
    cloud.compute.wait_for_delete(server, wait=_SECONDS_TO_DELETE)


def _remove_address(cloud: Connection, id_: str) -> str | None:
    address = cloud.network.get_ip(id_)
    port = cloud.network.find_port(address.port_id) if address.port_id else None
    if port is not None and port.device_id:
        return f"server {port.device_id} uses it"
    cloud.network.delete_ip(id_)
    return None


def _remove_port(cloud: Connection, id_: str) -> str | None:
    port = cloud.network.get_port(id_)
    if port.device_id:
        return f"server {port.device_id} uses it"
    cloud.network.delete_port(id_)
    return None


def _remove_volume(cloud: Connection, id_: str) -> str | None:
    volume = cloud.block_storage.get_volume(id_)
    for attachment in volume.attachments:
        if cloud.compute.find_server(attachment["server_id"]) is not None:
            return f"server {attachment['server_id']} uses it"
    if volume.status in {"in-use", "detaching", "creating", "downloading"}:
        cloud.block_storage.wait_for_status(volume, "available", ["error"], wait=_SECONDS_TO_DELETE)
    cloud.block_storage.delete_volume(id_)
    cloud.block_storage.wait_for_delete(volume, wait=_SECONDS_TO_DELETE)
    return None


def _remove_group(cloud: Connection, id_: str) -> str | None:
    if _ports_of(cloud, id_):
        return "ports use it"
    cloud.network.delete_security_group(id_)
    return None


def _remove_credential(cloud: Connection, id_: str) -> None:
    cast(Any, cloud.identity).delete_application_credential(cloud.current_user_id, id_)


def _ports_of(cloud: Connection, group: str) -> bool:
    return any(True for _ in cloud.network.ports(security_groups=group))


def _remove_container(cloud: Connection, name: str) -> None:
    for found in cloud.object_store.objects(name):
        cloud.object_store.delete_object(found, container=name)
    cloud.object_store.delete_container(name)
