"""Pulumi's property values as plain Python values, and back."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.runtime.rpc import UNKNOWN as UNKNOWN_STRING

Plain = dict[str, Any]


class _Unknown:
    """The type of `UNKNOWN`."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown()
"""A value that only the update itself will tell, met in previews."""

# The engine's marks for values not yet known, one for each type: sdk/go/common/resource/plugin/rpc.go in Pulumi.
# The SDK's PropertyValue leaves them as they are.
_UNKNOWN_MARKS: Final = frozenset(
    {
        UNKNOWN_STRING,
        "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",
        "3eeb2bf0-c639-47a8-9e75-3b44932eb421",
        "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",
        "030794c1-ac77-496b-92df-f27374a8bd58",
        "e48ece36-62e2-4504-bad9-02848725956a",
        "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",
    }
)


def plain(value: PropertyValue) -> Any:
    """The value without its secrecy; whole numbers as int, values not yet known as `UNKNOWN`."""
    content = value.value
    if isinstance(content, str):
        return UNKNOWN if content in _UNKNOWN_MARKS else content
    if isinstance(content, float):
        return int(content) if content.is_integer() else content
    if isinstance(content, Mapping):
        return {key: plain(item) for key, item in content.items()}
    if isinstance(content, Sequence):
        return [plain(item) for item in content if isinstance(item, PropertyValue)]
    if content is None or isinstance(content, bool):
        return content
    raise TypeError(f"a value of type {value.type.value} is not something this provider's properties can hold")


def plain_map(values: Mapping[str, PropertyValue]) -> Plain:
    """`plain` for a property map, without the members that are null."""
    return {key: plain(value) for key, value in values.items() if value.value is not None}


def property_value(value: Any) -> PropertyValue:
    """The opposite of `plain`."""
    if value is UNKNOWN:
        return PropertyValue(UNKNOWN_STRING)
    if isinstance(value, int) and not isinstance(value, bool):
        return PropertyValue(float(value))
    if isinstance(value, Mapping):
        return PropertyValue({key: property_value(item) for key, item in value.items()})
    if isinstance(value, Sequence) and not isinstance(value, str):
        return PropertyValue([property_value(item) for item in value])
    return PropertyValue(value)


def property_map(values: Mapping[str, Any], secret: Iterable[str] = ()) -> dict[str, PropertyValue]:
    """`property_value` for every member; the members named in `secret` come out as secrets."""
    hidden = frozenset(secret)
    return {
        key: property_value(value).with_secret(True) if key in hidden else property_value(value)
        for key, value in values.items()
        if value is not None
    }


def secret_names(values: Mapping[str, PropertyValue]) -> set[str]:
    """The members that are secret or have something secret inside."""
    return {key for key, value in values.items() if value.contains_secret()}


def contains_unknown(value: Any) -> bool:
    """Whether the value or anything inside it is not yet known."""
    if isinstance(value, Mapping):
        return any(contains_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(contains_unknown(item) for item in value)
    return value is UNKNOWN
