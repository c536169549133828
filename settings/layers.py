"""A stack's layers: what the project, an environment and a team share, below what is the stack's own.

A stack `<team>-<environment>` for whose two parts there are files has layers, each above the one before it:

    stacks/defaults.yaml                      for every stack with layers
    stacks/environments/<environment>.yaml
    stacks/teams/<team>.yaml
    stacks/Pulumi.<team>-<environment>.yaml   the stack's own, as everywhere in Pulumi

Maps merge, everything else replaces. Any other stack is its own file and nothing else.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml

from settings.advanced import OF_MANAGERS, OF_RUNNERS
from settings.errors import NAMESPACE, SettingsError
from settings.names import is_name, name_mistake

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "stacks"
# A key and those inside of its value: ("gitlab-runners:host", "ssh", "port").
Location = tuple[str | int, ...]
Kind = Literal["defaults", "environment", "team", "stack"]

# What an environment decides about the connection to its cloud and its GitLab; who logs in there is each stack's own.
SHARED_PROVIDER_KEYS = (
    *(
        f"openstack:{key}"
        for key in (
            "authUrl",
            "cacertFile",
            "cloud",
            "defaultDomain",
            "domainId",
            "domainName",
            "insecure",
            "projectDomainId",
            "projectDomainName",
            "region",
            "tenantId",
            "tenantName",
            "userDomainId",
            "userDomainName",
        )
    ),
    *(f"gitlab:{key}" for key in ("baseUrl", "cacertFile", "insecure")),
)
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
_NUMBER = r"[-+]?[0-9][0-9a-fA-FxXoO_]*"
# The part of a team's file that tells what is the team's in GitLab.
_SCOPES = "gitlab"


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
class Origin:
    """A line of a layer's file; `line` is None where only the file is known."""

    file: Path
    line: int | None

    def __str__(self) -> str:
        return shown(self.file) if self.line is None else f"{shown(self.file)}, line {self.line}"


@dataclass(frozen=True)
class Value:
    """A value and where it comes from; those inside of a map or list are Values too."""

    origin: Origin
    content: Any

    @property
    def plain(self) -> Any:
        """The value as YAML has it."""
        if isinstance(self.content, dict):
            return {key: value.plain for key, value in self.content.items()}
        return [value.plain for value in self.content] if isinstance(self.content, list) else self.content

    def at(self, location: Sequence[str | int]) -> "Value":
        """What stands at a location, or the innermost map or list on the way there."""
        if location:
            name, *rest = location
            inner: Value | None = None
            if isinstance(self.content, dict):
                inner = self.content.get(name)
            elif isinstance(self.content, list) and isinstance(name, int) and name < len(self.content):
                inner = self.content[name]
            return self if inner is None else inner.at(rest)
        return self


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


def shown(file: Path) -> str:
    """A file as people know it: from the project's folder on."""
    return str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file)


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


def effective(stack: str, config: Mapping[str, str] | None = None, folder: Path = FOLDER) -> Layers:
    """A stack's layers and what comes of them. Raises SettingsError.

    `config` is the stack's own configuration as Pulumi hands it over, decrypted; without it the stack's file is read,
    and what is encrypted there stays so.
    """
    owner = owner_of(stack, folder)
    values, scopes, errors = Value(Origin(folder, None), {}), None, []
    for kind, file in _layer_files(stack, owner, folder):
        # The file of a stack without layers says no more than Pulumi has read there.
        is_needed = owner is not None or config is None
        document = _read(file) if is_needed and file.is_file() else Value(Origin(file, None), {})
        if owner is not None:
            errors += _mistakes(kind, document)
        if kind == "team" and _SCOPES in document.content:
            scopes = _scopes(document.content[_SCOPES], errors)
        layer = _config(document)
        values = _merged(values, _located(config, layer) if kind == "stack" and config is not None else layer)
    if errors:
        raise SettingsError("\n".join(errors))
    return Layers(stack, owner, values, scopes, _missing(stack, owner, folder))


def decoded(value: str) -> Any:
    """A value as Pulumi hands it over: objects and lists are JSON, the rest is text."""
    if not value.startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


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


