"""What an interrupted update left behind, found and removed before its successor is created.

When the answer to a create call is lost, the thing exists but Pulumi does not know it; the next update would make a
second one. The hook below runs just before each create call. It removes only what the stack's state does not know and
what certainly nobody ever used. What may be in use and is unknown to the state, another stack's of this name for
instance, stops the update, and the preview where it may carry jobs or data.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pulumi
from openstack.connection import Connection
from openstack.exceptions import NotFoundException, raise_from_response

from clients import ClientError
from clients.doubles import check_no_doubles, is_remnant, what_to_do
from clients.gitlab import GitLab, Scope
from clients.openstack import UNFINISHED, Catalogue, explained
from clients.state import State, StateUnknown, backend
from clients.threads import in_thread

BROKEN_OFF = ["#initerror"]
"""For `replace_on_changes`: a resource whose creation broke off midway is made anew by the next update.

Providers on Terraform's SDK v2 take such a resource for complete otherwise, and it would stay without its files, tags
or start. "#initerror" is how the engine names the mark that it puts on it (pkg/resource/deploy/step_generator.go).
"""
HOST_KEY_METADATA = "gitlab-runners-host-key"
"""Key of a volume's metadata: the id of its machine's HostKey, which is in the state before the volume is made."""
_HOST_KEY = "pulumi-python:dynamic/ssh:HostKey"
_INSTANCE = "openstack:compute/instance:Instance"
_ASSOCIATION = "openstack:networking/floatingIpAssociate:FloatingIpAssociate"
_CREDENTIAL = "openstack:identity/applicationCredential:ApplicationCredential"
_SECONDS_TO_DELETE = 300
# From this version of its API on Cinder extends volumes that are in use.
_EXTENDS_IN_USE = "3.42"


class Leftovers:
    """Hooks for one stack. `catalogue`, `gitlab` and `state` are only asked when something is created."""

    def __init__(self, catalogue: Catalogue, gitlab: GitLab | None, state: State) -> None:
        self._catalogue = catalogue
        self._gitlab = gitlab
        self._state = state
        # Then the program has looked for machines that the state does not know.
        self._looked_up = catalogue.is_connected
        self._hook = pulumi.ResourceHook(
            "remove-leftovers", self._before_create, pulumi.ResourceHookOptions(on_dry_run=True)
        )
        self._before = pulumi.ResourceHook("note-credentials", self._note_credentials)
        self._broken_off = pulumi.ErrorHook("remove-broken-off", self._remove_credential)
        self._credentials: set[str] = set()
        self._growth = pulumi.ResourceHook("finish-growth", self._grow)

    def before_create(self, parent: pulumi.Resource, **options: Any) -> pulumi.ResourceOptions:
        """Resource options with the hook, and with whatever else is given.

        A replacement is made before the old one goes. (Providers delete first what has a name given, for names that
        must be unique; the names of what we declare need not be, or contain what they stand for.)
        """
        return self._options(parent, pulumi.ResourceHookBinding(before_create=[self._hook]), options)

    def of_unique(self, parent: pulumi.Resource, **options: Any) -> pulumi.ResourceOptions:
        """The same for what is one with its name or its properties, so that two of it cannot exist: the old one goes
        before it is made anew."""
        return self.before_create(parent, replace_on_changes=BROKEN_OFF, delete_before_replace=True, **options)

    def of_volume(self, parent: pulumi.Resource, **options: Any) -> pulumi.ResourceOptions:
        """The same for a volume, which may also have broken off while it grew.

        What an update asked for stands in the state although it failed, so the provider would see nothing left to do.
        """
        binding = pulumi.ResourceHookBinding(before_create=[self._hook], before_update=[self._growth])
        return self._options(parent, binding, options)

    def of_credential(self, parent: pulumi.Resource) -> pulumi.ResourceOptions:
        """Resource options for an EC2 credential, which carries no name: one whose creation broke off is found at once.

        It is what the user has in the project after the failed call and had not before. Where that is more than one,
        somebody else made one too, and all are left.
        """
        hooks = pulumi.ResourceHookBinding(before_create=[self._before], on_error=[self._broken_off])
        return self._options(parent, hooks, {"replace_on_changes": BROKEN_OFF})

    @staticmethod
    def _options(
        parent: pulumi.Resource, hooks: pulumi.ResourceHookBinding, options: dict[str, Any]
    ) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=parent, hooks=hooks, **{"delete_before_replace": False, **options})

    async def _before_create(self, args: pulumi.ResourceHookArgs) -> None:
        creation = _Creation(args.urn, args.type, dict(args.new_inputs or {}), self._state, pulumi.runtime.is_dry_run())
        if creation.preview and args.type not in _MATTERS:
            return

        def look() -> None:
            try:
                if args.type == _RUNNER:
                    if self._gitlab is not None:
                        _runner(self._gitlab, creation)
                elif self._reaches_cloud(creation):
                    with explained():
                        _LOOKS[args.type](self._catalogue.connection, creation)
            except StateUnknown as error:
                pulumi.log.warn(f"{creation.name}: {error}; what an interrupted update may have left is not removed")

        await in_thread(look)

    def _reaches_cloud(self, creation: "_Creation") -> bool:
        """Whether the cloud can be asked. A preview may need it for nothing else, and goes on without."""
        if self._looked_up or not creation.preview:
            return True
        try:
            _ = self._catalogue.connection
        except ClientError as error:
            pulumi.log.warn(f"{creation.name}: cannot tell whether there is one that the state does not know: {error}")
            return False
        if creation.type == _INSTANCE:
            check_no_doubles(pulumi.get_project(), pulumi.get_stack(), self._catalogue, self._state, backend)
        return True

    async def _note_credentials(self, _args: pulumi.ResourceHookArgs) -> None:
        def note() -> None:
            with explained():
                self._credentials = _credentials(self._catalogue.connection)

        await in_thread(note)

    async def _remove_credential(self, args: pulumi.ErrorHookArgs) -> bool:
        """Removes what a failed creation made; never asks for another attempt."""

        def remove() -> None:
            with explained():
                cloud = self._catalogue.connection
                new = _credentials(cloud) - self._credentials
                try:
                    new = self._state.unknown(new)
                except StateUnknown as error:
                    pulumi.log.warn(f"{args.name}: {error}; an EC2 credential that was perhaps made is not removed")
                    return
                if len(new) == 1:
                    _said("EC2 credential", *new)
                    raise_from_response(cloud.identity.delete(f"{_credentials_path(cloud)}/{new.pop()}"))

        if args.failed_operation == "create":
            await in_thread(remove)
        return False

    async def _grow(self, args: pulumi.ResourceHookArgs) -> None:
        size = int((args.new_inputs or {})["size"])
        if size == int((args.old_outputs or {})["size"]):

            def grow() -> None:
                with explained():
                    _finish_growth(self._catalogue.connection, str(args.id), size)

            await in_thread(grow)


@dataclass(frozen=True)
class _Creation:
    """A resource that is about to be created; in a preview some of the inputs are not known yet."""

    urn: str
    type: str
    inputs: Mapping[str, Any]
    state: State
    preview: bool

    @property
    def name(self) -> str:
        return self.urn.rpartition("::")[2]

    @property
    def stack(self) -> str:
        return self.urn.removeprefix("urn:pulumi:").partition("::")[0]

    def text(self, key: str) -> str | None:
        """An input that is text; None where it is not known yet."""
        value = self.inputs.get(key)
        return value if isinstance(value, str) else None

    def unknown(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that the state does not know."""
        found = set(ids)
        return self.state.unknown(found) if found else found

    def remove(self, kind: str, id_: str, how: Callable[..., object], *arguments: Any) -> None:
        """Removes what is certainly a remnant, by a call; a preview only says so."""
        if self.preview:
            pulumi.log.warn(f"{kind} {id_}, which an interrupted update left behind, will be removed")
        else:
            _said(kind, id_)
            how(*arguments)

    def stop(self, what: str) -> None:
        """Ends the operation for what may be in use; `what` begins with a name and ends where a clause can follow."""
        raise ClientError(
            f"{what}, but the stack's state does not know it: it may be another state backend's, or a state was lost. "
            f"Nothing is made beside it; {what_to_do(self.stack)}"
        )

    def refuse_replacement(self, what: str, type_: str) -> None:
        """Ends the operation for what cannot be replaced alone; replacing the resource of `type_` beside it does it."""
        stack, _, rest = self.urn.partition("::")
        project, _, rest = rest.partition("::")
        parents = rest.partition("::")[0].rpartition("$")[0]
        other = f"{stack}::{project}::{parents}${type_}::{self.name}"
        raise ClientError(f"{what}; use `pulumi up --replace '{other}'` instead")


