"""Base of the dynamic providers that speak to OpenStack themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pulumi.dynamic import Config, ConfigureRequest

from components.dynamic import Provider

if TYPE_CHECKING:
    from openstack.connection import Connection


class OpenStackProvider(Provider):
    """Takes the stack's configuration of the openstack provider, so that both speak to the same cloud.

    What the stack's layers say of it is in a resource's property `cloud`, None for a stack without layers. Where there
    are layers, the stack's own configuration says who logs in and not where: a `destroy` hands it over unchecked.
    """

    _config: Config

    def configure(self, req: ConfigureRequest) -> None:
        self._config = req.config

    @contextmanager
    def openstack(self, props: Mapping[str, Any]) -> "Iterator[Connection]":
        """A new connection for the resource with these properties; what goes wrong with it is a ClientError."""
        # Here, because every preview imports this module, and hardly any speaks to OpenStack by it.
        from clients.openstack import CONFIGURATION, connect, explained  # noqa: PLC0415
        from settings.ownership import configuration  # noqa: PLC0415

        own = {key: self._config.get(f"openstack:{key}") for key in CONFIGURATION}
        with explained():
            yield connect(configuration("openstack", own, props.get("cloud")))
