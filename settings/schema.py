"""Writes the JSON Schemas of stack files and of their layers: `python -m settings.schema`, see `SCHEMAS`."""

import json
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from settings.cli_keys import CLI_KEYS
from settings.errors import NAMESPACE
from settings.layers import OWN_KEYS
from settings.model import Settings
from settings.ownership import ALLOW, ALLOWABLE, CREDENTIALS, RESERVED, SHARED_PROVIDER_KEYS

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# What Pulumi itself keeps in a stack's file.
_PULUMI: Mapping[str, Any] = {key: {} if key == "environment" else {"type": "string"} for key in CLI_KEYS}
_OTHER_NAMESPACES: Mapping[str, Any] = {"patternProperties": {f"^(?!{NAMESPACE}:)": {}}}
_ENCRYPTED: Mapping[str, Any] = {
    "description": "Encrypted, by `pulumi config set --secret`.",
    "type": "object",
    "properties": {"secure": {"type": "string"}},
    "required": ["secure"],
    "additionalProperties": False,
}
# The definitions of what some of the program's keys hold.
_MAPS = {"host": ("OpenStackHost", "DockerHost"), "host.ssh": ("Ssh",)}


def stack_file_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a stack file, for editors: our keys checked, other namespaces left alone."""
    schema = Settings.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs")
    return {
        "$schema": _DIALECT,
        "title": "Stack file of gitlab-runners",
        "type": "object",
        "properties": {
            "config": {
                "type": "object",
                "properties": {f"{NAMESPACE}:{name}": value for name, value in schema["properties"].items()},
                "required": [f"{NAMESPACE}:{name}" for name in schema["required"]],
                **_OTHER_NAMESPACES,
                "additionalProperties": False,
            },
            **_PULUMI,
        },
        "additionalProperties": False,
        "required": ["config"],
        "$defs": definitions,
    }


def team_stack_schema() -> dict[str, Any]:
    """That of the own file of a stack with layers: what a layer may have said need not be said."""
    config = _without_reserved(_config(None, secrets=True))
    config["properties"] |= dict.fromkeys(CREDENTIALS, _ENCRYPTED)
    config |= {"patternProperties": {"^pulumi:": {}}}
    return _layer("Stack file of a team, of gitlab-runners", config, _PULUMI)


def environment_schema() -> dict[str, Any]:
    """That of an environment's file, and of the project's defaults."""
    providers = {key: {"type": ["string", "boolean"]} for key in SHARED_PROVIDER_KEYS}
    config = _config(OWN_KEYS["environment"], secrets=False)
    config["properties"] |= providers
    allow = {
        "type": "array",
        "description": "What the files of teams and stacks may set besides what is theirs.",
        "items": {"enum": list(ALLOWABLE)},
    }
    return _layer("What the stacks of an environment share, of gitlab-runners", config, {ALLOW: allow})


def team_schema() -> dict[str, Any]:
    """That of a team's file."""
    ids = {"type": "array", "items": {"type": "integer", "minimum": 1}}
    scopes = {
        "type": "object",
        "description": "What is the team's in GitLab, by id; a runner of anything else is refused. Any when absent.",
        "properties": {"groups": ids, "projects": ids},
        "additionalProperties": False,
    }
    return _layer(
        "What the stacks of a team share, of gitlab-runners",
        _without_reserved(_config(OWN_KEYS["team"], secrets=False)),
        {"gitlab": scopes},
    )


SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "stack": stack_file_schema,
    "team-stack": team_stack_schema,
    "environment": environment_schema,
    "team": team_schema,
}
"""The schemas by the names of their files, docs/reference/<name>.schema.json."""


def _layer(title: str, config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    definitions = config["$defs"]
    properties = {"config": {key: value for key, value in config.items() if key != "$defs"}, **more}
    return {
        "$schema": _DIALECT,
        "title": title,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _config(keys: Collection[str] | None, *, secrets: bool) -> dict[str, Any]:
    """`config` with some of our keys, or all, and the definitions that they need; nothing is required."""
    schema = _partial(Settings.model_json_schema(by_alias=True), secrets=secrets)
    properties = {
        f"{NAMESPACE}:{key}": value for key, value in schema["properties"].items() if keys is None or key in keys
    }
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": {name: schema["$defs"][name] for name in sorted(_named(properties, schema["$defs"]))},
    }


def _without_reserved(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without what is the environment's, which it may allow."""
    for key in RESERVED:
        place, _, name = key.removeprefix(f"{NAMESPACE}:").rpartition(".")
        config["properties"].pop(key, None)
        for definition in _MAPS.get(place, ()):
            config["$defs"][definition]["properties"].pop(name, None)
    return config


def _partial(schema: Any, *, secrets: bool) -> Any:
    """A schema of parts of what another describes: nothing is required, and no secret offered unless asked for."""
    if isinstance(schema, list):
        return [_partial(each, secrets=secrets) for each in schema]
    if not isinstance(schema, dict):
        return schema
    part = {key: _partial(value, secrets=secrets) for key, value in schema.items() if key != "discriminator"}
    # A host whose kind another layer tells may be either.
    if "oneOf" in part:
        part["anyOf"] = part.pop("oneOf")
    if isinstance(part.get("properties"), dict) and "secure" not in part["properties"]:
        part.pop("required", None)
        if not secrets:
            part["properties"] = {key: value for key, value in part["properties"].items() if not _is_secret(value)}
    return part


def _is_secret(schema: Mapping[str, Any]) -> bool:
    return any("secure" in each.get("properties", ()) or _is_secret(each) for each in schema.get("anyOf", ()))


def _named(schema: Any, definitions: Mapping[str, Any]) -> set[str]:
    """Names of the definitions that a schema needs."""
    if isinstance(schema, list):
        return set().union(*(_named(each, definitions) for each in schema))
    if not isinstance(schema, dict):
        return set()
    found = set().union(*(_named(value, definitions) for value in schema.values()))
    if isinstance(schema.get("$ref"), str):
        name = schema["$ref"].rpartition("/")[2]
        found |= {name} | _named(definitions[name], definitions)
    return found


if __name__ == "__main__":
    print(json.dumps(SCHEMAS[sys.argv[1] if len(sys.argv) > 1 else "stack"](), indent=2))
