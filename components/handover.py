"""Hands the jobs' slots of a host from managers that are replaced to their successors.

A new manager starts while the old one still has jobs, and waits until it gets slots: `components.docker_connection`
holds it back before it starts. This resource, which depends on the new ones, ends the old ones and gives the new ones
what they leave, before Pulumi removes the old ones. Its property changes with the managers, and is stored when all is
handed over: what broke off is repeated by the next update.

On a Docker Engine that existed already it also lets the jobs end before the managers go, as `components.drain` does on
a machine. Where that broke off without undoing itself, the program sees managers that do not run, and this starts them.
"""

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, UpdateResult

from clients import ClientError
from clients.managers import Engine, Signal, hand_over, let_end
from components.abort import ABORT_JOBS, aborts_jobs
from components.dynamic import Provider
from renderers.drain import SERVER_LABEL, STACK_LABEL

# Containers of managers that stay, by what this process was asked. The engine starts it anew for each command.
_kept: set[str] = set()


class _HandoverProvider(Provider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        asyncio.run(_hand_over(props))
        return CreateResult(uuid4().hex, self.declared(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        # All of them are one Unknown where the engine asks what would follow if a machine was replaced.
        if self.is_declared(_id) and isinstance(_news["managers"], dict):
            _kept.update(_news["managers"].values())
        return DiffResult(changes=_olds.get("managers") != _news.get("managers") or bool(_news.get("stopped")))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        asyncio.run(_hand_over(_news))
        return super().update(_id, _olds, _news)

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        # Machines have a drain.
        if SERVER_LABEL not in _props["labels"]:
            asyncio.run(_let_end(_props))

    def declared(self, props: dict[str, Any]) -> dict[str, Any]:
        # What is stopped is so once.
        return {key: value for key, value in super().declared(props).items() if key != "stopped"}


def _engine(props: dict[str, Any]) -> Engine:
    return Engine(props["url"], props["options"], props.get("cert_path"))


async def _hand_over(props: dict[str, Any]) -> None:
    engine, labels, managers = _engine(props), props["labels"], props["managers"]
    _kept.update(managers.values())
    await engine.resume(labels, managers.values())
    successors = {
        runner: {"id_": id_, **{key: int(number) for key, number in props["slots"][runner].items()}}
        for runner, id_ in managers.items()
    }
    await hand_over(engine, labels, successors, int(props["grace"]))


async def _let_end(props: dict[str, Any]) -> None:
    stack, grace = props["labels"][STACK_LABEL], int(props["grace"])
    end = time.monotonic() + grace

    def go_on() -> None:
        if time.monotonic() > end:
            raise ClientError(
                f"jobs still run on {props['url']} after {grace} s; wait for them and repeat this, or abort them with "
                f"{ABORT_JOBS}={stack} in the environment. Until then its managers go on"
            )

    # Replaced on its own (`--replace`, `state taint`): the managers stay.
    managers = set(props["managers"].values()) - _kept
    signal: Signal = "TERM" if aborts_jobs(stack, os.environ) else "QUIT"
    await let_end(_engine(props), props["labels"], managers, signal, go_on)


@dataclass(frozen=True)
class HandoverArgs:
    """`url`, `options` (for `ssh`) and `cert_path` lead to the host's Docker; `grace` is in seconds.

    `labels` are those of the host's managers. By runner: `managers` are the containers' ids, `slots` as in
    RunnerManager. `stopped` are runners whose managers do not run, where the program has looked.
    """

    url: pulumi.Input[str]
    options: pulumi.Input[list[str]]
    cert_path: str | None
    labels: dict[str, pulumi.Input[str]]
    managers: dict[str, pulumi.Input[str]]
    slots: dict[str, dict[str, int]]
    grace: int
    stopped: pulumi.Input[list[str]] | None = None


class Handover(Resource, module="docker", name="Handover"):
    """Replacing a manager updates this: the old one ends with its jobs, the new one gets its slots."""

    def __init__(self, name: str, args: HandoverArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(_HandoverProvider(), name, vars(args), opts)