def _said(kind: str, id_: str) -> None:
    pulumi.log.warn(f"removing {kind} {id_}, which an interrupted update left behind")


def _runner(gitlab: GitLab, creation: _Creation) -> None:
    if not gitlab.can_list:
        pulumi.log.debug("the GitLab token lacks read_api: cannot look for runners that an interrupted update left")
        return
    runner = creation.inputs
    scope: Scope = runner["runnerType"]
    owner = runner.get("projectId") or runner.get("groupId")
    described = gitlab.runners(scope, owner and int(owner), runner["description"])
    for id_ in sorted(creation.unknown(str(each) for each in described)):
        if described[int(id_)]:
            creation.remove("runner", id_, gitlab.delete_runner, int(id_))
        elif creation.stack in runner["description"]:
            # A description without the stack's name may be anybody's.
            creation.stop(f"runner {id_} of GitLab has the description {runner['description']} and was in use")


def _instance(cloud: Connection, creation: _Creation) -> None:
    ports = [network["port"] for network in creation.inputs["networks"] if isinstance(network["port"], str)]
    disks = [disk.get("uuid") for disk in creation.inputs.get("blockDevices") or () if disk["sourceType"] == "volume"]
    found_ports = filter(None, map(cloud.network.find_port, ports))
    volumes = filter(None, (cloud.block_storage.find_volume(disk) for disk in disks if isinstance(disk, str)))
    servers = [port.device_id for port in found_ports]
    servers += [attachment["server_id"] for volume in volumes for attachment in volume.attachments]
    for id_ in dict.fromkeys(filter(None, servers)):
        found = cloud.compute.find_server(id_)
        if found is None:
            continue
        if creation.unknown([id_]):
            if not is_remnant(cloud, id_, creation.state):
                creation.stop(f"server {id_} has a port or a volume of this stack's, and jobs may be running there")
            creation.remove("server", id_, _remove_server, cloud, found)
        elif found.status not in UNFINISHED:
            creation.refuse_replacement(
                f"server {id_} cannot be replaced alone: it has the port or the volume that the new one would get, and "
                "jobs may be running on it. Its host key takes all of the machine along, after its jobs",
                _HOST_KEY,
            )


