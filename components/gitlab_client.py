"""Base of the dynamic providers that speak to GitLab themselves."""

import os
from collections.abc import Mapping

from pulumi.dynamic import ConfigureRequest, ResourceProvider

from clients.gitlab import CONFIGURATION, GitLab, instance_url


class GitLabProvider(ResourceProvider):
    """Takes the stack's configuration of the gitlab provider, so that both speak to the same GitLab.

    What the stack's layers say of it is in a resource's property `gitlab`.
    """

    _gitlab: dict[str, str]

    def configure(self, req: ConfigureRequest) -> None:
        found = {key: req.config.get(f"gitlab:{key}") for key in CONFIGURATION}
        self._gitlab = {key: str(value) for key, value in found.items() if value is not None}

    def gitlab(self, props: Mapping[str, object]) -> GitLab:
        """A client for the resource with these properties. Raises ClientError."""
        shared = props.get("gitlab")
        config = {**(shared if isinstance(shared, dict) else {}), **self._gitlab}
        return GitLab(instance_url(config, os.environ), config, os.environ)
