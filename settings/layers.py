"""A stack's layers: what the project, an environment and a team share, below what is the stack's own.

A stack `<team>-<environment>` for whose two parts there are files has layers, each above the one before it:

    stacks/defaults.yaml                      for every stack with layers
    stacks/environments/<environment>.yaml
    stacks/teams/<team>.yaml
    stacks/Pulumi.<team>-<environment>.yaml   the stack's own, as everywhere in Pulumi

Maps merge, everything else replaces. Any other stack is its own file and nothing else.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from settings.advanced import OF_MANAGERS, OF_RUNNERS
from settings.cli_keys import copies, unknown_keys
from settings.errors import NAMESPACE, SettingsError
from settings.names import is_name, name_mistake
from settings.ownership import (
    ALLOW,
    ALLOWABLE,
    CREDENTIALS,
    NOT_TAKEN,
    PROVIDER_KEYS,
    RESERVED,
    SHARED_PROVIDER_KEYS,
    allowed_by,
    leads_outside,
    reserved,
    suggestion,
)
from settings.yaml_file import ROOT, Location, Origin, Value, read, shown

FOLDER = ROOT / "stacks"
Kind = Literal["defaults", "environment", "team", "stack"]

OWN_KEYS: Mapping[Kind, tuple[str, ...]] = {
    "defaults": ("cache", "gitlabUrl", "host", "manager", "protect"),
    "environment": ("cache", "gitlabUrl", "host", "manager", "protect"),
    "team": ("cache", "host", "manager", "protect", "runners"),
}
"""The program's keys that a layer below the stack may set."""
_KEYS: Mapping[Kind, tuple[str, ...]] = {
    kind: (*(f"{NAMESPACE}:{key}" for key in keys), *(() if kind == "team" else SHARED_PROVIDER_KEYS))
    for kind, keys in OWN_KEYS.items()
}
_FILES: Mapping[Kind, str] = {
    "defaults": "stacks/defaults.yaml",
    "environment": "the environment's file",
    "team": "the team's file",
    "stack": "the stack's own file",
}
# The part of a team's file that tells what is the team's in GitLab.
_SCOPES = "gitlab"
# What a stack's own file may set besides the program's keys: the engine's, and who logs in.
_ENGINE = "pulumi:"
_KNOWN = (
    *(f"{NAMESPACE}:{key}" for key in dict.fromkeys(key for keys in OWN_KEYS.values() for key in keys)),
    *PROVIDER_KEYS,
)


@dataclass(frozen=True)
class Owner:
    """Whose stack it is, and where it belongs."""

    team: str
    environment: str

    @property
    def tags(self) -> list[str]:
        """Tags that name it, in OpenStack."""
        return [f"{key}={value}" for key, value in vars(self).items()]


@dataclass(frozen=True)
class Scopes:
    """The groups and projects of GitLab that are a team's, by id, and where that is said."""

    origin: Origin
    groups: frozenset[int]
    projects: frozenset[int]


@dataclass(frozen=True)
class Layers:
    """A stack's effective configuration.

    `owner` is None for a stack without layers, and `missing` then says which file keeps it from having some, if one
    does; `scopes` is None where the team's file does not say what is the team's.
    """

    stack: str
    owner: Owner | None
    values: Value
    scopes: Scopes | None
    missing: str | None = None

    @property
    def config(self) -> dict[str, str]:
        """Full keys with values as Pulumi hands them over: text, everything else as JSON."""
        plain: dict[str, Any] = self.values.plain
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in plain.items()}

    @property
    def shared_config(self) -> dict[str, str]:
        """What of it tells which cloud and which GitLab: the keys that layers may share, none of them a secret."""
        return {key: value for key, value in self.config.items() if key in SHARED_PROVIDER_KEYS}

    def origin(self, location: Sequence[str | int]) -> Origin:
        """Where the value at a location comes from, or what is nearest to it."""
        return self.values.at(location).origin


def stacks(folder: Path = FOLDER) -> list[str]:
    """Names of all stacks that have a file. One whose name no stack may have is none: see `misnamed`."""
    return sorted(filter(is_name, map(_stack_of, folder.glob("Pulumi.*.yaml"))))


def misnamed(folder: Path = FOLDER) -> list[str]:
    """The files of stacks, teams and environments whose names they must not have, one line each."""
    named = [(file, "stack", _stack_of(file)) for file in folder.glob("Pulumi.*.yaml")]
    for kind in ("team", "environment"):
        named += [(file, kind, file.name.removesuffix(".yaml")) for file in folder.glob(f"{kind}s/*.yaml")]
    return [mistake for _, kind, name in sorted(named) if (mistake := name_mistake(f"stacks: {kind}", name))]


