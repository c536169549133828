"""The openstack provider, and the base of the dynamic providers that speak to OpenStack themselves."""

import json
from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_openstack as openstack
from openstack.connection import Connection
from pulumi.dynamic import ConfigureRequest, ResourceProvider
from pulumi.runtime.config import is_config_secret
from pydantic.alias_generators import to_snake

from clients.openstack import CONFIGURATION, connect

# The other keys of the provider's configuration; all but these and `insecure` are text.
_NO_TEXT = (
    "allowReauth",
    "delayedAuth",
    "disableNoCacheHeader",
    "enableLogging",
    "endpointOverrides",
    "insecure",
    "maxRetries",
    "swauth",
    "systemScope",
)
_KEYS = {*CONFIGURATION, *_NO_TEXT, "endpointType"}


def openstack_provider(name: str, config: Mapping[str, str], opts: pulumi.ResourceOptions) -> openstack.Provider:
    """The openstack provider from its own configuration (`config`, without the namespace) and environment variables.

    It is explicit for stacks with layers: the engine configures the default one from the stack's own file alone.
    """
    arguments: dict[str, Any] = {}
    for key, value in config.items():
        if key in _KEYS:
            typed = json.loads(value) if key in _NO_TEXT else value
            arguments[to_snake(key)] = pulumi.Output.secret(typed) if is_config_secret(f"openstack:{key}") else typed
    return openstack.Provider(name, **arguments, opts=opts)


class OpenStackProvider(ResourceProvider):
    """Takes the stack's configuration of the openstack provider, so that both speak to the same cloud.

    What the stack's layers say of it is in a resource's property `cloud`.
    """

    _openstack: dict[str, str]

    def configure(self, req: ConfigureRequest) -> None:
        found = {key: req.config.get(f"openstack:{key}") for key in CONFIGURATION}
        self._openstack = {key: str(value) for key, value in found.items() if value is not None}

    def connect(self, props: Mapping[str, Any]) -> Connection:
        """A new connection for the resource with these properties. Raises ClientError."""
        return connect({**(props.get("cloud") or {}), **self._openstack})