def _read(file: Path) -> Value:
    """A layer's file as a map, which an empty file is too."""
    try:
        loader = yaml.SafeLoader(file.read_text())
        node = loader.get_single_node()
        value = _value(loader, node, file) if node is not None else Value(Origin(file, 1), {})
    except yaml.YAMLError as error:
        problem, line = " ".join(str(error).split()), None
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            problem, line = error.problem or problem, error.problem_mark.line + 1
        raise SettingsError(f"{Origin(file, line)}: is not YAML: {problem}") from None
    if not isinstance(value.content, dict):
        raise SettingsError(f"{value.origin}: must be a map with config")
    return value


def _value(loader: yaml.SafeLoader, node: yaml.Node, file: Path) -> Value:
    origin = Origin(file, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        content = {}
        for key, inner in node.value:
            # The line of the key: that of a map is the one after it.
            value = _value(loader, inner, file)
            content[str(key.value)] = Value(Origin(file, key.start_mark.line + 1), value.content)
        return Value(origin, content)
    if isinstance(node, yaml.SequenceNode):
        return Value(origin, [_value(loader, inner, file) for inner in node.value])
    value = loader.construct_object(node)
    # As Pulumi reads it, which knows no dates, no `yes` and no 1:30: those are text.
    is_text = not isinstance(value, str | int | float | None) or (
        isinstance(value, int) and node.value.lower() not in {"true", "false"} and not re.fullmatch(_NUMBER, node.value)
    )
    return Value(origin, node.value if is_text else value)


def _config(document: Value) -> Value:
    """What a file has below `config`, by full keys: Pulumi takes those without a namespace for the project's."""
    config = document.content.get("config")
    if config is None or config.content is None:
        return Value(document.origin, {})
    if not isinstance(config.content, dict):
        raise SettingsError(f"{config.origin}: config: must be a map")
    content = {key if ":" in key else f"{NAMESPACE}:{key}": value for key, value in config.content.items()}
    return Value(config.origin, content)


def _located(config: Mapping[str, str], file: Value) -> Value:
    """Pulumi's values, with the lines that they have in the stack's file."""

    def located(value: Any, near: Value) -> Value:
        if isinstance(value, dict):
            return Value(near.origin, {key: located(inner, near.at([key])) for key, inner in value.items()})
        if isinstance(value, list):
            return Value(near.origin, [located(inner, near.at([index])) for index, inner in enumerate(value)])
        return Value(near.origin, value)

    whole = Value(Origin(file.origin.file, None), file.content)
    return Value(whole.origin, {key: located(decoded(value), whole.at([key])) for key, value in config.items()})


def _merged(below: Value, above: Value) -> Value:
    if isinstance(below.content, dict) and isinstance(above.content, dict):
        both = {key: _merged(below.content[key], above.content[key]) for key in below.content if key in above.content}
        return Value(above.origin, below.content | above.content | both)
    return above


def _mistakes(kind: Kind, document: Value) -> list[str]:
    """What a layer may not say, one line each."""
    lines = []
    if kind == "stack":
        if _SCOPES in document.content:
            origin = document.content[_SCOPES].origin
            lines.append(f"{origin}: {_SCOPES}: only the team's file may say what is the team's in GitLab")
        return lines
    top = ("config", _SCOPES) if kind == "team" else ("config",)
    for key, value in document.content.items():
        if key not in top:
            lines.append(f"{value.origin}: {key}: {_FILES[kind]} may only have {' and '.join(top)} at its top")
    for key, value in _config(document).content.items():
        if key in _KEYS[kind]:
            lines += _secrets(kind, value, (key,))
        else:
            lines.append(f"{value.origin}: {key}: {_not_here(kind, key)}")
    return lines


def _not_here(kind: Kind, key: str) -> str:
    namespace, _, name = key.partition(":")
    elsewhere = [_FILES[other] for other in ("environment", "team") if key in _KEYS[other]]
    if not elsewhere and namespace == NAMESPACE and name not in {each for keys in OWN_KEYS.values() for each in keys}:
        close = get_close_matches(key, _KEYS[kind], n=1)
        return f"unknown key{f'; did you mean {close[0]}?' if close else ''}"
    return f"must not be set in {_FILES[kind]}, but in {' or '.join([*elsewhere, _FILES['stack']])}"


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
