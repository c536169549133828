"""The openstack provider."""

from collections.abc import Callable, Mapping
from typing import Any

import pulumi
import pulumi_openstack as openstack
from pulumi.runtime.config import is_config_secret
from pydantic.alias_generators import to_snake

from clients.openstack import CONFIGURATION
from clients.provider_values import flag, number, table

# Keys that are not text.
_TYPES: Mapping[str, Callable[[str, str], Any]] = {
    "allowReauth": flag,
    "delayedAuth": flag,
    "disableNoCacheHeader": flag,
    "enableLogging": flag,
    "endpointOverrides": table,
    "insecure": flag,
    "maxRetries": number,
    "swauth": flag,
    "systemScope": flag,
}
KEYS = frozenset({*CONFIGURATION, *_TYPES, "endpointType"})
"""Keys of the provider's configuration that are handed on."""


def openstack_provider(name: str, config: Mapping[str, str], opts: pulumi.ResourceOptions) -> openstack.Provider:
    """The openstack provider from its own configuration (`config`, without the namespace) and environment variables.

    It is explicit for stacks with layers: the engine configures the default one from the stack's own file alone.
    Raises ClientError for a value that is none of its key.
    """
    arguments: dict[str, Any] = {}
    for key, value in config.items():
        if key in KEYS:
            typed = _TYPES[key](f"openstack:{key}", value) if key in _TYPES else value
            arguments[to_snake(key)] = pulumi.Output.secret(typed) if is_config_secret(f"openstack:{key}") else typed
    return openstack.Provider(name, **arguments, opts=opts)
