"""What the cloud is, and its daemons' configuration files."""

import configparser
import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import yaml

from .rootfs import DAEMONS_ROOT

HOST = "ground"  # host name, and name of the compute host
LOOPBACK = "127.0.0.1"  # of the network namespace: nothing of this is to be seen outside
PASSWORD = "ground"  # of all users
REGION = "RegionOne"
PROJECT = "platform"
MEMBER = "developer"
SERVICE_USER = "service"
PORTS = {
    "database": 3306,
    "rabbitmq": 5672,
    "identity": 5000,
    "compute": 8774,
    "placement": 8778,
    "image": 9292,
    "network": 9696,
}
CATALOG = {  # kind of service: its name, and the path of its endpoint
    "identity": ("keystone", "/v3"),
    "image": ("glance", ""),
    "network": ("neutron", ""),
    "placement": ("placement", ""),
    "compute": ("nova", "/v2.1"),
}
DATABASES = ("keystone", "glance", "placement", "nova_api", "nova", "nova_cell0", "neutron")
IMAGES = ("debian-13", "debian-13-plain")  # with Docker, and without it
EMPTY_IMAGE = "empty"  # no system: a machine of it takes no processor time
FLAVORS = {"m1.small": (2, 1536, 4), "m1.medium": (2, 2048, 4)}  # vCPU, MiB of memory, GiB of disk
EXTERNAL_NETWORK = "public"
EXTERNAL_RANGE = "203.0.113.0/24"  # RFC 5737
EXTERNAL_GATEWAY = "203.0.113.1/24"
PHYSICAL_NETWORK = "external"


@dataclass(frozen=True)
class Network:
    """A tenant network."""

    name: str
    mtu: int
    gateway: str
    prefix_length: int = 24

    @property
    def range(self) -> IPv4Network:
        """All addresses of its subnet."""
        return IPv4Interface(f"{self.gateway}/{self.prefix_length}").network


# 1450 is what VXLAN leaves of 1500, 1442 what it leaves when it is encrypted or runs over Geneve with options.
NETWORKS = (Network("runners", 1450, "10.20.0.1"), Network("runners-1442", 1442, "10.30.0.1"))

DRIVER = "ground_driver"  # files/ground_driver.py
DRIVER_DIRECTORY = "opt/ground/python"

Sections = Mapping[str, Mapping[str, object]]


def url(service: str) -> str:
    """The endpoint of a service."""
    return f"http://{LOOPBACK}:{PORTS[service]}{CATALOG[service][1]}"


def database(name: str) -> str:
    """The address of a database, as SQLAlchemy wants it."""
    return f"mysql+pymysql://root@{LOOPBACK}:{PORTS['database']}/{name}?charset=utf8"


def clouds(project: str = PROJECT) -> dict[str, Any]:
    """clouds.yaml: a member and an administrator of the project."""
    common = {"region_name": REGION, "identity_api_version": 3}
    return {
        "clouds": {
            cloud: {"auth": _credentials(user, project), **common}
            for cloud, user in (("ground", MEMBER), ("ground-admin", "admin"))
        }
    }


def write_clouds(path: Path, project: str = PROJECT) -> None:
    """Writes clouds.yaml."""
    path.write_text(yaml.safe_dump(clouds(project)))


def _credentials(user: str, project: str) -> dict[str, str]:
    return {
        "auth_url": url("identity"),
        "username": user,
        "password": PASSWORD,
        "project_name": project,
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    }


def _as_service() -> dict[str, object]:
    return {"auth_type": "password", "region_name": REGION, **_credentials(SERVICE_USER, "service")}


def _files() -> dict[str, Sections]:
    message_queue = {"transport_url": f"rabbit://guest:guest@{LOOPBACK}:{PORTS['rabbitmq']}/"}
    lock_path = {"lock_path": "/run/lock"}
    no_notifications = {"driver": "noop"}
    return {
        "etc/keystone/keystone.conf": {
            "database": {"connection": database("keystone")},
            "token": {"provider": "fernet", "expiration": 86400},
            "fernet_tokens": {"key_repository": "/var/lib/keystone/fernet"},
            "credential": {"key_repository": "/var/lib/keystone/credential"},
            # Pickled: Keystone takes what it has read from the cache apart, and would find the same object there again.
            "cache": {"enabled": True, "backend": "dogpile.cache.memory_pickle"},
            "identity": {"password_hash_rounds": 4},  # the fewest: every request of a service checks one
        },
        "etc/placement/placement.conf": {
            "placement_database": {"connection": database("placement"), "sync_on_startup": True},
            "api": {"auth_strategy": "keystone"},
            "keystone_authtoken": _as_service(),
        },
        "etc/glance/glance-api.conf": {
            "DEFAULT": {"bind_host": LOOPBACK, "workers": 0, "enabled_import_methods": "[]"},
            "database": {"connection": database("glance")},
            "paste_deploy": {
                "flavor": "keystone",
                "config_file": f"{DAEMONS_ROOT}/usr/share/glance-common/glance-api-paste.ini",
            },
            "glance_store": {
                "stores": "file",
                "default_store": "file",
                "filesystem_store_datadir": "/var/lib/glance/images",
            },
            "keystone_authtoken": _as_service(),
            "oslo_concurrency": lock_path,
        },
        "etc/neutron/neutron.conf": {
            "DEFAULT": {
                **message_queue,
                "bind_host": LOOPBACK,
                "core_plugin": "ml2",
                "service_plugins": f"{DRIVER}_l3",
                "api_paste_config": f"{DAEMONS_ROOT}/usr/share/neutron-common/api-paste.ini",
                "api_workers": 0,
                "rpc_workers": 0,
                "state_path": "/var/lib/neutron",
            },
            "database": {"connection": database("neutron")},
            "keystone_authtoken": _as_service(),
            "nova": _as_service(),
            "quotas": {
                f"quota_{what}": -1
                for what in (
                    "network",
                    "subnet",
                    "port",
                    "router",
                    "floatingip",
                    "security_group",
                    "security_group_rule",
                )
            },
            "oslo_concurrency": lock_path,
            "oslo_messaging_notifications": no_notifications,
            "ml2": {
                "type_drivers": "flat,vxlan",
                "tenant_network_types": "vxlan",
                "mechanism_drivers": DRIVER,
                "extension_drivers": "port_security",
            },
            "ml2_type_flat": {"flat_networks": PHYSICAL_NETWORK},
            "ml2_type_vxlan": {"vni_ranges": "1:1000"},
        },
        "etc/nova/nova.conf": _nova(message_queue, lock_path, no_notifications),
        # For all of Nova's daemons but nova-compute, which refuses to start where it could reach a database.
        "etc/nova/database.conf": {
            "api_database": {"connection": database("nova_api")},
            "database": {"connection": database("nova")},
        },
    }


