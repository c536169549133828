"""The files that a stack's settings become, config.toml and user_data, without a cloud and without secrets.

In a plan they are secrets as a whole, since each holds one. So the stack is declared here once more, as in `__main__`,
but to nobody: Pulumi's mocks answer in the place of the engine, with words where there would be secrets and ids.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.runtime import mocks
from pulumi.runtime import settings as runtime
from pydantic import BaseModel, SecretStr

from clients.lookups import Lookups, Machine, cache_endpoint
from clients.openstack import Catalogue, CloudAccess, Endpoint
from clients.state import State
from components.fleet import Fleet, FleetArgs
from components.leftovers import Leftovers
from renderers.user_data import unpacked
from review.plan import SECRET
from settings import OpenStackHost, Settings, host_names

USER_DATA = "user_data"
_PROJECT = "gitlab-runners"
# Stands for the MTU that Neutron tells, which only the preview asks.
_NETWORKS_MTU = 65521
_PLACEHOLDERS = {str(_NETWORKS_MTU): "<MTU of the network>"}
_CLOUD = CloudAccess("<Keystone>", None, "<interface>", "", "")
_CLOUDS_S3 = Endpoint("<S3 API of the cloud>", insecure=False)
# What marks a secret among the properties of a resource (Pulumi's SDKs, "rpc.SigKey" and "rpc.SecretSig").
_SIGNATURE = "4dabf18193072939515e22adb298388d"


@dataclass(frozen=True)
class FileChange:
    """A file of one resource, before and after."""

    resource: str
    path: str
    before: str
    after: str


def changed_files_of(stack: str, before: Settings, after: Settings, urls: tuple[str, str]) -> list[FileChange]:
    """The files that differ between two states of a stack; `urls` is GitLab's URL in each, where they do not say."""
    names = runners_to_declare(before, after, urls)
    if not names:
        return []
    # A stack has a runner at least; one that both have changes nothing.
    names |= set([name for name in before.runners if name in after.runners][:1])
    old, new = (
        files_of(stack, _only(settings, names), url) for settings, url in zip((before, after), urls, strict=True)
    )
    return [
        FileChange(*name, old.get(name, ""), new.get(name, ""))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def runners_to_declare(before: Settings, after: Settings, urls: tuple[str, str]) -> set[str]:
    """Runners whose files may differ: those that are not the same, or all when what they share is not."""
    names = {*before.runners, *after.runners}
    shared = [settings.model_dump(exclude={"runners", "protect"}) for settings in (before, after)]
    if shared[0] != shared[1] or urls[0] != urls[1]:
        return names
    return {name for name in names if before.runners.get(name) != after.runners.get(name)}


def _only(settings: Settings, names: set[str]) -> Settings:
    return settings.model_copy(
        update={"runners": {name: runner for name, runner in settings.runners.items() if name in names}}
    )


class _Nobody(pulumi.runtime.Mocks):
    """Keeps what is declared, and answers what only the real thing would know."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], str] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        inputs = _plain(args.inputs)
        for upload in inputs.get("uploads") or ():
            self.files[args.name, str(upload["file"])] = str(upload["content"])
        if "userData" in inputs:
            self.files[args.name, USER_DATA] = unpacked(str(inputs["userData"]))
        computed: dict[str, dict[str, Any]] = {
            "Port": {"allFixedIps": ["address"]},
            "FloatingIp": {"address": "address"},
            "UserRunner": {"token": "<authentication token>"},
            "Volume": {"name": args.name, "mountpoint": f"/var/lib/docker/volumes/{args.name}/_data"},
            "RemoteImage": {"imageId": "image"},
            "Container": {"name": inputs.get("name", args.name)},
            "Ec2CredentialV3": {"access": "<access key>", "secret": "<secret key>"},
            "ApplicationCredential": {"secret": "<secret of an application credential>"},
            "HostKey": {"private_key": "<private SSH host key>\n", "public_key": "<public SSH host key>"},
        }
        type_ = args.typ.rpartition(":")[2]
        return "0" if type_ == "UserRunner" else args.name, inputs | computed.get(type_, {})

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise LookupError(f"the program asks a provider for {args.token}")


class _NoCallbacks:
    def register_resource_hook(self, _hook: pulumi.ResourceHook) -> None:
        """Nothing is created that a hook could look at."""

    def register_error_hook(self, _hook: pulumi.ErrorHook) -> None:
        """Nothing fails either."""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _plain(value["value"]) if _SIGNATURE in value else {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def files_of(stack: str, settings: Settings, gitlab_url: str) -> dict[tuple[str, str], str]:
    """The files of a stack by resource and path: of its first host with every runner, the others' differ in names
    alone."""
    host = settings.host
    runners = {name: runner.model_copy(update={"hosts": ()}) for name, runner in settings.runners.items()}
    settings = settings.model_copy(update={"runners": runners})
    machines, workers = {}, {}
    if isinstance(host, OpenStackHost):
        settings = settings.model_copy(update={"host": host.model_copy(update={"count": 1})})
        networks = [host.network, *host.additional_networks]
        mtu = host.mtu if isinstance(host.mtu, int) else _NETWORKS_MTU
        machines = {name: Machine("flavor", "image", networks, mtu) for name in host_names(stack, 1)}
        workers = {name: machines[f"{stack}-1"] for name, runner in runners.items() if runner.autoscaler is not None}
    endpoint = cache_endpoint(settings.cache, lambda: _CLOUDS_S3) if settings.cache is not None else None
    nobody, state = _Nobody(), State(_no_state)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        mocks.set_mocks(nobody, project=_PROJECT, stack=stack, preview=False)
        runtime.SETTINGS.callbacks = _NoCallbacks()

        @pulumi.runtime.test  # type: ignore[untyped-decorator]
        def declare() -> None:
            Fleet(
                stack,
                FleetArgs(
                    project=_PROJECT,
                    stack=stack,
                    settings=settings,
                    lookups=Lookups(machines, {}, cache_endpoint=endpoint, workers=workers, cloud=_CLOUD),
                    leftovers=Leftovers(Catalogue(_no_cloud), None, state),
                    state=state,
                    gitlab_config={},
                    gitlab_url=settings.gitlab_url or gitlab_url,
                ),
            )

        declare()
    finally:
        loop.close()
    secrets = [secret for secret in _secrets(settings) if secret]
    return {name: _without_placeholders(_without(secrets, text)) for name, text in nobody.files.items()}


def _secrets(value: Any) -> Iterator[str]:
    """Secrets that stand in a stack's file as they are: nobody has to encrypt them."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        yield from _secrets([getattr(value, name) for name in type(value).model_fields])
    elif isinstance(value, Mapping):
        yield from _secrets(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _secrets(each)


def _without(secrets: Sequence[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, SECRET)
    return text


def _no_cloud() -> Any:
    raise LookupError("the program asks the cloud")


def _no_state() -> str:
    raise LookupError("the program reads the state")


def _without_placeholders(text: str) -> str:
    for placeholder, words in _PLACEHOLDERS.items():
        text = text.replace(placeholder, words)
    return text
