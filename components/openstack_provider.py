"""Base of the dynamic providers that speak to OpenStack themselves."""

from openstack.connection import Connection
from pulumi.dynamic import ConfigureRequest, ResourceProvider

from clients.openstack import CONFIGURATION, connect


class OpenStackProvider(ResourceProvider):
    """Takes the stack's configuration of the openstack provider, so that both speak to the same cloud."""

    _openstack: dict[str, str]

    def configure(self, req: ConfigureRequest) -> None:
        found = {key: req.config.get(f"openstack:{key}") for key in CONFIGURATION}
        self._openstack = {key: str(value) for key, value in found.items() if value is not None}

    def connect(self) -> Connection:
        """A new connection. Raises ClientError."""
        return connect(self._openstack)
