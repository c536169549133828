"""What an interrupted update left behind, found and removed before its successor is created.

When the answer to a create call is lost, the thing exists but Pulumi does not know it; the next update would make a
second one. Each hook below runs just before a create call and removes what can only be such a remnant: it carries this
stack's name and description, and nothing uses it.
"""

from collections.abc import Callable
from typing import Any, cast

import pulumi
from openstack.connection import Connection
from openstack.exceptions import NotFoundException, raise_from_response

from clients import ClientError
from clients.gitlab import GitLab, Scope
from clients.openstack import Catalogue, explained
from clients.threads import in_thread

BROKEN_OFF = ["#initerror"]
"""For `replace_on_changes`: a resource whose creation broke off midway is made anew by the next update.

Providers on Terraform's SDK v2 take such a resource for complete otherwise, and it would stay without its files, tags
or start. "#initerror" is how the engine names the mark that it puts on it (pkg/resource/deploy/step_generator.go).
"""
_SECONDS_TO_DELETE = 300
# From this version of its API on Cinder extends volumes that are in use.
_EXTENDS_IN_USE = "3.42"


class Leftovers:
    """Hooks for one stack. `catalogue` and `gitlab` are only used when something is created."""

    def __init__(self, catalogue: Catalogue, gitlab: GitLab | None) -> None:
        self._catalogue = catalogue
        self._gitlab = gitlab
        self._hook = pulumi.ResourceHook("remove-leftovers", self._remove)
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

    def of_key_pair(self, parent: pulumi.Resource, *, unfinished: bool) -> pulumi.ResourceOptions:
        """The same for a key pair, whose id is its name: one that broke off has to go before it is made anew.

        What uses it would go with it, and so that is only done where `unfinished` says that no machine runs. Where one
        does, the provider refuses to go on until `pulumi refresh` has looked at the key pair.
        """
        mended = {"replace_on_changes": BROKEN_OFF, "delete_before_replace": True} if unfinished else {}
        return self.before_create(parent, **mended)

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

    async def _remove(self, args: pulumi.ResourceHookArgs) -> None:
        if args.type == "gitlab:index/userRunner:UserRunner":
            await in_thread(self._remove_runner, dict(args.new_inputs or {}))
            return
        remover = _REMOVERS[args.type]

        def remove() -> None:
            with explained():
                remover(self._catalogue.connection, dict(args.new_inputs or {}))

        await in_thread(remove)

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

    def _remove_runner(self, runner: dict[str, Any]) -> None:
        if self._gitlab is None:
            return
        if not self._gitlab.can_list:
            pulumi.log.debug("the GitLab token lacks read_api: cannot look for runners that an interrupted update left")
            return
        scope: Scope = runner["runnerType"]
        owner = runner.get("projectId") or runner.get("groupId")
        for id_ in self._gitlab.unused_runners(scope, owner and int(owner), runner["description"]):
            pulumi.log.warn(f"removing runner {id_}, which an interrupted update registered and nothing ever used")
            self._gitlab.delete_runner(id_)


def _said(kind: str, id_: str) -> None:
    pulumi.log.warn(f"removing {kind} {id_}, which an interrupted update left behind")


def _instance(cloud: Connection, inputs: dict[str, Any]) -> None:
    # A port serves one machine: whatever holds ours was made for it and is not known to the stack.
    for network in inputs["networks"]:
        server = cloud.network.get_port(network["port"]).device_id
        if server and (found := cloud.compute.find_server(server)):
            _said("server", server)
            cloud.compute.delete_server(found)
            cloud.compute.wait_for_delete(found, wait=_SECONDS_TO_DELETE)


def _volume(cloud: Connection, inputs: dict[str, Any]) -> None:
    for volume in cloud.block_storage.volumes(name=inputs["name"]):
        if volume.description == inputs["description"] and not volume.attachments:
            _said("volume", volume.id)
            # It cannot be deleted while it is being made.
            if volume.status in {"creating", "downloading"}:
                cloud.block_storage.wait_for_status(volume, "available", ["error"], wait=_SECONDS_TO_DELETE)
            cloud.block_storage.delete_volume(volume.id)
            cloud.block_storage.wait_for_delete(volume, wait=_SECONDS_TO_DELETE)


