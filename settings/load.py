"""Turns the raw configuration of a stack into Settings, or into one clear line for each mistake."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from settings.advanced import ERROR_TYPE as ADVANCED
from settings.errors import NAMESPACE, SettingsError
from settings.hosts import host_name, host_names
from settings.layers import Layers, decoded
from settings.model import (
    MAXIMUM_CLOUD_TAG_LENGTH,
    MAXIMUM_CLOUD_TAGS,
    MAXIMUM_NAME_LENGTH,
    MAXIMUM_TEXT_LENGTH,
    NAME_SUFFIX_LENGTH,
    Autoscaler,
    AutoscalerPolicy,
    BootVolume,
    DockerHost,
    DockerVolume,
    HostOverride,
    KeyPair,
    Limits,
    Manager,
    ObjectStoreCache,
    OpenStackHost,
    Proxy,
    Prune,
    Runner,
    S3Cache,
    Settings,
    Ssh,
    Updates,
)
from settings.names import name_mistake
from settings.yaml_file import Location

# Values of `kind`, by the key that has one.
_KINDS = {"host": ("openstack", "docker"), "cache": ("s3", "openstack")}
_MODELS: tuple[type[BaseModel], ...] = (
    Settings,
    OpenStackHost,
    DockerHost,
    Prune,
    Updates,
    Proxy,
    Ssh,
    KeyPair,
    BootVolume,
    DockerVolume,
    HostOverride,
    Runner,
    Autoscaler,
    AutoscalerPolicy,
    Limits,
    S3Cache,
    ObjectStoreCache,
    Manager,
)


def load(stack: str, config: Mapping[str, str], layers: Layers | None = None) -> Settings:
    """Validates the configuration of `stack`.

    `config` maps full keys (`gitlab-runners:host`) to values as Pulumi hands them over: text, objects as JSON.
    Keys of other namespaces are ignored. `layers` tell where each value comes from. Raises SettingsError.
    """
    raw: dict[str, Any] = {}
    for key, value in config.items():
        namespace, _, name = key.partition(":")
        if namespace == NAMESPACE:
            raw[name] = decoded(value)
    if not raw:
        raise SettingsError(
            f"{NAMESPACE}: stack {stack} has no configuration; is there a file stacks/Pulumi.{stack}.yaml?"
        )
    try:
        settings = Settings.model_validate_json(json.dumps(raw), by_alias=True, by_name=False)
    except ValidationError as error:
        # The input is left out: it may hold a token.
        raise SettingsError("\n".join(_lines(error.errors(include_url=False), layers))) from None
    _check_names(stack, settings)
    _check_hosts(stack, settings, layers)
    if layers is not None:
        _check_scopes(settings, layers)
        _check_owner_tags(settings, layers)
    _check_descriptions(stack, settings, layers)
    return settings


def _check_names(stack: str, settings: Settings) -> None:
    if (mistake := name_mistake("stack name", stack)) is not None:
        raise SettingsError(mistake)
    container = f"{NAMESPACE}-{stack}-cache"
    named = isinstance(settings.cache, ObjectStoreCache) and settings.cache.container is None
    if named and len(container) > MAXIMUM_NAME_LENGTH:
        raise SettingsError(
            f"{NAMESPACE}:cache: the container's name would have {len(container)} characters; at most "
            f"{MAXIMUM_NAME_LENGTH} are possible: set cache.container"
        )
    host = f"{stack}-{settings.host_count}"
    for runner in settings.runners:
        length = len(f"{host}-{runner}") + NAME_SUFFIX_LENGTH
        if length > MAXIMUM_NAME_LENGTH:
            raise SettingsError(
                f"{NAMESPACE}:runners.{runner}: the container's name would have {length} characters "
                f"(stack, host, runner and a suffix); at most {MAXIMUM_NAME_LENGTH} are possible: shorten the runner's "
                "or the stack's name"
            )


def _check_hosts(stack: str, settings: Settings, layers: Layers | None) -> None:
    """Whether every host that is named exists, and no machine has overrides twice."""
    known = host_names(stack, settings.host_count)
    there = f"there is only {known[0]}" if len(known) == 1 else f"there are {known[0]} to {known[-1]}"
    overrides = settings.host.overrides if isinstance(settings.host, OpenStackHost) else {}
    named: list[tuple[int | str, Location]] = [(key, ("host", "overrides", key)) for key in overrides]
    for name, runner in settings.runners.items():
        named += [(host, ("runners", name, "hosts", index)) for index, host in enumerate(runner.hosts)]
    lines = []
    for reference, location in named:
        if host_name(stack, reference) not in known:
            lines.append((location, f"{json.dumps(reference)}: there is no such host; {there}"))
    for name in known:
        twice = [key for key in overrides if host_name(stack, key) == name]
        if len(twice) > 1:
            lines.append((("host", "overrides", twice[1]), f"is the same host as {json.dumps(twice[0])}; say it once"))
    if lines:
        raise SettingsError("\n".join(f"{_where(place)}: {line}{_origin(place, layers)}" for place, line in lines))


def _check_scopes(settings: Settings, layers: Layers) -> None:
    """Whether every runner belongs to what is its team's in GitLab."""
    if layers.owner is None or layers.scopes is None:
        return
    lines = []
    for name, runner in settings.runners.items():
        asked: tuple[str, int | bool, frozenset[int]] | None = None
        if runner.project is not None and runner.project not in layers.scopes.projects:
            asked = "project", runner.project, layers.scopes.projects
        elif runner.group is not None and runner.group not in layers.scopes.groups:
            asked = "group", runner.group, layers.scopes.groups
        elif runner.instance:
            asked = "instance", True, frozenset()
        if asked is None:
            continue
        key, value, allowed = asked
        origin = layers.origin((f"{NAMESPACE}:runners", name, key))
        known = ", ".join(map(str, sorted(allowed))) or "none"
        reason = "takes jobs of every team" if key == "instance" else f"is not a {key} of this team, which has {known}"
        lines.append(
            f"{NAMESPACE}:runners.{name}.{key}: {json.dumps(value)}: {reason}; {layers.scopes.origin} says what the "
            f"team {layers.owner.team} has ({origin})"
        )
    if lines:
        raise SettingsError("\n".join(lines))


