"""What a new sandbox cloud has: a project and a user, flavors, images, and networks on loopback addresses."""

import hashlib
import secrets
import uuid
from dataclasses import dataclass

from sandbox.openstack.cinder import seed_types
from sandbox.openstack.common import Document, new_id, now
from sandbox.openstack.keystone import hashed
from sandbox.store import Store

PROJECT = "sandbox"
USER = "sandbox"

# (id, name, vCPUs, MiB of memory, GB of disk), as DevStack has them.
_FLAVORS = (("2", "m1.small", 1, 2048, 20), ("3", "m1.medium", 2, 4096, 40), ("4", "m1.large", 4, 8192, 80))

# (name, distribution, its version). Two share a name, for those who want to see what then happens.
_IMAGES = (
    ("debian-13", "debian", "13"),
    ("ubuntu-24.04", "ubuntu", "24.04"),
    ("duplicate", "debian", "12"),
    ("duplicate", "debian", "12"),
)

# (name, MTU, external, type). VXLAN takes 50 bytes of a 1500-byte frame, Geneve 58.
_NETWORKS = (
    ("runners", 1450, False, "vxlan"),
    ("runners-geneve", 1442, False, "geneve"),
    ("public", 1500, True, "flat"),
)


@dataclass(frozen=True)
class Credentials:
    """How to log in to the sandbox's cloud: by password, or by an application credential."""

    username: str
    password: str
    project: str
    application_credential_id: str
    application_credential_secret: str


def seed(store: Store) -> Credentials:
    """Put into an empty store what a new cloud has; an old store is left as it is. The credentials of either."""
    known = store.get("openstack.credentials", USER)
    if known is None:
        known = _seed_identity(store)
        _seed_compute(store)
        _seed_networks(store)
        store.put("openstack.credentials", USER, known)
    seed_types(store)
    return Credentials(**known)


def _seed_identity(store: Store) -> Document:
    project = {"id": uuid.uuid4().hex, "name": PROJECT}
    # A second one, empty, shows that projects do not see each other's resources.
    other = {"id": uuid.uuid4().hex, "name": f"{PROJECT}-other"}
    password, secret = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
    user = {
        "id": uuid.uuid4().hex,
        "name": USER,
        "password": hashed(password),
        "default_project_id": project["id"],
        "project_ids": [project["id"], other["id"]],
    }
    credential: Document = {
        "id": uuid.uuid4().hex,
        "name": "sandbox",
        "description": "Made with the sandbox",
        "secret": hashed(secret),
        "user_id": user["id"],
        "project_id": project["id"],
        "expires_at": None,
        "unrestricted": False,
        "roles": [],
    }
    for kind, document in (("project", project), ("project", other), ("user", user)):
        store.put(f"keystone.{kind}", str(document["id"]), document)
    store.put("keystone.application_credential", credential["id"], credential)
    return {
        "username": USER,
        "password": password,
        "project": PROJECT,
        "application_credential_id": credential["id"],
        "application_credential_secret": secret,
    }


def _project(store: Store) -> str:
    return next(str(project["id"]) for project in store.list("keystone.project") if project["name"] == PROJECT)


def _seed_compute(store: Store) -> None:
    for id, name, vcpus, ram, disk in _FLAVORS:
        flavor = {"id": id, "name": name, "vcpus": vcpus, "ram": ram, "disk": disk}
        store.put("nova.flavor", id, flavor | {"is_public": True, "extra_specs": {}})
    for name, distribution, version in _IMAGES:
        digest = hashlib.sha512(f"{name} {new_id()}".encode()).hexdigest()
        image = {
            "id": new_id(),
            "name": name,
            "status": "active",
            "visibility": "public",
            "owner": _project(store),
            "protected": False,
            "os_hidden": False,
            "container_format": "bare",
            "disk_format": "qcow2",
            "min_disk": 0,
            "min_ram": 0,
            "size": 535 * 2**20,
            "virtual_size": 3 * 2**30,
            "checksum": digest[:32],
            "os_hash_algo": "sha512",
            "os_hash_value": digest,
            "os_distro": distribution,
            "os_version": version,
            "tags": [],
            "created_at": now(),
            "updated_at": now(),
        }
        store.put("glance.image", str(image["id"]), image)


def _seed_networks(store: Store) -> None:
    # Somewhere in 127.0.0.0/8, another place for every sandbox, and not where distributions have their own services
    # (127.0.0.53 and the like).
    second, third = 16 + secrets.randbelow(224), 4 * secrets.randbelow(60)
    common = {"project_id": _project(store), "tags": [], "description": "", "revision_number": 1}
    common |= {"created_at": now(), "updated_at": now()}
    zones = {"availability_zones": ["nova"], "availability_zone_hints": []}
    for number, (name, mtu, external, kind) in enumerate(_NETWORKS):
        network = {"id": new_id(), "name": name, **common, **zones}
        prefix = f"127.{second}.{third + number}"
        subnet = {
            "id": new_id(),
            "name": name,
            "network_id": network["id"],
            "ip_version": 4,
            "cidr": f"{prefix}.0/24",
            "gateway_ip": f"{prefix}.1",
            "allocation_pools": [{"start": f"{prefix}.10", "end": f"{prefix}.250"}],
            "dns_nameservers": [],
            "host_routes": [],
            "enable_dhcp": not external,
            "ipv6_address_mode": None,
            "ipv6_ra_mode": None,
            "subnetpool_id": None,
            "segment_id": None,
            "service_types": [],
            **common,
        }
        network |= {
            "status": "ACTIVE",
            "admin_state_up": True,
            "mtu": mtu,
            "shared": False,
            "router:external": external,
            "is_default": external,
            "subnets": [subnet["id"]],
            "ipv4_address_scope": None,
            "ipv6_address_scope": None,
            "port_security_enabled": True,
            "qos_policy_id": None,
            "provider:network_type": kind,
            "provider:physical_network": "public" if external else None,
            "provider:segmentation_id": None if external else 100 + number,
        }
        store.put("neutron.network", str(network["id"]), network)
        store.put("neutron.subnet", str(subnet["id"]), subnet)
    router = {"id": new_id(), "name": "router", **common, **zones, "status": "ACTIVE", "admin_state_up": True}
    router |= {"external_gateway_info": {"network_id": network["id"], "enable_snat": True, "external_fixed_ips": []}}
    router |= {"routes": [], "distributed": False, "ha": False, "flavor_id": None}
    store.put("neutron.router", str(router["id"]), router)