def _stack_of(file: Path) -> str:
    return file.name.removeprefix("Pulumi.").removesuffix(".yaml")


def stack_file(stack: str, folder: Path = FOLDER) -> Path:
    """The stack's own file, whether it exists or not."""
    return folder / f"Pulumi.{stack}.yaml"


def owner_of(stack: str, folder: Path = FOLDER) -> Owner | None:
    """Team and environment of a stack with layers, None for any other. Raises SettingsError."""
    found = [
        owner
        for owner in _readings(stack)
        if _file("team", owner, folder).is_file() and _file("environment", owner, folder).is_file()
    ]
    if len(found) > 1:
        readings = " or ".join(f"team {owner.team} in {owner.environment}" for owner in found)
        raise SettingsError(f"stack name {stack}: may be {readings}; rename a team or an environment")
    return found[0] if found else None


def layer_files(stack: str, folder: Path = FOLDER) -> list[Path]:
    """The files that make up a stack, those that win last. Raises SettingsError.

    The project's defaults and the stack's own file are listed only where they exist.
    """
    return [file for _, file in _layer_files(stack, owner_of(stack, folder), folder) if file.is_file()]


def effective(
    stack: str, config: Mapping[str, str] | None = None, folder: Path = FOLDER, encrypted: Collection[str] = ()
) -> Layers:
    """A stack's layers and what comes of them. Raises SettingsError.

    `config` is the stack's own configuration as Pulumi hands it over, decrypted, and `encrypted` the keys in it that
    are secrets; without it the stack's file is read, and what is encrypted there stays so.
    """
    owner = owner_of(stack, folder)
    values, scopes = Value(Origin(folder, None), {}), None
    errors: list[str] = []
    allowed: frozenset[str] = frozenset()
    for kind, file in _layer_files(stack, owner, folder):
        document = read(file) if file.is_file() else Value(Origin(file, None), {})
        if kind in ("defaults", "environment"):
            allowed |= allowed_by(document, errors)
        layer = _config(document)
        if kind == "stack":
            errors += unknown_keys(document) if owner is None else _mistakes_at_the_top(document, allowed)
            others = (stack_file(name, folder) for name in stacks(folder) if name != stack)
            errors += copies(document, others)
        secrets = _encrypted(layer)
        if owner is not None and kind == "stack":
            errors += _of_others(kind, layer, allowed, secrets, folder.parent)
        elif owner is not None:
            errors += _mistakes(kind, document, allowed, folder.parent)
        if kind == "team" and _SCOPES in document.content:
            scopes = _scopes(document.content[_SCOPES], errors)
        if kind == "stack" and config is not None:
            # More than the file says may come from the command line.
            layer = _located(config, layer)
            if owner is not None:
                errors += _of_others(kind, layer, allowed, {*encrypted, *secrets})
        if owner is None:
            errors += _nearly(layer)
        values = _merged(values, layer)
    if errors:
        raise SettingsError("\n".join(dict.fromkeys(errors)))
    return Layers(stack, owner, values, scopes, _missing(stack, owner, folder))


def decoded(value: str) -> Any:
    """A value as Pulumi hands it over: objects and lists are JSON, the rest is text."""
    if not value.startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def in_namespace(name: str, config: Mapping[str, str]) -> dict[str, str]:
    """What configuration by full keys has in a namespace (a provider's name), by the keys without it."""
    return {key.removeprefix(f"{name}:"): value for key, value in config.items() if key.startswith(f"{name}:")}


def is_hidden(location: Location, value: Any) -> bool:
    """Whether the value at a location is not to be shown: it is encrypted, or a secret by its key."""
    if isinstance(value, dict) and set(value) == {"secure"}:
        return True
    if len(location) == 1:
        namespace, _, key = str(location[0]).partition(":")
        return namespace != NAMESPACE and key not in {known.partition(":")[2] for known in SHARED_PROVIDER_KEYS}
    match [str(location[0]).removeprefix(f"{NAMESPACE}:"), *location[1:]]:
        case (
            ["cache", "accessKey" | "secretKey"]
            | ["runners", _, "token"]
            | ["runners", _, "registryLogins", _, "password"]
            | ["host", "registryCache", "login", "password"]
        ):
            return True
        case ["runners", _, "advanced", *below]:
            return OF_RUNNERS.is_secret(below)
        case ["manager", "advanced", *below]:
            return OF_MANAGERS.is_secret(below)
    return False


def _readings(stack: str) -> list[Owner]:
    words = stack.split("-")
    readings = (Owner("-".join(words[:number]), "-".join(words[number:])) for number in range(1, len(words)))
    return [reading for reading in readings if is_name(reading.team) and is_name(reading.environment)]


