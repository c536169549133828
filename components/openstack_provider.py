"""The openstack provider."""

import json
from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_openstack as openstack
from pulumi.runtime.config import is_config_secret
from pydantic.alias_generators import to_snake

from clients.openstack import CONFIGURATION

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
KEYS = {*CONFIGURATION, *_NO_TEXT, "endpointType"}


def openstack_provider(name: str, config: Mapping[str, str], opts: pulumi.ResourceOptions) -> openstack.Provider:
    """The openstack provider from its own configuration (`config`, without the namespace) and environment variables.

    It is explicit for stacks with layers: the engine configures the default one from the stack's own file alone.
    """
    arguments: dict[str, Any] = {}
    for key, value in config.items():
        if key in KEYS:
            typed = json.loads(value) if key in _NO_TEXT else value
            arguments[to_snake(key)] = pulumi.Output.secret(typed) if is_config_secret(f"openstack:{key}") else typed
    return openstack.Provider(name, **arguments, opts=opts)