def _remove_server(cloud: Connection, server: Any) -> None:
    cloud.compute.delete_server(server)
    cloud.compute.wait_for_delete(server, wait=_SECONDS_TO_DELETE)


def _volume(cloud: Connection, creation: _Creation) -> None:
    named = cloud.block_storage.volumes(name=creation.inputs["name"])
    volumes = {each.id: each for each in named if each.description == creation.inputs["description"]}
    for id_ in sorted(creation.unknown(volumes)):
        volume = volumes[id_]
        # The state knew the key and never the volume: no machine ever had it.
        key = (volume.metadata or {}).get(HOST_KEY_METADATA)
        if volume.attachments or key not in creation.state.ids(_HOST_KEY):
            creation.stop(f"volume {id_} has this stack's name and description, and may hold data")
        creation.remove("volume", id_, _remove_volume, cloud, volume)


def _remove_volume(cloud: Connection, volume: Any) -> None:
    # It cannot be deleted while it is being made.
    if volume.status in {"creating", "downloading"}:
        cloud.block_storage.wait_for_status(volume, "available", ["error"], wait=_SECONDS_TO_DELETE)
    cloud.block_storage.delete_volume(volume.id)
    cloud.block_storage.wait_for_delete(volume, wait=_SECONDS_TO_DELETE)