def _container(cloud: Connection, inputs: dict[str, Any]) -> None:
    """To make a container that is there already would take it over: only one with our own marks may be."""
    try:
        found = cloud.object_store.get_container_metadata(inputs["name"])
    except NotFoundException:
        return
    marks = {key.lower(): value for key, value in (found.metadata or {}).items()}
    if not inputs["metadata"].items() <= marks.items():
        raise ClientError(f"container {inputs['name']} exists already and is not this stack's; set cache.container")


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


def _port(cloud: Connection, inputs: dict[str, Any]) -> None:
    ports = cloud.network.ports(name=inputs["name"], description=inputs["description"], network_id=inputs["networkId"])
    for port in ports:
        if not port.device_id:
            _said("port", port.id)
            cloud.network.delete_port(port)


def _floating_ip(cloud: Connection, inputs: dict[str, Any]) -> None:
    for address in cloud.network.ips(description=inputs["description"]):
        if address.port_id is None:
            _said("floating IP", address.floating_ip_address)
            cloud.network.delete_ip(address)


def _security_group(cloud: Connection, inputs: dict[str, Any]) -> None:
    groups = cloud.network.security_groups(name=inputs["name"], description=inputs["description"])
    for group in groups:
        if not any(True for _ in cloud.network.ports(security_groups=group.id)):
            _said("security group", group.id)
            cloud.network.delete_security_group(group)


def _security_group_rule(cloud: Connection, inputs: dict[str, Any]) -> None:
    wanted = (
        inputs["direction"],
        inputs["ethertype"],
        inputs.get("protocol"),
        inputs.get("portRangeMin"),
        inputs.get("portRangeMax"),
        inputs.get("remoteIpPrefix"),
    )
    for rule in cloud.network.security_group_rules(security_group_id=inputs["securityGroupId"]):
        if wanted == (
            rule.direction,
            rule.ether_type,
            rule.protocol,
            rule.port_range_min,
            rule.port_range_max,
            rule.remote_ip_prefix,
        ):
            _said("security group rule", rule.id)
            cloud.network.delete_security_group_rule(rule)


def _key_pair(cloud: Connection, inputs: dict[str, Any]) -> None:
    for key in cloud.compute.keypairs():
        if key.name == inputs["name"]:
            _said("key pair", key.name)
            cloud.compute.delete_keypair(key)


def _application_credential(cloud: Connection, inputs: dict[str, Any]) -> None:
    # By its type it may be of version 2, which has none.
    user, identity = cloud.current_user_id, cast(Any, cloud.identity)
    for credential in identity.application_credentials(user, name=inputs["name"]):
        if credential.name == inputs["name"]:
            _said("application credential", credential.id)
            identity.delete_application_credential(user, credential.id)


def _server_group(cloud: Connection, inputs: dict[str, Any]) -> None:
    for group in cloud.compute.server_groups():
        if group.name == inputs["name"] and not group.member_ids:
            _said("server group", group.id)
            cloud.compute.delete_server_group(group)


_REMOVERS: dict[str, Callable[[Connection, dict[str, Any]], None]] = {
    "openstack:blockstorage/volume:Volume": _volume,
    "openstack:compute/instance:Instance": _instance,
    "openstack:compute/keypair:Keypair": _key_pair,
    "openstack:compute/serverGroup:ServerGroup": _server_group,
    "openstack:identity/applicationCredential:ApplicationCredential": _application_credential,
    "openstack:networking/floatingIp:FloatingIp": _floating_ip,
    "openstack:networking/port:Port": _port,
    "openstack:networking/secGroup:SecGroup": _security_group,
    "openstack:networking/secGroupRule:SecGroupRule": _security_group_rule,
    "openstack:objectstorage/container:Container": _container,
}
