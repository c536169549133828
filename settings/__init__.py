"""What a stack may say: typed, validated, and the only code that reads the stack's own configuration."""

from settings.errors import SettingsError
from settings.hosts import host_names, hosts_of, lives_on
from settings.layers import Owner, effective
from settings.load import load
from settings.model import (
    MINIMUM_MTU,
    Autoscaler,
    AutoscalerPolicy,
    BootVolume,
    DockerHost,
    DockerVolume,
    HostOverride,
    KeyPair,
    Limits,
    Manager,
    ObjectStoreCache,
    OpenStackHost,
    Proxy,
    Prune,
    Runner,
    S3Cache,
    Settings,
    Ssh,
    Updates,
)

__all__ = [
    "MINIMUM_MTU",
    "Autoscaler",
    "AutoscalerPolicy",
    "BootVolume",
    "DockerHost",
    "DockerVolume",
    "HostOverride",
    "KeyPair",
    "Limits",
    "Manager",
    "ObjectStoreCache",
    "OpenStackHost",
    "Owner",
    "Proxy",
    "Prune",
    "Runner",
    "S3Cache",
    "Settings",
    "SettingsError",
    "Ssh",
    "Updates",
    "effective",
    "host_names",
    "hosts_of",
    "lives_on",
    "load",
]