def _container(cloud: Connection, creation: _Creation) -> None:
    """To make a container that is there already would take it over: only one that is ours and empty may be."""
    name = creation.inputs["name"]
    try:
        found = cloud.object_store.get_container_metadata(name)
    except NotFoundException:
        return
    marks = {key.lower(): value for key, value in (found.metadata or {}).items()}
    if not creation.inputs["metadata"].items() <= marks.items():
        raise ClientError(f"container {name} exists already and is not this stack's; set cache.container")
    if creation.unknown([name]) and int(found.object_count or 0):
        creation.stop(f"container {name} has this stack's marks, and holds objects")


def _credentials_path(cloud: Connection) -> str:
    return f"/users/{cloud.current_user_id}/credentials/OS-EC2"


def _credentials(cloud: Connection) -> set[str]:
    """Access keys of the user's EC2 credentials in the project."""
    answer = cloud.identity.get(_credentials_path(cloud))
    raise_from_response(answer)
    found = answer.json()["credentials"]
    return {each["access"] for each in found if each["tenant_id"] == cloud.current_project_id}


def _finish_growth(cloud: Connection, id_: str, size: int) -> None:
    volume = cloud.block_storage.get_volume(id_)
    if volume.size < size:
        pulumi.log.warn(f"growing volume {id_} to {size} GiB, which an interrupted update had begun")
        body = {"os-extend": {"new_size": size}}
        raise_from_response(cloud.block_storage.post(f"/volumes/{id_}/action", json=body, microversion=_EXTENDS_IN_USE))
        cloud.block_storage.wait_for_status(
            cloud.block_storage.get_volume(id_), volume.status, ["error_extending"], wait=_SECONDS_TO_DELETE
        )


def _port(cloud: Connection, creation: _Creation) -> None:
    inputs = creation.inputs
    named = cloud.network.ports(name=inputs["name"], description=inputs["description"], network_id=inputs["networkId"])
    ports = {each.id: each for each in named}
    for id_ in sorted(creation.unknown(ports)):
        if ports[id_].device_id:
            creation.stop(f"port {id_} has this stack's name and description, and a server uses it")
        creation.remove("port", id_, cloud.network.delete_port, id_)


def _floating_ip(cloud: Connection, creation: _Creation) -> None:
    addresses = {each.id: each for each in cloud.network.ips(description=creation.inputs["description"])}
    for id_ in sorted(creation.unknown(addresses)):
        address = addresses[id_]
        if address.port_id is not None:
            creation.stop(f"floating IP {address.floating_ip_address} has this stack's description and is in use")
        creation.remove("floating IP", address.floating_ip_address, cloud.network.delete_ip, id_)


def _association(cloud: Connection, creation: _Creation) -> None:
    """The old association ends when its successor is there, and would take the address from both: they are the same."""
    address, port = creation.text("floatingIp"), creation.text("portId")
    if address is None or port is None:
        return
    for found in cloud.network.ips(floating_ip_address=address, port_id=port):
        if found.id in creation.state.ids(_ASSOCIATION):
            creation.refuse_replacement(
                f"the association of {address} cannot be replaced alone: the new one would go with the old one",
                "openstack:networking/floatingIp:FloatingIp",
            )


def _security_group(cloud: Connection, creation: _Creation) -> None:
    inputs = creation.inputs
    groups = cloud.network.security_groups(name=inputs["name"], description=inputs["description"])
    for id_ in sorted(creation.unknown(each.id for each in groups)):
        if any(True for _ in cloud.network.ports(security_groups=id_)):
            creation.stop(f"security group {id_} has this stack's name and description, and ports use it")
        creation.remove("security group", id_, cloud.network.delete_security_group, id_)