def _check_descriptions(stack: str, settings: Settings, layers: Layers | None) -> None:
    """Whether GitLab takes every description with what is added to it, and each is one runner's: by it the stack finds
    what an interrupted update registered."""
    shared = layers is not None and layers.owner is not None
    lines = []
    first: dict[str, str] = {}
    for name, runner in settings.runners.items():
        if runner.scope is None:
            continue
        place: Location = ("runners", name, "description")
        description = runner.registered_as(stack, name, shared=shared)
        if len(description) > MAXIMUM_TEXT_LENGTH:
            lines.append(
                f"{_where(place)}: has {len(description)} characters with the stack's name, which is added to it; "
                f"GitLab takes {MAXIMUM_TEXT_LENGTH}{_origin(place, layers)}"
            )
        other = first.setdefault(description, name)
        if other != name:
            lines.append(
                f"{_where(place)}: {json.dumps(description)}: is the description of the runner {other} too; give each "
                f"its own{_origin(place, layers)}"
            )
    if lines:
        raise SettingsError("\n".join(lines))


def _check_owner_tags(settings: Settings, layers: Layers) -> None:
    """Whether OpenStack takes the tags that name the owner, besides the stack's own."""
    if layers.owner is None or not isinstance(settings.host, OpenStackHost):
        return
    lines = [
        f"stack name {layers.stack}: the tag {tag} has {len(tag)} characters; OpenStack takes "
        f"{MAXIMUM_CLOUD_TAG_LENGTH}: shorten the team's or the environment's name"
        for tag in layers.owner.tags
        if len(tag) > MAXIMUM_CLOUD_TAG_LENGTH
    ]
    number = len(settings.host.tags) + len(layers.owner.tags)
    if number > MAXIMUM_CLOUD_TAGS:
        place = ("host", "tags")
        lines.append(
            f"{_where(place)}: there are {number} tags with those of the owner, which are added; OpenStack takes "
            f"{MAXIMUM_CLOUD_TAGS}{_origin(place, layers)}"
        )
    if lines:
        raise SettingsError("\n".join(lines))


