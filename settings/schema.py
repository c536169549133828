"""Writes the JSON Schema of the stack file: `python -m settings.schema > docs/reference/stack.schema.json`."""

import json
from typing import Any

from settings.errors import NAMESPACE
from settings.model import Settings


def stack_file_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a stack file, for editors: our keys checked, other namespaces left alone."""
    schema = Settings.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Stack file of gitlab-runners",
        "type": "object",
        "properties": {
            "config": {
                "type": "object",
                "properties": {f"{NAMESPACE}:{name}": value for name, value in schema["properties"].items()},
                "required": [f"{NAMESPACE}:{name}" for name in schema["required"]],
                "patternProperties": {f"^(?!{NAMESPACE}:)": {}},
                "additionalProperties": False,
            },
            "encryptionsalt": {"type": "string"},
            "secretsprovider": {"type": "string"},
            "encryptedkey": {"type": "string"},
            "environment": {},
        },
        "required": ["config"],
        "$defs": definitions,
    }


if __name__ == "__main__":
    print(json.dumps(stack_file_schema(), indent=2))