def _security_group_rule(cloud: Connection, creation: _Creation) -> None:
    # In a group that the state knows: whoever added the same rule by hand would keep the declared one from being made.
    keys = ("direction", "ethertype", "protocol", "portRangeMin", "portRangeMax", "remoteIpPrefix", "remoteGroupId")
    wanted = tuple(creation.inputs.get(key) for key in keys)
    same = [
        rule.id
        for rule in cloud.network.security_group_rules(security_group_id=creation.inputs["securityGroupId"])
        if wanted
        == (
            rule.direction,
            rule.ether_type,
            rule.protocol,
            rule.port_range_min,
            rule.port_range_max,
            rule.remote_ip_prefix,
            rule.remote_group_id,
        )
    ]
    for id_ in sorted(creation.unknown(same)):
        creation.remove("security group rule", id_, cloud.network.delete_security_group_rule, id_)


def _key_pair(cloud: Connection, creation: _Creation) -> None:
    name = creation.inputs["name"]
    there = [each.name for each in cloud.compute.keypairs() if each.name == name]
    for id_ in creation.unknown(there):
        if any(server.key_name == name for server in cloud.compute.servers()):
            creation.stop(f"key pair {name} has this stack's name, and servers use it")
        creation.remove("key pair", id_, cloud.compute.delete_keypair, id_)


def _application_credential(cloud: Connection, creation: _Creation) -> None:
    # By its type it may be of version 2, which has none.
    user, identity, name = cloud.current_user_id, cast(Any, cloud.identity), creation.text("name")
    if name is None:
        return
    named = {each.id: each for each in identity.application_credentials(user, name=name) if each.name == name}
    unknown = creation.unknown(named)
    for id_ in sorted(unknown):
        # The state knew the key and never the credential: nobody ever got its secret.
        keys = creation.state.ids(_HOST_KEY)
        if not any(str(named[id_].description).endswith(key) for key in keys):
            creation.stop(f"application credential {name} has this stack's name, and may be in use")
        creation.remove("application credential", id_, identity.delete_application_credential, user, id_)
    if set(named) - unknown:
        raise ClientError(
            f"application credential {name} cannot be replaced under its own name, which is unique: remove it with "
            f"`openstack application credential delete {name}`, then `pulumi refresh` and `pulumi up` make another one"
        )


def _server_group(cloud: Connection, creation: _Creation) -> None:
    groups = [each.id for each in cloud.compute.server_groups() if _is_empty(each, creation.inputs["name"])]
    for id_ in sorted(creation.unknown(groups)):
        creation.remove("server group", id_, cloud.compute.delete_server_group, id_)


def _is_empty(group: Any, name: str) -> bool:
    return group.name == name and not group.member_ids


_RUNNER = "gitlab:index/userRunner:UserRunner"
_LOOKS: dict[str, Callable[[Connection, _Creation], None]] = {
    "openstack:blockstorage/volume:Volume": _volume,
    _INSTANCE: _instance,
    "openstack:compute/keypair:Keypair": _key_pair,
    "openstack:compute/serverGroup:ServerGroup": _server_group,
    _CREDENTIAL: _application_credential,
    "openstack:networking/floatingIp:FloatingIp": _floating_ip,
    _ASSOCIATION: _association,
    "openstack:networking/port:Port": _port,
    "openstack:networking/secGroup:SecGroup": _security_group,
    "openstack:networking/secGroupRule:SecGroupRule": _security_group_rule,
    "openstack:objectstorage/container:Container": _container,
}
_MATTERS = {
    _RUNNER,
    _INSTANCE,
    _ASSOCIATION,
    _CREDENTIAL,
    "openstack:blockstorage/volume:Volume",
    "openstack:objectstorage/container:Container",
}
"""What may carry jobs or data, or cannot be replaced alone: previews look for it too."""
