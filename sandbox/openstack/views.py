"""How Nova shows servers, which depends on the microversion (Compute API v2.1, "Show Server Details")."""

import hashlib
from typing import Any

from aiohttp import web

from sandbox.openstack.common import Document
from sandbox.openstack.lifecycle import Lifecycle, vm_state
from sandbox.openstack.neutron import Neutron
from sandbox.openstack.schema import minor_version
from sandbox.store import Store

_POWER_STATES = {"BUILD": 0, "SHUTOFF": 4, "ERROR": 0}
_POWER_ON = 1

# Statuses with a `progress`.
_PROGRESS = {"ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE"}

# The first microversions (2.N) in which a server shows these attributes.
SINCE = {
    "OS-EXT-SRV-ATTR:reservation_id": 3, "OS-EXT-SRV-ATTR:launch_index": 3, "OS-EXT-SRV-ATTR:hostname": 3,
    "OS-EXT-SRV-ATTR:kernel_id": 3, "OS-EXT-SRV-ATTR:ramdisk_id": 3, "OS-EXT-SRV-ATTR:root_device_name": 3,
    "OS-EXT-SRV-ATTR:user_data": 3, "locked": 9, "host_status": 16, "description": 19, "tags": 26,
    "trusted_image_certificates": 63, "server_groups": 71, "locked_reason": 73,
}  # fmt: skip
_FLAVOR_EMBEDDED = 47
_VOLUME_DELETION = 3


class Views:
    """Views of servers."""

    def __init__(self, store: Store, neutron: Neutron, life: Lifecycle) -> None:
        self._store = store
        self._neutron = neutron
        self._life = life

    def view(self, request: web.Request, server: Document) -> Document:
        """A server in all detail."""
        minor = minor_version(request)
        status = server["status"]
        view = brief(request, server) | {
            "status": status,
            "tenant_id": server["project_id"],
            "user_id": server["user_id"],
            "metadata": server["metadata"],
            "hostId": hashlib.sha224(f"{server['project_id']}sandbox".encode()).hexdigest(),
            "image": self._image_view(request, server),
            "flavor": _flavor_view(request, server["flavor"]),
            "created": server["created"],
            "updated": server["updated"],
            "addresses": self.addresses(server),
            "accessIPv4": server["access_ip_v4"],
            "accessIPv6": server["access_ip_v6"],
            "OS-DCF:diskConfig": server["disk_config"],
            "OS-EXT-AZ:availability_zone": server["availability_zone"],
            "config_drive": "True" if server["config_drive"] else "",
            "key_name": server["key_name"],
            "OS-SRV-USG:launched_at": server["launched_at"],
            "OS-SRV-USG:terminated_at": None,
            "OS-EXT-STS:task_state": server["task_state"],
            "OS-EXT-STS:vm_state": vm_state(server),
            "OS-EXT-STS:power_state": _POWER_STATES.get(status, _POWER_ON),
            "os-extended-volumes:volumes_attached": _volumes_view(server, minor),
            "OS-EXT-SRV-ATTR:host": "sandbox",
            "OS-EXT-SRV-ATTR:instance_name": f"instance-{server['number']:08x}",
            "OS-EXT-SRV-ATTR:hypervisor_hostname": "sandbox",
        }
        if groups := self._group_names(server):
            view["security_groups"] = [{"name": name} for name in groups]
        later = {
            "OS-EXT-SRV-ATTR:reservation_id": server["reservation_id"],
            "OS-EXT-SRV-ATTR:launch_index": 0,
            "OS-EXT-SRV-ATTR:hostname": server["hostname"],
            "OS-EXT-SRV-ATTR:kernel_id": "",
            "OS-EXT-SRV-ATTR:ramdisk_id": "",
            "OS-EXT-SRV-ATTR:root_device_name": "/dev/vda",
            "OS-EXT-SRV-ATTR:user_data": server["user_data"],
            "locked": server["locked"],
            "host_status": "UP",
            "description": server["description"],
            "tags": server["tags"],
            "trusted_image_certificates": None,
            "server_groups": [server["group"]] if server["group"] else [],
            "locked_reason": None,
        }
        view |= {name: value for name, value in later.items() if minor >= SINCE[name]}
        if request.path.endswith("/detail"):
            view.pop("server_groups", None)
        if status in _PROGRESS:
            view["progress"] = 0
        if status == "ERROR" and server["fault"]:
            view["fault"] = server["fault"]
        return view

    def _image_view(self, request: web.Request, server: Document) -> Any:
        if server["volume"]:
            return ""
        href = f"{request.url.origin()}/compute/images/{server['image']}"
        return {"id": server["image"], "links": [{"rel": "bookmark", "href": href}]}

    def addresses(self, server: Document) -> Document:
        """The addresses by network."""
        view: dict[str, list[Document]] = {}
        for port in self._life.ports(server):
            network = self._store.get("neutron.network", port["network_id"])
            entries = view.setdefault(network["name"] if network else port["network_id"], [])
            floating = {each["fixed_ip_address"]: each for each in self._neutron.floating_ips(port)}
            for fixed in port["fixed_ips"]:
                address = fixed["ip_address"]
                entries.append(_address_entry(address, "fixed", port))
                if address in floating:
                    entries.append(_address_entry(floating[address]["floating_ip_address"], "floating", port))
        return view

    def _group_names(self, server: Document) -> list[str]:
        names = [name for port in self._life.ports(server) for name in self._neutron.group_names(port)]
        return list(dict.fromkeys(names))


def brief(request: web.Request, server: Document) -> Document:
    """A server as a list without details has it."""
    root = f"{request.url.origin()}/compute"
    links = [
        {"rel": "self", "href": f"{root}/v2.1/servers/{server['id']}"},
        {"rel": "bookmark", "href": f"{root}/servers/{server['id']}"},
    ]
    return {"id": server["id"], "name": server["name"], "links": links}


def _flavor_view(request: web.Request, flavor: Document) -> Document:
    if minor_version(request) >= _FLAVOR_EMBEDDED:
        numbers = {name: flavor[name] for name in ("vcpus", "ram", "disk", "extra_specs")}
        return numbers | {"ephemeral": 0, "swap": 0, "original_name": flavor["name"]}
    href = f"{request.url.origin()}/compute/flavors/{flavor['id']}"
    return {"id": flavor["id"], "links": [{"rel": "bookmark", "href": href}]}


def _address_entry(address: str, kind: str, port: Document) -> Document:
    return {
        "version": 6 if ":" in address else 4,
        "addr": address,
        "OS-EXT-IPS:type": kind,
        "OS-EXT-IPS-MAC:mac_addr": port["mac_address"],
    }


def _volumes_view(server: Document, minor: int) -> list[Document]:
    names = ("id", "delete_on_termination") if minor >= _VOLUME_DELETION else ("id",)
    return [{name: volume[name] for name in names} for volume in server["volumes"]]