def _lines(errors: Sequence[ErrorDetails], layers: Layers | None) -> list[str]:
    # A list whose only items are wrong is also reported as too short: say only what is wrong with the items.
    parents = {error["loc"][:-1] for error in errors}
    told = [error for error in errors if not (error["type"] == "too_short" and error["loc"] in parents)]
    lines = [_line(error, layers) for error in told]
    if layers is not None and any(error["type"] in {"missing", "union_tag_not_found"} for error in told):
        lines += [layers.missing] if layers.missing is not None else []
    return lines


def _line(error: ErrorDetails, layers: Layers | None) -> str:
    # Inside a discriminated union pydantic names the branch (its tag) after the key; the stack file has no such level.
    location = list(error["loc"])
    kinds = _KINDS.get(str(location[0]), ()) if location else ()
    if location[1:2] and location[1] in kinds:
        del location[1]
    if location and location[-1] == "[key]":
        location.pop()
    return _told(error, location) + (_origin(location, layers) if error["type"] != "missing" else "")


def _origin(location: Sequence[int | str], layers: Layers | None) -> str:
    """In a stack with layers, the file and line that say it, in parentheses."""
    if layers is None or layers.owner is None or not location:
        return ""
    return f" ({layers.origin([f'{NAMESPACE}:{location[0]}', *location[1:]])})"


def _where(location: Sequence[int | str]) -> str:
    where = NAMESPACE
    for index, part in enumerate(location):
        where += f"[{part}]" if isinstance(part, int) else f"{':' if index == 0 else '.'}{part}"
    return where


def _told(error: ErrorDetails, location: Sequence[int | str]) -> str:
    kind, where = error["type"], _where(location)
    if kind == "extra_forbidden" and (other := _other_kind(error["loc"])) is not None:
        return f"{where}: is only there for kind: {other}"
    if kind == "extra_forbidden":
        return f"{where}: unknown key{_suggestion(str(location[-1]))}"
    if kind == "missing":
        return f"{where}: is missing"
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        return f"{where}.kind: must be {' or '.join(_KINDS[str(location[0])])}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "too_short":
        message = "is empty; name at least one"
    if kind == "string_pattern_mismatch":
        message = (
            "must be a name, a domain like .example.com, an address or a network"
            if "noProxy" in location
            else "use lower-case letters, digits and hyphens, with a letter or digit at both ends"
        )
    value = error["input"]
    # What stands in `advanced` may be a secret, for instance of a cache; so may be what does not belong to a
    # certificate or a proxy.
    hidden = (
        kind == ADVANCED
        or isinstance(value, dict | list | BaseModel)
        or {"token", "caCertificates", "proxy", "accessKey", "secretKey", "password"} & set(location)
    )
    shown = "" if hidden else f" {json.dumps(value)}:"
    if not location:
        # A rule over the whole stack names its key itself.
        return f"{NAMESPACE}:{message}"
    return f"{where}:{shown} {message}"


def _other_kind(location: Sequence[str | int]) -> str | None:
    """The kind of host that has this key, when the one that it was given to has not."""
    match location:
        case ["host", "docker", str(key)] if key in _aliases(OpenStackHost):
            return "openstack"
        case ["host", "openstack", str(key)] if key in _aliases(DockerHost):
            return "docker"
    return None


def _aliases(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def _suggestion(key: str) -> str:
    # A key of another place is no help here.
    known = set().union(*map(_aliases, _MODELS)) - {key}
    matches = get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
