"""Values of the providers' configuration, which Pulumi hands over as text, read as the providers read them."""

import json
from typing import Any

from clients import ClientError

# Go's strconv.ParseBool, by which they read a boolean.
_FLAGS = dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "false", "FALSE", "False"), False
)


def flag(key: str, value: str) -> bool:
    """A boolean; `key` is the full one. Raises ClientError."""
    if value not in _FLAGS:
        raise ClientError(f"{key}: must be true or false")
    return _FLAGS[value]


def number(key: str, value: str) -> int:
    """A whole number that is not negative. Raises ClientError."""
    if not value.isascii() or not value.isdigit():
        raise ClientError(f"{key}: must be a whole number")
    return int(value)


def table(key: str, value: str) -> dict[str, Any]:
    """A map. Raises ClientError."""
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ClientError(f"{key}: must be a map")
    return found
