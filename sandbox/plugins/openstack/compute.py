"""Compute: key pairs, server groups and servers."""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from typing import ClassVar

from ..common import PluginError, Work
from ..difference import Change
from ..facts import Habits
from ..values import Plain
from .cloud import CloudResource, Document, Gone, given, only, tags_of

SERVER_SECONDS = 30 * 60
BOOTED_FROM_VOLUME = "Attempt to boot from volume - no image supplied"


class Keypair(CloudResource):
    """`openstack.compute.Keypair`: an SSH key that Nova puts on servers."""

    token = "openstack:compute/keypair:Keypair"
    unchangeable = True
    habits = Habits(auto_name=True)
    microversion: ClassVar[str] = "2.10"

    def create(self, wanted: Plain, work: Work) -> None:
        request = given(name=wanted["name"], public_key=wanted.get("publicKey"), user_id=wanted.get("userId"))
        request |= wanted.get("valueSpecs", {})
        pair = self.cloud.compute("POST", "/os-keypairs", {"keypair": request}, self.microversion)["keypair"]
        owner = f"{wanted['userId']}:" if "userId" in wanted else ""
        # Nova makes a key where none was given, and tells the private half only here.
        work.made(owner + pair["name"], privateKey=pair.get("private_key", ""))

    def read(self, id: str, state: Plain) -> Plain | None:
        try:
            pair = self.cloud.compute("GET", self._path(id), microversion=self.microversion)["keypair"]
        except Gone:
            return None
        return {
            "name": pair["name"],
            "publicKey": pair["public_key"],
            "fingerprint": pair["fingerprint"],
            "userId": pair.get("user_id", ""),
            "region": self.cloud.region,
        }

    def delete(self, id: str, state: Plain, work: Work) -> None:
        try:
            self.cloud.compute("DELETE", self._path(id), microversion=self.microversion)
        except Gone:
            return

    @staticmethod
    def _path(id: str) -> str:
        user, _, name = id.rpartition(":")
        return f"/os-keypairs/{name}" + (f"?user_id={user}" if user else "")


