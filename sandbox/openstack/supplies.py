"""What a new server needs: image, flavor, key pair, group, networks; found or refused as Nova does it."""

from sandbox.openstack.cinder import Cinder
from sandbox.openstack.common import ApiError, Caller, Document
from sandbox.openstack.glance import Glance
from sandbox.openstack.lifecycle import Lifecycle, limit_of
from sandbox.openstack.neutron import Neutron
from sandbox.openstack.schema import BlockDevice, NetworkChoice, ServerBody
from sandbox.store import Store


class Supplies:
    """Where what servers need comes from."""

    def __init__(self, store: Store, neutron: Neutron, glance: Glance, cinder: Cinder, life: Lifecycle) -> None:
        self._store = store
        self._neutron = neutron
        self._glance = glance
        self.cinder = cinder
        self._life = life

    def root_volume(self, caller: Caller, wanted: ServerBody) -> Document | None:
        """Of what the volume is made from which the server boots; None when it boots from the image itself."""
        if wanted.image and self._glance.image(caller, wanted.image) is None:
            raise ApiError(400, "Can not find requested image")
        for device in wanted.block_device_mapping_v2:
            if device.source_type == "image" and self._glance.image(caller, device.uuid) is None:
                raise ApiError(400, f"Block Device Mapping is Invalid: failed to get image {device.uuid}.")
            if device.source_type == "snapshot":
                raise ApiError(400, f"Block Device Mapping is Invalid: failed to get snapshot {device.uuid}.")
            if device.source_type == "volume":
                self.free_volume(caller, device.uuid)
            elif device.destination_type == "volume" and not device.volume_size:
                message = "Images with destination_type 'volume' need to have a non-zero size specified"
                raise ApiError(400, f"Block Device Mapping is Invalid: {message}")
        roots = [device for device in wanted.block_device_mapping_v2 if device.boot_index == 0]
        if not roots:
            if not wanted.image and not wanted.block_device_mapping_v2:
                raise ApiError(400, "Missing imageRef attribute")
            if not wanted.image:
                raise _boot_sequence()
            return None
        root = roots[0]
        if len(roots) > 1 or (wanted.image and not _is_same_image(root, wanted.image)):
            raise _boot_sequence()
        if root.destination_type == "local":
            return None
        return {"image": "" if root.source_type == "volume" else root.uuid}

    def free_volume(self, caller: Caller, id: str) -> None:
        """Refuse a volume that is not there or not free, ApiError 400."""
        volume = self.cinder.volume(caller, id)
        if volume is None:
            raise ApiError(400, f"Block Device Mapping is Invalid: failed to get volume {id}.")
        if volume["status"] != "available":
            message = f"volume '{id}' status must be 'available'. Currently in '{volume['status']}'"
            raise ApiError(400, f"Invalid volume: {message}")

    def attach(self, caller: Caller, server: Document, wanted: ServerBody) -> list[Document]:
        """Attach the volumes that the server was asked for, and what it shall know of them; the root comes first."""
        attached: list[Document] = []
        devices = [device for device in wanted.block_device_mapping_v2 if device.destination_type == "volume"]
        for device in sorted(devices, key=lambda each: each.boot_index != 0):
            id = device.uuid
            if device.source_type != "volume":
                id = str(self.cinder.provision(caller, device.volume_size or 1, device.uuid)["id"])
            attached.append({"id": id, "delete_on_termination": device.delete_on_termination})
        # The first letter is the root disk's, whichever that is.
        first = ord("a") if server["volume"] else ord("b")
        for number, volume in enumerate(attached):
            volume["device"] = f"/dev/vd{chr(first + number)}"
            self.cinder.attach(volume["id"], server["id"], volume["device"])
        return attached

    def flavor(self, reference: str) -> Document:
        # A reference may be an address that ends in the id.
        id = reference.rsplit("/", 1)[-1]
        flavor = self._store.get("nova.flavor", id)
        if flavor is None:
            raise ApiError(400, f"Flavor {id} could not be found.")
        return flavor

    def keypair(self, caller: Caller, name: str) -> Document:
        pair = self._store.get("nova.keypair", f"{caller.user_id}/{name}")
        if pair is None:
            raise ApiError(400, "Invalid key_name provided.")
        return pair

    def server_group(self, caller: Caller, id: str | None, count: int) -> str | None:
        if id is None:
            return None
        group = self._store.get("nova.server_group", id)
        if group is None or group["project_id"] != caller.project_id:
            raise ApiError(400, f"Instance group {id} could not be found.")
        if len(self._life.members(id)) + count > limit_of(self._store, caller.project_id, "server_group_members"):
            raise ApiError(403, "Quota exceeded, too many servers in group")
        return id

    def security_groups(self, caller: Caller, wanted: ServerBody) -> list[str]:
        groups = []
        for each in wanted.security_groups:
            group = self._neutron.security_group(caller, each.name)
            if group is None:
                message = f"Security group {each.name} not found for project {caller.project_id}."
                raise ApiError(400, message)
            groups.append(group["id"])
        return groups

    def networks(self, caller: Caller, wanted: ServerBody, count: int) -> list[NetworkChoice]:
        """The ports and networks to plug the server into, checked."""
        if wanted.networks == "none":
            return []
        if not wanted.networks or wanted.networks == "auto":
            usable = self._neutron.networks_for_servers(caller)
            if len(usable) > 1:
                message = "Multiple possible networks found, use a Network ID to be more specific."
                raise ApiError(409, message)
            return [NetworkChoice(uuid=network["id"]) for network in usable]
        for choice in wanted.networks:
            if choice.port is not None:
                self.free_port(caller, choice.port, 400)
                if count > 1:
                    message = "Unable to launch multiple instances with a single configured port ID. Please launch your"
                    raise ApiError(400, f"{message} instance one by one with different ports.")
            elif choice.uuid is None or self._neutron.network(caller, choice.uuid) is None:
                raise ApiError(400, f"Network {choice.uuid} could not be found.")
        return wanted.networks

    def free_port(self, caller: Caller, id: str, missing: int) -> Document:
        port = self._neutron.port(caller, id)
        if port is None:
            raise ApiError(missing, f"Port id {id} could not be found.")
        if port["device_id"]:
            raise ApiError(409, f"Port {id} is still in use.")
        return port

    def check_quota(self, project: str, flavor: Document, count: int) -> None:
        used = self._life.used(project)
        for name, each in (("instances", 1), ("cores", flavor["vcpus"]), ("ram", flavor["ram"])):
            limit = limit_of(self._store, project, name)
            if used[name] + each * count > limit:
                message = f"Quota exceeded for {name}: Requested {each * count}, but already used {used[name]} of "
                raise ApiError(403, f"{message}{limit} {name}")

    def plug(
        self, caller: Caller, server: Document, networks: list[NetworkChoice], groups: list[str]
    ) -> tuple[list[str], list[str]]:
        """Plug the server in; the ids of the ports that were made for that, and of all its ports in order."""
        made: list[str] = []
        ports: list[str] = []
        try:
            for choice in networks:
                if choice.port is not None:
                    port = self.free_port(caller, choice.port, 400)
                else:
                    port = self.make_port(caller, choice, groups)
                    made.append(port["id"])
                self._neutron.bind(port, server["id"], server["availability_zone"])
                ports.append(port["id"])
        except ApiError:
            for port in self._neutron.ports_of(server["id"]):
                if port["id"] in made:
                    self._neutron.remove_port(port)
                else:
                    self._neutron.unbind(port)
            raise
        return made, ports

    def make_port(self, caller: Caller, choice: NetworkChoice, groups: list[str]) -> Document:
        attributes: Document = {"network_id": choice.uuid}
        if groups:
            attributes["security_groups"] = groups
        if choice.fixed_ip is not None:
            attributes["fixed_ips"] = [{"ip_address": str(choice.fixed_ip)}]
        try:
            return self._neutron.create_port(caller, attributes)
        except ApiError as error:
            # Nova passes on what Neutron said, with a status of its own.
            raise ApiError(403 if error.kind == "OverQuota" else 400, error.message) from error


def _is_same_image(device: BlockDevice, image: str) -> bool:
    return device.source_type == "image" and device.destination_type == "local" and device.uuid == image


def _boot_sequence() -> ApiError:
    message = "Block Device Mapping is Invalid: Boot sequence for the instance and image/block device mapping "
    return ApiError(400, f"{message}combination is not valid.")
