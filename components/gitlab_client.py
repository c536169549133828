"""Base of the dynamic providers that speak to GitLab themselves."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pulumi.dynamic import Config, ConfigureRequest

from components.dynamic import Provider

if TYPE_CHECKING:
    from clients.gitlab import GitLab


class GitLabProvider(Provider):
    """Takes the stack's configuration of the gitlab provider, so that both speak to the same GitLab.

    What the stack's layers say of it is in a resource's property `gitlab`, None where there are none or they say
    nothing. Where there are layers, the stack's own configuration says who logs in and not where: a `destroy` hands it
    over unchecked.
    """

    _config: Config

    def configure(self, req: ConfigureRequest) -> None:
        self._config = req.config

    def gitlab(self, props: Mapping[str, Any]) -> "GitLab":
        """A client for the resource with these properties. Raises ClientError."""
        # Here, because every preview imports this module, and hardly any speaks to GitLab by it.
        from clients.gitlab import CONFIGURATION, GITLAB_COM, GitLab, instance_url  # noqa: PLC0415
        from settings.layers import owner_of  # noqa: PLC0415
        from settings.ownership import configuration  # noqa: PLC0415

        own = {key: self._config.get(f"gitlab:{key}") for key in CONFIGURATION}
        shared = props.get("gitlab")
        if shared is None and owner_of(props.get("stack") or "") is not None:
            shared = {}
        config = configuration("gitlab", own, shared)
        url = instance_url(config, os.environ, GITLAB_COM if shared is None else None)
        return GitLab(url, config, os.environ)
