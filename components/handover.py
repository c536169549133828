"""Hands the jobs' slots of a host from managers that are replaced to their successors.

A new manager starts while the old one still has jobs, and waits until it gets slots: `components.docker_connection`
holds it back before it starts. This resource, which depends on the new ones, ends the old ones and gives the new ones
what they leave, before Pulumi removes the old ones. Its property changes with the managers, and is stored when all is
handed over: what broke off is repeated by the next update.
"""

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, UpdateResult

from clients.managers import Engine, hand_over
from components.dynamic import Provider


class _HandoverProvider(Provider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        _hand_over(props)
        return CreateResult(uuid4().hex, dict(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=_olds.get("managers") != _news.get("managers"))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        _hand_over(_news)
        return super().update(_id, _olds, _news)


def _hand_over(props: dict[str, Any]) -> None:
    async def run() -> None:
        engine = Engine(props["url"], props["options"], props.get("cert_path"))
        successors = {
            runner: {"id_": id_, **{key: int(number) for key, number in props["slots"][runner].items()}}
            for runner, id_ in props["managers"].items()
        }
        await hand_over(engine, props["labels"], successors, int(props["grace"]))

    asyncio.run(run())


@dataclass(frozen=True)
class HandoverArgs:
    """`url`, `options` (for `ssh`) and `cert_path` lead to the host's Docker; `grace` is in seconds.

    `labels` are those of the host's managers. By runner: `managers` are the containers' ids, `slots` as in
    RunnerManager.
    """

    url: pulumi.Input[str]
    options: pulumi.Input[list[str]]
    cert_path: str | None
    labels: dict[str, pulumi.Input[str]]
    managers: dict[str, pulumi.Input[str]]
    slots: dict[str, dict[str, int]]
    grace: int


class Handover(Resource, module="docker", name="Handover"):
    """Replacing a manager updates this: the old one ends with its jobs, the new one gets its slots."""

    def __init__(self, name: str, args: HandoverArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(_HandoverProvider(), name, vars(args), opts)