class ServerGroup(CloudResource):
    """`openstack.compute.ServerGroup`: servers that Nova keeps together or apart."""

    token = "openstack:compute/serverGroup:ServerGroup"
    unchangeable = True
    habits = Habits(auto_name=True)

    def create(self, wanted: Plain, work: Work) -> None:
        policy = wanted.get("policies", "")
        request: Document = {"name": wanted["name"], **wanted.get("valueSpecs", {})}
        if rules := wanted.get("rules"):
            request |= {"policy": policy, "rules": {"max_server_per_host": rules["maxServerPerHost"]}}
            microversion: str | None = "2.64"
        else:
            request["policies"] = [policy]
            # The soft policies came with 2.15; plain ones need none.
            microversion = "2.15" if policy.startswith("soft-") else None
        group = self.cloud.compute("POST", "/os-server-groups", {"server_group": request}, microversion)["server_group"]
        work.made(group["id"])

    def read(self, id: str, state: Plain) -> Plain | None:
        microversion = "2.64" if "maxServerPerHost" in state.get("rules", {}) else "2.15"
        try:
            group = self.cloud.compute("GET", f"/os-server-groups/{id}", microversion=microversion)["server_group"]
        except Gone:
            return None
        rules = group.get("rules", {})
        return {
            "name": group["name"],
            "members": group.get("members", []),
            "policies": group["policy"] if "policy" in group else next(iter(group.get("policies", [])), None),
            "rules": {"maxServerPerHost": rules["max_server_per_host"]} if rules else {},
            "region": self.cloud.region,
        }

    def delete(self, id: str, state: Plain, work: Work) -> None:
        try:
            self.cloud.compute("DELETE", f"/os-server-groups/{id}")
        except Gone:
            return


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Instance(CloudResource):
    """`openstack.compute.Instance`: a server."""

    token = "openstack:compute/instance:Instance"
    seconds = SERVER_SECONDS
    habits = Habits(
        auto_name=True,
        defaults={"forceDelete": False, "stopBeforeDestroy": False, "powerState": "active"},
        element_defaults={
            "networks": {"accessNetwork": False},
            "blockDevices": {"deleteOnTermination": False, "multiattach": False},
            "vendorOptions": {"ignoreResizeConfirmation": False, "detachPortsBeforeDestroy": False},
        },
        sets=frozenset({"securityGroups", "tags", "schedulerHints"}),
        filled_in=frozenset({"networks"}),
        # The members of `networks` that replace are all that a program can set, but for accessNetwork.
        stored={"userData": _sha1},
        refused=frozenset({"personalities", "hypervisorHostname"}),
    )

    def check(self, wanted: Plain) -> list[tuple[str, str]]:
        faults = []
        if "availabilityZone" in wanted and "availabilityZoneHints" in wanted:
            faults.append(("availabilityZone", "conflicts with availabilityZoneHints"))
        if "networks" in wanted and "networkMode" in wanted:
            faults.append(("networkMode", "conflicts with networks"))
        state = wanted.get("powerState")
        if isinstance(state, str) and state.lower() not in ("active", "shutoff", "shelved_offloaded", "paused"):
            faults.append(("powerState", f"must be active, shutoff, shelved_offloaded or paused, not {state!r}"))
        return faults

    def create(self, wanted: Plain, work: Work) -> None:
        request = given(
            name=wanted["name"],
            imageRef=self._image(wanted),
            flavorRef=self._flavor(wanted),
            key_name=wanted.get("keyPair"),
            availability_zone=wanted.get("availabilityZone", wanted.get("availabilityZoneHints")),
            adminPass=wanted.get("adminPass"),
            metadata=wanted.get("metadata"),
            tags=wanted.get("tags"),
            security_groups=[{"name": name} for name in wanted.get("securityGroups", [])],
            networks=wanted.get("networkMode") or [self._network_request(item) for item in wanted.get("networks", [])],
            block_device_mapping_v2=[self._block_device(item) for item in wanted.get("blockDevices", [])],
        )
        request["config_drive"] = wanted.get("configDrive", False)
        if "userData" in wanted:
            request["user_data"] = _base64(wanted["userData"])
        body: Document = {"server": request}
        if hints := next(iter(wanted.get("schedulerHints", [])), None):
            body["os:scheduler_hints"] = self._scheduler_hints(hints)
        server = self.cloud.compute("POST", "/servers", body, self._create_microversion(wanted))["server"]
        work.made(server["id"])
        self._reach(server["id"], {"ACTIVE"}, work)
        if wanted.get("powerState", "active").lower() != "active":
            self._set_power(server["id"], "active", wanted["powerState"], work)

    def read(self, id: str, state: Plain) -> Plain | None:
        try:
            server = self._server(id)
        except Gone:
            return None
        networks = self._networks(server, state.get("networks", []))
        first_v4, first_v6 = (self._access_address(networks, key) for key in ("fixedIpV4", "fixedIpV6"))
        tags = self.cloud.compute("GET", f"/servers/{id}/tags", microversion="2.26").get("tags", [])
        return {
            "name": server["name"],
            "created": server["created"],
            "updated": server["updated"],
            "networks": networks,
            "accessIpV4": first_v4 or server.get("accessIPv4", ""),
            "accessIpV6": first_v6 or server.get("accessIPv6", ""),
            "allMetadata": server["metadata"],
            # An import takes over what is there; else only the program says which metadata are its concern.
            "metadata": state.get("metadata") if state else server["metadata"],
            "securityGroups": list(dict.fromkeys(group["name"] for group in server.get("security_groups", []))),
            "keyPair": server.get("key_name"),
            "availabilityZone": server.get("OS-EXT-AZ:availability_zone", ""),
            "powerState": server["status"].lower(),
            "region": self.cloud.region,
            **tags_of(state, tags),
            **self._flavor_names(server),
            **self._image_names(server, state),
        }

    def update(self, id: str, state: Plain, wanted: Plain, changes: Mapping[str, Change], work: Work) -> None:
        if "name" in changes:
            self.cloud.compute("PUT", f"/servers/{id}", {"server": {"name": wanted["name"]}})
        if "powerState" in changes:
            self._set_power(id, state.get("powerState", "active"), wanted.get("powerState", "active"), work)
        if "metadata" in changes:
            new = wanted.get("metadata", {})
            for key in state.get("metadata", {}).keys() - new.keys():
                self._unless_gone("DELETE", f"/servers/{id}/metadata/{key}")
            self.cloud.compute("POST", f"/servers/{id}/metadata", {"metadata": new})
        if "securityGroups" in changes:
            old_groups, new_groups = set(state.get("securityGroups", [])), set(wanted.get("securityGroups", []))
            for name in sorted(old_groups - new_groups):
                self._action(id, {"removeSecurityGroup": {"name": name}})
            for name in sorted(new_groups - old_groups):
                self._action(id, {"addSecurityGroup": {"name": name}})
        if "adminPass" in changes and "adminPass" in wanted:
            self._action(id, {"changePassword": {"adminPass": wanted["adminPass"]}})
        if "flavorId" in changes or "flavorName" in changes:
            self._resize(id, wanted, work)
        if "imageId" in changes or "imageName" in changes:
            self._action(id, {"rebuild": {"imageRef": self._image(wanted)}})
            self._reach(id, {"ACTIVE", "SHUTOFF"}, work, passing={"REBUILD"})
        if "tags" in changes:
            tags = {"tags": wanted.get("tags", [])}
            self.cloud.compute("PUT", f"/servers/{id}/tags", tags, microversion="2.26")

    def delete(self, id: str, state: Plain, work: Work) -> None:
        try:
            if state.get("stopBeforeDestroy"):
                self._action(id, {"os-stop": None})
                self._reach(id, {"SHUTOFF"}, work)
            if state.get("vendorOptions", {}).get("detachPortsBeforeDestroy"):
                for port in (network.get("port") for network in state.get("networks", [])):
                    if port:
                        self._unless_gone("DELETE", f"/servers/{id}/os-interface/{port}")
            if state.get("forceDelete"):
                self._action(id, {"forceDelete": ""})
            else:
                self.cloud.compute("DELETE", f"/servers/{id}")
        except Gone:
            return
        work.wait(f"server {id} to be deleted", lambda: self._status_or_gone(id) in ("", "SOFT_DELETED") or None)

    # Requests

    def _image(self, wanted: Plain) -> str | None:
        """The image to boot; none when a block device is booted."""
        devices = wanted.get("blockDevices", [])
        if devices and not any(_is_local_image(device) for device in devices):
            return ""
        if image := wanted.get("imageId") or os.environ.get("OS_IMAGE_ID"):
            return str(image)
        if not (name := wanted.get("imageName") or os.environ.get("OS_IMAGE_NAME")):
            raise PluginError("neither a boot device, image id or image name is given")
        found = self.cloud.call("image", "GET", "/images", query={"name": name})["images"]
        return str(only(found, f"image named {name!r}")["id"])

    def _flavor(self, wanted: Plain) -> str:
        if flavor := wanted.get("flavorId") or os.environ.get("OS_FLAVOR_ID"):
            return str(flavor)
        if not (name := wanted.get("flavorName") or os.environ.get("OS_FLAVOR_NAME")):
            raise PluginError("neither a flavor id nor a flavor name is given")
        flavors = self.cloud.compute("GET", "/flavors/detail")["flavors"]
        return str(only([item for item in flavors if item["name"] == name], f"flavor named {name!r}")["id"])

    @staticmethod
    def _create_microversion(wanted: Plain) -> str | None:
        """The lowest that knows all that is asked for, as the official provider has it."""
        devices = wanted.get("blockDevices", [])
        needed = [
            ((2, 52), bool(wanted.get("tags"))),
            ((2, 37), "networkMode" in wanted),
            ((2, 60), any(device.get("multiattach") for device in devices)),
            ((2, 67), any(device.get("volumeType") for device in devices)),
        ]
        highest = max((version for version, wants in needed if wants), default=None)
        return None if highest is None else f"{highest[0]}.{highest[1]}"

    def _network_request(self, network: Plain) -> Document:
        if not any(network.get(key) for key in ("uuid", "name", "port")):
            raise PluginError("at least one of uuid, name and port must be set for a network of an instance")
        uuid = network.get("uuid")
        if not uuid and not network.get("port"):
            uuid = self.cloud.network_named(network["name"])["id"]
        return given(uuid=uuid, port=network.get("port"), fixed_ip=network.get("fixedIpV4") or network.get("fixedIpV6"))

    @staticmethod
    def _block_device(device: Plain) -> Document:
        source, destination = device["sourceType"], device.get("destinationType", "")
        if source != "blank" and not device.get("uuid"):
            raise PluginError(f"a block device of source type {source} needs a uuid")
        if (source, destination) in (("image", "volume"), ("blank", "local")) and not device.get("volumeSize"):
            raise PluginError(f"a block device from {source} to {destination} needs a volumeSize")
        return given(
            source_type=source,
            destination_type=destination,
            uuid=device.get("uuid"),
            volume_size=device.get("volumeSize"),
            volume_type=device.get("volumeType"),
            guest_format=device.get("guestFormat"),
            device_type=device.get("deviceType"),
            disk_bus=device.get("diskBus"),
        ) | {
            "boot_index": device.get("bootIndex", 0),
            "delete_on_termination": device.get("deleteOnTermination", False),
        }

    @staticmethod
    def _scheduler_hints(hints: Plain) -> Document:
        request = given(
            group=hints.get("group"),
            different_host=hints.get("differentHosts"),
            same_host=hints.get("sameHosts"),
            query=hints.get("queries"),
            target_cell=hints.get("targetCell"),
            different_cell=hints.get("differentCells"),
            build_near_host_ip=hints.get("buildNearHostIp"),
        )
        request.update(hints.get("additionalProperties", {}))
        return request

    def _server(self, id: str) -> Document:
        server: Document = self.cloud.compute("GET", f"/servers/{id}")["server"]
        return server

    def _action(self, id: str, action: Document) -> None:
        self.cloud.compute("POST", f"/servers/{id}/action", action)

    def _unless_gone(self, method: str, path: str) -> None:
        try:
            self.cloud.compute(method, path)
        except Gone:
            return

    def _status_or_gone(self, id: str) -> str:
        try:
            return str(self._server(id)["status"])
        except Gone:
            return ""

    def _reach(self, id: str, targets: set[str], work: Work, passing: set[str] | None = None) -> None:
        """Wait for a status; `passing` (any, when None) are those on the way. ERROR is the end of it."""

        def look() -> str | None:
            server = self._server(id)
            status = str(server["status"])
            if status in targets:
                return status
            if status == "ERROR" or (passing is not None and status not in passing):
                fault = server.get("fault", {}).get("message", "Nova gives no reason")
                raise PluginError(f"server {id} is {status} instead of {' or '.join(sorted(targets))}: {fault}")
            return None

        work.wait(f"server {id} to become {' or '.join(sorted(targets))}", look)

    def _set_power(self, id: str, old: str, new: str, work: Work) -> None:
        """Bring a server from one power state to another."""
        old, new = old.lower(), new.lower()
        actions = {"shelved_offloaded": "shelve", "paused": "pause", "shutoff": "os-stop"}
        if new == "active":
            back = {"shelved": "unshelve", "shelved_offloaded": "unshelve", "paused": "unpause", "build": None}
            action = back.get(old, "os-start")
        else:
            action = actions[new]
        if action is not None:
            self._action(id, {action: None})
        self._reach(id, {new.upper()}, work)

    def _resize(self, id: str, wanted: Plain, work: Work) -> None:
        self._action(id, {"resize": {"flavorRef": self._flavor(wanted)}})
        if wanted.get("vendorOptions", {}).get("ignoreResizeConfirmation"):
            self._reach(id, {"ACTIVE", "SHUTOFF"}, work, passing={"RESIZE", "VERIFY_RESIZE"})
            return
        self._reach(id, {"VERIFY_RESIZE"}, work, passing={"RESIZE"})
        self._action(id, {"confirmResize": None})
        self._reach(id, {"ACTIVE", "SHUTOFF"}, work, passing={"VERIFY_RESIZE"})

    # Answers

    def _networks(self, server: Document, known: list[Plain]) -> list[Plain]:
        """The networks of a server with its addresses, in the order in which the program gave them."""
        addresses = {name: self._nics(entries) for name, entries in server.get("addresses", {}).items()}
        if not known:
            return [{"name": name, **nic} for name, nics in addresses.items() for nic in nics]
        networks = []
        for network in (self._identified(item) for item in known):
            nics = addresses.get(network["name"], [])
            nic = nics.pop(0) if len(nics) > 1 else next(iter(nics), None)
            if nic is not None:
                networks.append({**network, **nic})
        return networks

    def _identified(self, network: Plain) -> Plain:
        """Name and id of a network that the program named by one of them or by a port."""
        uuid, name = network.get("uuid"), network.get("name")
        if not (uuid and name):
            if port := network.get("port"):
                uuid = self.cloud.network("GET", f"/ports/{port}")["port"]["network_id"]
            if uuid:
                name = self.cloud.network("GET", f"/networks/{uuid}")["network"]["name"]
            else:
                uuid = self.cloud.network_named(str(name))["id"]
        return {
            "name": name,
            "uuid": uuid,
            "port": network.get("port", ""),
            "accessNetwork": network.get("accessNetwork", False),
        }

    @staticmethod
    def _nics(entries: list[Document]) -> list[Plain]:
        """The interfaces on one network: fixed addresses by MAC."""
        nics: dict[str, Plain] = {}
        for entry in entries:
            mac = entry.get("OS-EXT-IPS-MAC:mac_addr", "")
            nic = nics.setdefault(mac, {"fixedIpV4": "", "fixedIpV6": "", "mac": mac})
            if entry.get("OS-EXT-IPS:type", "fixed") == "fixed":
                if entry["version"] == 6:  # noqa: PLR2004
                    nic["fixedIpV6"] = f"[{entry['addr']}]"
                else:
                    nic["fixedIpV4"] = entry["addr"]
        return list(nics.values())

    @staticmethod
    def _access_address(networks: list[Plain], key: str) -> str:
        """The address by which a server is reached: the first one, or that on the network marked for it."""
        marked = [network for network in networks if network.get("accessNetwork") and network[key]]
        return next((str(network[key]) for network in marked or networks if network[key]), "")

    def _flavor_names(self, server: Document) -> Plain:
        id = server["flavor"]["id"]
        try:
            return {"flavorId": id, "flavorName": self.cloud.compute("GET", f"/flavors/{id}")["flavor"]["name"]}
        except Gone:
            return {"flavorId": "", "flavorName": ""}

    def _image_names(self, server: Document, state: Plain) -> Plain:
        devices = state.get("blockDevices", [])
        if devices and not any(_is_local_image(device) for device in devices):
            return {"imageId": BOOTED_FROM_VOLUME}
        id = server["image"]["id"] if server.get("image") else ""
        if not id:
            return {}
        try:
            return {"imageId": id, "imageName": self.cloud.call("image", "GET", f"/images/{id}")["name"]}
        except Gone:
            return {"imageId": id, "imageName": "Image not found"}


def _is_local_image(device: Plain) -> bool:
    return device.get("sourceType") == "image" and device.get("destinationType") == "local"


def _base64(text: str) -> str:
    """User data as Nova takes it; what is base64 already stays so (as gophercloud has it)."""
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return base64.b64encode(text.encode()).decode()
    return text
