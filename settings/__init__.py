"""What a stack may say: typed, validated, and the only code that reads the stack's own configuration."""

from settings.errors import SettingsError
from settings.layers import Owner, effective
from settings.load import load
from settings.model import (
    BootVolume,
    DockerHost,
    DockerVolume,
    KeyPair,
    Limits,
    Manager,
    OpenStackHost,
    Proxy,
    Prune,
    Runner,
    Settings,
    Ssh,
    Updates,
)

__all__ = [
    "BootVolume",
    "DockerHost",
    "DockerVolume",
    "KeyPair",
    "Limits",
    "Manager",
    "OpenStackHost",
    "Owner",
    "Proxy",
    "Prune",
    "Runner",
    "Settings",
    "SettingsError",
    "Ssh",
    "Updates",
    "effective",
    "load",
]
