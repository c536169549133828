"""Keeps a registration until the jobs that were taken under it have ended.

When a token is rotated, the runner manager goes on with the new registration while jobs of the old one still run; they
report to GitLab as the old runner. So the old one must not go before them. Creating this does nothing; deleting it,
which comes before the registration's own deletion, waits: for the grace at most, since GitLab also takes the jobs of a
machine that is gone for running, and not at all where jobs are to be aborted.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, Resource

from components.abort import aborts_jobs
from components.gitlab_client import GitLabProvider

_POLL_SECONDS = 2


class _JobsEndedProvider(GitLabProvider):
    replacing = frozenset({"runner"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(str(props["runner"]), dict(props))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        if aborts_jobs(_props.get("stack"), os.environ):
            return
        gitlab = self.gitlab(_props)
        end = time.monotonic() + _props["grace"]
        while gitlab.has_running_jobs(int(_props["runner"])) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)


@dataclass(frozen=True)
class JobsEndedArgs:
    """`runner` is GitLab's id; `grace` is in seconds.

    `gitlab` is what the stack's layers say of the gitlab provider.
    """

    runner: pulumi.Input[str]
    grace: int
    gitlab: Mapping[str, str] | None = None


class JobsEnded(Resource, module="gitlab", name="JobsEnded"):
    """Deleting this waits for the jobs of a runner, `grace` seconds at most."""

    def __init__(self, name: str, args: JobsEndedArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(_JobsEndedProvider(), name, vars(args) | {"stack": pulumi.get_stack()}, opts)
