"""Lets the jobs on a virtual machine end before the machine goes.

What is declared on a machine's Docker is deleted with the machine, without a call to its Docker, so that a machine that
is already gone never stands in the way. The one thing worth a call is the drain, and so it is a resource of its own:
deleting it sends SIGQUIT to the runner managers and waits until their jobs have ended. Jobs that run on after the grace
are aborted only where the operator says so; else the deletion fails, and can be repeated.

What a deletion stopped is at work again when the machine stays: one that does not end well undoes itself on the
machine, and after one that ended well creating the resource anew starts the managers.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource

from clients import ClientError
from clients.managers import Engine
from clients.ssh import SSH_FAILED, Login, run
from components.abort import ABORT_JOBS, aborts_jobs
from components.openstack_client import OpenStackProvider
from renderers.drain import SERVER_LABEL, TIME_IS_OVER, drain

# GitLab Runner takes 30 s at most (shutdown_timeout) to abort its jobs and to tell GitLab.
_ABORT_SECONDS = 60
# Servers that keep a drain, with their addresses, by what this process was asked: the engine starts one a command.
_kept: set[tuple[str, str]] = set()


class _DrainProvider(OpenStackProvider):
    replacing = frozenset({"server"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        login = Login(props["user"], int(props["port"]), list(props["options"]))
        engine = Engine.of_machine(props["address"], login)
        asyncio.run(engine.resume({SERVER_LABEL: props["server"]}, props["managers"]))
        _kept.add(_machine(props))
        return CreateResult(str(props["server"]), dict(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        found = super().diff(_id, _olds, _news)
        if self.is_declared(_id) and not found.replaces:
            _kept.add(_machine(_olds))
        return found

    def declared(self, props: dict[str, Any]) -> dict[str, Any]:
        # Which managers there are matters when it is created, and then alone.
        return {key: value for key, value in super().declared(props).items() if key != "managers"}

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        server = _props["server"]
        # Replaced on its own (`--replace`, `state taint`): the machine stays, and its jobs too. SSH would wait for a
        # minute and more for a machine that cannot answer.
        if _machine(_props) in _kept or self._status(_props) in (None, "SHUTOFF"):
            return
        stack = _props.get("stack")
        aborts = aborts_jobs(stack, os.environ)
        signal, seconds = ("TERM", _ABORT_SECONDS) if aborts else ("QUIT", int(_props["grace"]))
        login = Login(_props["user"], int(_props["port"]), list(_props["options"]))
        command = drain(server, signal, seconds, even_if_jobs_run=aborts)
        answer = asyncio.run(run(_props["address"], login, command, held=True))
        if answer.status == TIME_IS_OVER and not aborts:
            raise ClientError(
                f"jobs still run on {_props['address']} after {seconds} s; wait for them and repeat this, or abort "
                f"them with {ABORT_JOBS}={stack} in the environment. Until then its managers go on"
            )
        if answer.status not in (0, TIME_IS_OVER) and (answer.status != SSH_FAILED or self._status(_props) == "ACTIVE"):
            raise ClientError(
                f"cannot drain {_props['address']}: {' '.join(answer.error.split())}; jobs may be running there. "
                f"Mend the machine, or give its jobs up with `openstack server stop {server}`"
            )

    def _status(self, props: dict[str, Any]) -> str | None:
        """Nova's status of the machine; None when it is gone, or has no port, so that its jobs are lost."""
        with self.openstack(props) as cloud:
            found = cloud.compute.find_server(props["server"])
            on_network = found is not None and any(True for _ in cloud.network.ports(device_id=found.id))
        return str(found.status) if found is not None and on_network else None


def _machine(props: dict[str, Any]) -> tuple[str, str]:
    return str(props["server"]), str(props.get("address"))


@dataclass(frozen=True)
class DrainArgs:
    """`server` is Nova's id; `address`, `user`, `port` and `options` are for `ssh`; `grace` is in seconds.

    `managers` are the ids of its managers' containers. `cloud` is what the stack's layers say of the openstack
    provider.
    """

    server: pulumi.Input[str]
    address: pulumi.Input[str]
    user: str
    port: int
    options: pulumi.Input[list[str]]
    grace: int
    managers: list[pulumi.Input[str]]
    cloud: Mapping[str, str] | None = None


class Drain(Resource, module="docker", name="Drain"):
    """Deleting this lets the runner managers of a virtual machine end their jobs, or aborts them."""

    def __init__(self, name: str, args: DrainArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(_DrainProvider(), name, vars(args) | {"stack": pulumi.get_stack()}, opts)
