"""Lets the jobs on a virtual machine end before the machine goes.

What is declared on a machine's Docker is deleted with the machine, without a call to its Docker, so that a machine that
is already gone never stands in the way. The one thing worth a call is the drain, and so it is a resource of its own:
creating it does nothing, deleting it sends SIGQUIT to the runner managers and waits until their jobs have ended.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, UpdateResult

from clients import ClientError
from clients.openstack import explained
from clients.ssh import SSH_FAILED, Login, run
from components.openstack_provider import OpenStackProvider

SERVER_LABEL = "gitlab-runners.server"
"""Label of every runner manager on a virtual machine: the machine's id."""
# Exit status of timeout(1) when the time is over.
_GRACE_IS_OVER = 124


class _DrainProvider(OpenStackProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(str(props["server"]), dict(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        changed = [key for key, value in _news.items() if not key.startswith("__") and _olds.get(key) != value]
        return DiffResult(changes=bool(changed), replaces=[key for key in changed if key == "server"])

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(dict(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        # Without a restart policy, or dockerd would start them again.
        command = f"""\
managers=$(docker ps --quiet --filter label={SERVER_LABEL}={_props["server"]}) || exit
[ -n "$managers" ] || exit 0
docker update --restart no $managers >/dev/null
docker kill --signal QUIT $managers >/dev/null
timeout {int(_props["grace"])} docker wait $managers >/dev/null"""
        login = Login(_props["user"], int(_props["port"]), list(_props["options"]))
        answer = asyncio.run(run(_props["address"], login, command))
        drained = answer.status in (0, _GRACE_IS_OVER)
        if not drained and (answer.status != SSH_FAILED or self._is_running(_props)):
            raise ClientError(
                f"cannot drain {_props['address']}: {' '.join(answer.error.split())}; jobs may be running there. "
                f"Mend the machine, or give its jobs up with `openstack server stop {_props['server']}`"
            )

    def _is_running(self, props: dict[str, Any]) -> bool:
        with explained():
            found = self.connect(props).compute.find_server(props["server"])
        return found is not None and found.status == "ACTIVE"


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
    """Deleting this sends SIGQUIT to the runner managers of a virtual machine and waits for their jobs."""

    def __init__(self, name: str, args: DrainArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(_DrainProvider(), name, vars(args), opts)
