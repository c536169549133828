"""Base of the dynamic providers that speak to GitLab themselves."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pulumi.dynamic import Config, ConfigureRequest

from components.dynamic import Provider

if TYPE_CHECKING:
    from clients.gitlab import GitLab


class GitLabProvider(Provider):
    """Takes the stack's configuration of the gitlab provider, so that both speak to the same GitLab.

    What the stack's layers say of it is in a resource's property `gitlab`.
    """

    _config: Config

    def configure(self, req: ConfigureRequest) -> None:
        self._config = req.config

    def gitlab(self, props: Mapping[str, object]) -> "GitLab":
        """A client for the resource with these properties. Raises ClientError."""
        # Here, because every preview imports this module, and hardly any speaks to GitLab by it.
        from clients.gitlab import CONFIGURATION, GitLab, instance_url  # noqa: PLC0415

        found = {key: self._config.get(f"gitlab:{key}") for key in CONFIGURATION}
        own = {key: str(value) for key, value in found.items() if value is not None}
        shared = props.get("gitlab")
        config = {**(shared if isinstance(shared, dict) else {}), **own}
        return GitLab(instance_url(config, os.environ), config, os.environ)
