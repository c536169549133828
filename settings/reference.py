"""Writes the reference page of the stack file: `python -m settings.reference > docs/reference/stack-file.md`."""

import json
from collections.abc import Iterator
from typing import Any

from settings.errors import NAMESPACE
from settings.model import Settings

_HEAD = f"""\
# The stack file

`stacks/Pulumi.<stack>.yaml` says everything about a stack; one of a team shares part of it with others, in
[layers](layers.md). The program's keys lie below `config:` and start with `{NAMESPACE}:`; the connection to OpenStack
and GitLab is the providers' own configuration (`openstack:cloud`, `gitlab:baseUrl`, `gitlab:token`, …) or their
environment variables. A key of theirs that nobody knows is refused, and so is one of a namespace that only looks like
one of the three.

This page is generated from the model in `settings/model.py`; so is the
[JSON Schema](stack.schema.json) that editors use.
"""


def page() -> str:
    """The page, as Markdown."""
    schema = Settings.model_json_schema(by_alias=True)
    return "\n".join([_HEAD, *_tables(schema)])


def _tables(schema: dict[str, Any]) -> Iterator[str]:
    definitions: dict[str, dict[str, Any]] = schema["$defs"]
    for title, model in [(NAMESPACE, schema), *sorted(definitions.items())]:
        yield f"## {title}\n\n{model.get('description', '')}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        for key, value in model["properties"].items():
            default = "required" if key in model.get("required", []) else _code(value.get("default"))
            yield f"| `{key}` | {_type(value)} | {default} | {_line(value.get('description', ''))} |"
        yield ""


def _line(text: str) -> str:
    return text.replace("\n", " ")


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value or "oneOf" in value:
        kinds = [_type(each) for each in value.get("anyOf", value.get("oneOf", []))]
        return " or ".join(kind for kind in kinds if kind != "null")
    if "enum" in value or "const" in value:
        return ", ".join(_code(each) for each in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}"
    values = [value.get("additionalProperties"), *value.get("patternProperties", {}).values()]
    if kinds := [_type(each) for each in values if isinstance(each, dict)]:
        return f"map of {kinds[0]}"
    limits = [f"{sign} {value[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in value]
    # Plain objects are what Pulumi makes of a secret, and `advanced`.
    plain = "secret" if "secure" in value.get("properties", ()) else "keys of config.toml"
    return " ".join([plain if value["type"] == "object" else value["type"], *limits])


def _code(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and value:
        return f"`{value}`"
    if isinstance(value, dict):
        # The defaults of a table stand in its own rows.
        return ""
    return f"`{json.dumps(value)}`" if value not in ("", []) else "empty"


if __name__ == "__main__":
    print(page(), end="")
