"""Lets the jobs on a virtual machine end before the machine goes.

What is declared on a machine's Docker is deleted with the machine, without a call to its Docker, so that a machine that
is already gone never stands in the way. The one thing worth a call is the drain, and so it is a resource of its own:
creating it does nothing, deleting it sends SIGQUIT to the runner managers and waits until their jobs have ended. Jobs
that run on after the grace are aborted only where the operator says so; else the deletion fails, and can be repeated.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, Resource

from clients import ClientError
from clients.managers import SERVER_LABEL
from clients.ssh import SSH_FAILED, Login, run
from components.abort import ABORT_JOBS, aborts_jobs
from components.openstack_client import OpenStackProvider
from renderers.metrics import RUNNER_LABEL

# Exit status of timeout(1) when the time is over.
_TIME_IS_OVER = 124
# GitLab Runner takes 30 s at most (shutdown_timeout) to abort its jobs and to tell GitLab.
_ABORT_SECONDS = 60


class _DrainProvider(OpenStackProvider):
    replacing = frozenset({"server"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(str(props["server"]), dict(props))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        # SSH would wait for a minute and more for a machine that cannot answer.
        if self._status(_props) in (None, "SHUTOFF"):
            return
        stack = _props.get("stack")
        aborts = aborts_jobs(stack, os.environ)
        signal, seconds = ("TERM", _ABORT_SECONDS) if aborts else ("QUIT", int(_props["grace"]))
        # Without a restart policy, or dockerd would start them again.
        command = f"""\
managers=$(docker ps --quiet --filter label={SERVER_LABEL}={_props["server"]} --filter label={RUNNER_LABEL}) || exit
[ -n "$managers" ] || exit 0
docker update --restart no $managers >/dev/null
docker kill --signal {signal} $managers >/dev/null
timeout {seconds} docker wait $managers >/dev/null"""
        login = Login(_props["user"], int(_props["port"]), list(_props["options"]))
        answer = asyncio.run(run(_props["address"], login, command))
        if answer.status == _TIME_IS_OVER and not aborts:
            raise ClientError(
                f"jobs still run on {_props['address']} after {seconds} s; wait for them and repeat this, or abort "
                f"them with {ABORT_JOBS}={stack} in the environment"
            )
        if answer.status not in (0, _TIME_IS_OVER) and (
            answer.status != SSH_FAILED or self._status(_props) == "ACTIVE"
        ):
            raise ClientError(
                f"cannot drain {_props['address']}: {' '.join(answer.error.split())}; jobs may be running there. "
                f"Mend the machine, or give its jobs up with `openstack server stop {_props['server']}`"
            )

    def _status(self, props: dict[str, Any]) -> str | None:
        """Nova's status of the machine; None when it is gone."""
        with self.openstack(props) as cloud:
            found = cloud.compute.find_server(props["server"])
        return None if found is None else str(found.status)


@dataclass(frozen=True)
class DrainArgs:
    """`server` is Nova's id; `address`, `user`, `port` and `options` are for `ssh`; `grace` is in seconds.

    `cloud` is what the stack's layers say of the openstack provider.
    """

    server: pulumi.Input[str]
    address: pulumi.Input[str]
    user: str
    port: int
    options: pulumi.Input[list[str]]
    grace: int
    cloud: Mapping[str, str] | None = None


class Drain(Resource, module="docker", name="Drain"):
    """Deleting this lets the runner managers of a virtual machine end their jobs, or aborts them."""

    def __init__(self, name: str, args: DrainArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(_DrainProvider(), name, vars(args) | {"stack": pulumi.get_stack()}, opts)