def _nova(
    message_queue: dict[str, str], lock_path: dict[str, str], no_notifications: dict[str, str]
) -> dict[str, Mapping[str, object]]:
    as_root = {"helper_command": "privsep-helper --config-file /etc/nova/nova.conf"}
    return {
        "DEFAULT": {
            # Seconds: a guest that is still booting does not heed its power button.
            "shutdown_timeout": 5,
            **message_queue,
            "host": HOST,
            "my_ip": LOOPBACK,
            "state_path": "/var/lib/nova",
            "enabled_apis": "osapi_compute",
            "osapi_compute_listen": LOOPBACK,
            "osapi_compute_workers": 1,
            "compute_driver": "libvirt.LibvirtDriver",
            "report_interval": 2,  # seconds: soon known to be up
            "force_config_drive": True,  # there is no metadata service
            "force_raw_images": False,
            # Nobody reports that a port has been plugged.
            "vif_plugging_is_fatal": False,
            "vif_plugging_timeout": 0,
            # The machines are few; what this machine has is not the test's to count.
            "reserved_host_memory_mb": 0,
            "ram_allocation_ratio": 16,
            "cpu_allocation_ratio": 64,
            "disk_allocation_ratio": 16,
        },
        "wsgi": {"api_paste_config": f"{DAEMONS_ROOT}/usr/share/nova-common/api-paste.ini"},
        "conductor": {"workers": 1},
        "scheduler": {"workers": 1},
        "quota": dict.fromkeys(("instances", "cores", "ram", "key_pairs", "server_groups"), -1),
        "keystone_authtoken": _as_service(),
        "placement": _as_service(),
        "neutron": _as_service(),
        "glance": _as_service(),
        "vnc": {"enabled": False},
        "nova_sys_admin": as_root,
        "vif_plug_linux_bridge_privileged": as_root,
        "libvirt": {
            "virt_type": "qemu",
            "cpu_mode": "none",
            "connection_uri": "qemu:///system",
            "disk_cachemodes": "file=unsafe",  # no machine outlives the cloud
        },
        "oslo_concurrency": lock_path,
        "oslo_messaging_notifications": no_notifications,
    }


# Everything runs as root, and nothing has to be kept apart from anything else.
_LIBVIRT: dict[str, dict[str, object]] = {
    "etc/libvirt/libvirtd.conf": {"auth_unix_rw": "none", "auth_unix_ro": "none"},
    "etc/libvirt/qemu.conf": {
        "user": "root",
        "group": "root",
        "security_driver": "none",
        "stdio_handler": "file",
        "cgroup_controllers": [],
        "namespaces": [],
        "remember_owner": 0,
    },
}
_DIRECTORIES = ("var/lib/keystone", "var/lib/glance/images", "var/lib/nova/instances", "var/lib/neutron")


def write(root: Path) -> None:
    """Writes all of the daemons' configuration below this root."""
    for name, sections in _files().items():
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_dict(sections)
        path = _parent_made(root / name)
        with path.open("w") as file:
            parser.write(file)
    for name, settings in _LIBVIRT.items():
        lines = (f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        _parent_made(root / name).write_text("".join(lines))
    for directory in _DIRECTORIES:
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / "etc/resolv.conf").write_text("")  # there is nobody to ask
    (root / "etc/hosts").write_text(f"{LOOPBACK} localhost {HOST}\n")
    _write_driver(root / DRIVER_DIRECTORY)


def _write_driver(directory: Path) -> None:
    """Lays Neutron's driver where Python finds it, with the entry points by which Neutron does."""
    source = Path(__file__).with_name("files") / f"{DRIVER}.py"
    _parent_made(directory / source.name).write_text(source.read_text())
    entry_points = configparser.ConfigParser()
    entry_points.read_dict(
        {
            "neutron.ml2.mechanism_drivers": {DRIVER: f"{DRIVER}:Driver"},
            "neutron.service_plugins": {f"{DRIVER}_l3": f"{DRIVER}:Router"},
        }
    )
    information = directory / f"{DRIVER}-1.dist-info"
    _parent_made(information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DRIVER}\nVersion: 1\n")
    with (information / "entry_points.txt").open("w") as file:
        entry_points.write(file)


def _parent_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