def _missing(stack: str, owner: Owner | None, folder: Path) -> str | None:
    """What keeps a stack from having layers, when its name ends with an environment's or starts with a team's."""
    if owner is not None:
        return None
    for reading in _readings(stack):
        team, environment = _file("team", reading, folder), _file("environment", reading, folder)
        for there, absent in ((environment, team), (team, environment)):
            if there.is_file():
                return f"stack {stack}: has no layers: there is {shown(there)}, but no {shown(absent)}"
    return None


def _file(kind: Literal["team", "environment"], owner: Owner, folder: Path) -> Path:
    name = owner.team if kind == "team" else owner.environment
    return folder / f"{kind}s" / f"{name}.yaml"


def _layer_files(stack: str, owner: Owner | None, folder: Path) -> list[tuple[Kind, Path]]:
    own: tuple[Kind, Path] = ("stack", stack_file(stack, folder))
    if owner is None:
        return [own]
    return [
        ("defaults", folder / "defaults.yaml"),
        ("environment", _file("environment", owner, folder)),
        ("team", _file("team", owner, folder)),
        own,
    ]


def _config(document: Value) -> Value:
    """What a file has below `config`, by full keys: Pulumi takes those without a namespace for the project's."""
    config = document.content.get("config")
    if config is None or config.content is None:
        return Value(document.origin, {})
    if not isinstance(config.content, dict):
        raise SettingsError(f"{config.origin}: config: must be a map")
    found = config.content.items()
    # As Pulumi reads it: text that is JSON stands for what it says.
    return Value(
        config.origin,
        {
            _full(key): _near(decoded(value.content), value) if isinstance(value.content, str) else value
            for key, value in found
        },
    )


def _full(key: str) -> str:
    """A key as Pulumi understands it, which has an older way to write one: `gitlab:config:token`."""
    namespace, _, name = key.rpartition(":")
    return f"{namespace.removesuffix(':config') or NAMESPACE}:{name}"


def _located(config: Mapping[str, str], file: Value) -> Value:
    """Pulumi's values, with the lines that they have in the stack's file."""
    whole = Value(Origin(file.origin.file, None), file.content)
    return Value(whole.origin, {key: _near(decoded(value), whole.at([key])) for key, value in config.items()})


def _near(value: Any, near: Value) -> Value:
    """A plain value with the lines of what stands in its place, as far as that has such parts."""
    if isinstance(value, dict):
        return Value(near.origin, {key: _near(inner, near.at([key])) for key, inner in value.items()})
    if isinstance(value, list):
        return Value(near.origin, [_near(inner, near.at([index])) for index, inner in enumerate(value)])
    return Value(near.origin, value)


def _merged(below: Value, above: Value) -> Value:
    if isinstance(below.content, dict) and isinstance(above.content, dict):
        both = {key: _merged(below.content[key], above.content[key]) for key in below.content if key in above.content}
        return Value(above.origin, below.content | above.content | both)
    return above


def _mistakes(kind: Kind, document: Value, allowed: frozenset[str], project: Path) -> list[str]:
    """What a layer below the stack's own file may not say, one line each."""
    lines = []
    top = ("config", _SCOPES if kind == "team" else ALLOW)
    for key, value in document.content.items():
        if key not in top:
            lines.append(f"{value.origin}: {key}: {_FILES[kind]} may only have {' and '.join(top)} at its top")
    config = _config(document)
    if kind == "team":
        lines += _of_others(kind, config, allowed, (), project)
    for key, value in config.content.items():
        if key in _KEYS[kind] or key in _encrypted(config):
            lines += _secrets(kind, value, (key,))
        elif kind != "team":
            lines.append(f"{value.origin}: {key}: {_not_here(kind, key)}")
    return lines


def _mistakes_at_the_top(document: Value, allowed: frozenset[str]) -> Iterator[str]:
    """What the own file of a stack with layers may not say outside of `config`, one line each."""
    content = dict(document.content)
    scopes = content.pop(_SCOPES, None)
    if scopes is not None:
        yield f"{scopes.origin}: {_SCOPES}: only the team's file may say what is the team's in GitLab"
    imports = content.get("environment")
    if imports is not None and "environment" not in allowed:
        yield f"{imports.origin}: environment: {_not_here('stack', 'environment')}"
    yield from unknown_keys(Value(document.origin, content))


