"""[runners.autoscaler] of config.toml, for the fleeting plugin of OpenStack, and the plugin's clouds.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from renderers.cloud_init import CHECK_MTU

CLOUDS_FILE = "/etc/gitlab-runner/clouds.yaml"
CLOUD_CA_FILE = "/etc/gitlab-runner/cloud-ca.crt"
KEY_FILE = "/etc/gitlab-runner/worker-key"
PLUGINS_FOLDER = "/etc/gitlab-runner/fleeting"
GROUP_KEY = "fleeting-cluster"
"""Metadata by which the plugin knows its workers (fleeting-plugin-openstack, provider.go)."""
_CLOUD = "workers"
# `cloud-init status` exits with 1 for errors, with 2 for warnings (cloud-init docs, "Reported status").
_READY = "cloud-init status --wait >/dev/null; [ $? -ne 1 ] && {check_mtu} && docker version >/dev/null"


@dataclass(frozen=True)
class Policy:
    """When how much room is kept ready; `idle_time` in seconds."""

    periods: Sequence[str]
    timezone: str
    idle_count: int
    idle_time: int


@dataclass(frozen=True)
class Worker:
    """What a worker is made of: OpenStack's ids, the login and its port, and its user_data. `boot_seconds` bounds the
    wait for its boot."""

    name: str
    flavor_id: str
    image_id: str
    network_ids: Sequence[str]
    user: str
    port: int
    user_data: str
    boot_seconds: int
    metadata: Mapping[str, str]
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class Autoscaler:
    """`group` tells the workers of this manager from all others."""

    plugin: str
    group: str
    capacity_per_instance: int
    max_instances: int
    max_use_count: int
    policies: Sequence[Policy]
    worker: Worker
    key_pair: str
    security_group_id: str


def autoscaler_table(scaler: Autoscaler) -> dict[str, Any]:
    """The table; keys as in GitLab Runner's "Advanced configuration" and in the README of the plugin."""
    worker = scaler.worker
    server: dict[str, Any] = {
        # The plugin puts a number there.
        "name": f"{worker.name}-%d",
        "description": f"Worker of {worker.name}",
        "imageRef": worker.image_id,
        "flavorRef": worker.flavor_id,
        "key_name": scaler.key_pair,
        "networks": [{"uuid": network} for network in worker.network_ids],
        "security_groups": [scaler.security_group_id],
        "metadata": dict(worker.metadata),
        "user_data": worker.user_data,
    }
    if worker.tags:
        server["tags"] = list(worker.tags)
    return {
        "plugin": scaler.plugin,
        "capacity_per_instance": scaler.capacity_per_instance,
        "max_instances": scaler.max_instances,
        "max_use_count": scaler.max_use_count,
        "instance_ready_command": _READY.format(check_mtu=CHECK_MTU),
        # The plugin leaves them otherwise.
        "delete_instances_on_shutdown": True,
        "plugin_config": {
            "cloud": _CLOUD,
            "clouds_config": CLOUDS_FILE,
            "name": scaler.group,
            "boot_time": f"{worker.boot_seconds}s",
            "server_spec": server,
        },
        "connector_config": {
            "os": "linux",
            "protocol": "ssh",
            "protocol_port": worker.port,
            "username": worker.user,
            "key_path": KEY_FILE,
            "use_static_credentials": True,
            "use_external_addr": False,
            "keepalive": "30s",
        },
        "policy": [
            {
                "periods": list(policy.periods),
                "timezone": policy.timezone,
                "idle_count": policy.idle_count,
                "idle_time": f"{policy.idle_time}s",
            }
            for policy in scaler.policies
        ],
    }


@dataclass(frozen=True)
class CloudLogin:
    """An application credential, and where it is good. `has_ca` says whether the API's CA is at CLOUD_CA_FILE."""

    auth_url: str
    region: str | None
    interface: str
    credential_id: str
    credential_secret: str = field(repr=False)
    insecure: bool = False
    has_ca: bool = False


def clouds_yaml(login: CloudLogin) -> str:
    """clouds.yaml with one cloud; keys as in openstacksdk's and gophercloud's documentation."""
    cloud: dict[str, Any] = {
        "auth_type": "v3applicationcredential",
        "auth": {
            "auth_url": login.auth_url,
            "application_credential_id": login.credential_id,
            "application_credential_secret": login.credential_secret,
        },
        "interface": login.interface,
    }
    if login.region is not None:
        cloud["region_name"] = login.region
    if login.insecure:
        cloud["verify"] = False
    if login.has_ca:
        cloud["cacert"] = CLOUD_CA_FILE
    return yaml.safe_dump({"clouds": {_CLOUD: cloud}}, sort_keys=False)


def access_rules(compute_path: str, image_path: str) -> list[dict[str, str]]:
    """The API calls of the plugin, as Keystone's access rules; the paths are those of the services' endpoints."""
    compute, image = compute_path.rstrip("/"), image_path.rstrip("/").removesuffix("/v2")
    calls = [
        # The microversions, then the servers.
        ("compute", "GET", f"{compute}/"),
        ("compute", "GET", f"{compute}/servers/detail"),
        ("compute", "POST", f"{compute}/servers"),
        ("compute", "GET", f"{compute}/servers/*"),
        ("compute", "DELETE", f"{compute}/servers/*"),
        # The console, which tells that cloud-init has finished.
        ("compute", "POST", f"{compute}/servers/*/action"),
        ("image", "GET", f"{image}/v2/images/*"),
    ]
    return [{"service": service, "method": method, "path": path} for service, method, path in calls]