def _of_others(
    kind: Kind, config: Value, allowed: frozenset[str], encrypted: Collection[str], project: Path | None = None
) -> Iterator[str]:
    """What the configuration of a team or a stack sets that is not theirs to set, one line each.

    `encrypted` are the keys whose values are; files that it names must lie in the folder `project`, if that is given.
    """
    for key, value in config.content.items():
        if kind == "stack" and key in CREDENTIALS and key not in allowed:
            if key not in encrypted:
                yield f"{value.origin}: {key}: is in plain text; set it with `pulumi config set --secret {key}`"
            continue
        found = list(reserved(key, value))
        if not found and not _may_set(kind, key):
            found = [(key, value)]
        for name, inner in found:
            if name not in allowed:
                yield f"{inner.origin}: {name}: {_not_here(kind, name)}"
            elif project is not None and leads_outside(name, inner, project):
                yield f"{inner.origin}: {name}: must be the path of a file in the project's folder"


def _nearly(config: Value) -> Iterator[str]:
    """Keys of a stack without layers that nobody reads, where one that somebody reads is meant; one line each.

    Other namespaces are nobody's concern here.
    """
    namespaces = (NAMESPACE, "gitlab", "openstack")
    for key, value in config.content.items():
        namespace = key.partition(":")[0]
        if namespace in namespaces[1:] and key not in (*PROVIDER_KEYS, *NOT_TAKEN):
            yield f"{value.origin}: {key}: unknown key{suggestion(key, PROVIDER_KEYS)}"
        elif namespace not in namespaces and get_close_matches(namespace, namespaces, n=1, cutoff=0.8):
            yield f"{value.origin}: {key}: unknown namespace{suggestion(namespace, namespaces)}"


def _may_set(kind: Kind, key: str) -> bool:
    """Whether a file may set a key of the configuration, whatever an environment allows."""
    # What is unknown among the program's own keys is told where all of them are checked.
    return key in _KEYS[kind] if kind != "stack" else key.startswith((f"{NAMESPACE}:", _ENGINE))


def _not_here(kind: Kind, key: str) -> str:
    if any(each.startswith(f"{key}.") for each in RESERVED):
        return f"must be a map; what {_FILES['environment']} says in it stays"
    if key not in (*_KNOWN, *ALLOWABLE):
        return f"unknown key{suggestion(key, _KEYS.get(kind, _KNOWN))}"
    is_own = kind in ("team", "stack")
    homes = []
    if is_own and key.partition(".")[0] in _KEYS["environment"]:
        homes.append(_FILES["environment"])
    if kind != "team" and key in _KEYS["team"]:
        homes.append(_FILES["team"])
    if kind != "stack" and key not in RESERVED and (key in CREDENTIALS or _may_set("stack", key)):
        homes.append(_FILES["stack"])
    there = f", but in {' or '.join(homes)}" if homes else ""
    leave = f"; {_FILES['environment']} may allow it: `{ALLOW}: [{key}]`" if is_own and key in ALLOWABLE else ""
    return f"must not be set in {_FILES[kind]}{there}{leave}"


def _encrypted(config: Value) -> set[str]:
    """The keys of a file's configuration whose values are encrypted as a whole."""
    found = config.content.items()
    return {key for key, value in found if isinstance(value.content, dict) and set(value.content) == {"secure"}}


def _secrets(kind: Kind, value: Value, location: Location) -> Iterator[str]:
    if is_hidden(location, value.plain):
        name = str(location[0]) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[1:])
        yield (
            f"{value.origin}: {name}: {_FILES[kind]} can hold no secret: each stack encrypts its own, with "
            "`pulumi config set --secret`"
        )
    elif isinstance(value.content, dict):
        for key, inner in value.content.items():
            yield from _secrets(kind, inner, (*location, key))
    elif isinstance(value.content, list):
        for index, inner in enumerate(value.content):
            yield from _secrets(kind, inner, (*location, index))


def _scopes(said: Value, errors: list[str]) -> Scopes | None:
    """What a team's file says is the team's; mistakes are added to `errors`."""
    if not isinstance(said.content, dict):
        errors.append(f"{said.origin}: {_SCOPES}: must be a map with groups and projects")
        return None
    for key, value in said.content.items():
        if key not in {"groups", "projects"}:
            errors.append(f"{value.origin}: {_SCOPES}.{key}: unknown key; there are groups and projects")
        elif not isinstance(value.content, list) or any(type(item) is not int or item < 1 for item in value.plain):
            errors.append(f"{value.origin}: {_SCOPES}.{key}: must be a list of ids, which are numbers")
    if errors:
        return None
    groups, projects = (
        frozenset(said.content[key].plain) if key in said.content else frozenset() for key in ("groups", "projects")
    )
    return Scopes(said.origin, groups, projects)
