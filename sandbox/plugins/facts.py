"""What is known of a provider's types: from its own schema, and the habits that the schema does not mention."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .values import UNKNOWN

_SCALARS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_FORMS: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "[": ("list", (list,)),
    "{": ("object", (dict,)),
    "@": ("object", (dict,)),
}


@dataclass(frozen=True)
class Property:
    """One property of a resource, of the provider's configuration, or of an object inside a property.

    `type` is written as in the data files: `string`, `[string]` (list), `{string}` (map), `@Name` (object).
    `computed` ones get a value from the service where the program gives none.
    """

    type: str
    input: bool = False
    required: bool = False
    computed: bool = False
    replace: bool = False
    secret: bool = False
    environment: tuple[str, ...] = ()


@dataclass(frozen=True)
class Habits:
    """What the official provider does with a type and its schema does not say.

    The sources are the Terraform providers beneath (kreuzwerker/docker 4.5, gitlabhq/gitlab, openstack 3.4), whose
    documentation the Python SDKs repeat, and pulumi-terraform-bridge.
    """

    auto_name: bool = False
    """The bridge gives the property `name`, where the program does not, the logical name with a random suffix."""
    delete_before_replace: bool = False
    """A replacement always deletes first."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    element_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For properties that hold objects: the values that members of the object have when not given."""
    sets: frozenset[str] = frozenset()
    """Lists in which order means nothing; `property.member` names one inside an object."""
    filled_in: frozenset[str] = frozenset()
    """Properties in whose objects the service fills in the members that the program left out."""
    replaces: frozenset[str] = frozenset()
    """Properties whose change replaces, beyond those that the schema marks."""
    stored: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    """Properties that are kept in the state, and compared, in another form than given."""
    refused: frozenset[str] = frozenset()
    """Inputs of the official provider that the stand-in does not implement."""


@dataclass(frozen=True)
class Facts:
    """A provider's schema, as far as the stand-ins need it."""

    config: Mapping[str, Property]
    resources: Mapping[str, Mapping[str, Property]]
    functions: Mapping[str, tuple[Mapping[str, Property], Mapping[str, Property]]]
    types: Mapping[str, Mapping[str, Property]]

    def members(self, type: str) -> Mapping[str, Property] | None:
        """The members of an object type, or of the objects in a list of them; None for any other type."""
        return self.types.get(type.strip("[]").removeprefix("@")) if "@" in type else None

    def faults(self, properties: Mapping[str, Property], values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What is wrong with a set of inputs: (property path, reason)."""
        return [
            fault for name, value in values.items() for fault in self._faults(name, properties.get(name), value)
        ] + [
            (name, "is required and missing")
            for name, fact in properties.items()
            if fact.required and values.get(name) is None
        ]

    def _faults(self, path: str, fact: Property | None, value: Any) -> list[tuple[str, str]]:
        if fact is None:
            return [(path, "is not a property that the provider knows")]
        return self._type_faults(path, fact.type, value)

    def _type_faults(self, path: str, type: str, value: Any) -> list[tuple[str, str]]:
        if value is UNKNOWN or value is None:
            return []
        name, accepted = _FORMS.get(type[0], (type, _SCALARS.get(type, ())))
        if not isinstance(value, accepted) or (isinstance(value, bool) and type != "boolean"):
            return [(path, f"must be {'an' if name[0] in 'aeiou' else 'a'} {name}, not {value!r}")]
        if type.startswith("@") and isinstance(value, dict):
            return [(f"{path}.{member}", reason) for member, reason in self.faults(self.types[type[1:]], value)]
        items: list[tuple[str, Any]] = []
        if isinstance(value, list):
            items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
        elif isinstance(value, dict):
            items = [(f"{path}.{key}", item) for key, item in value.items()]
        return [fault for place, item in items for fault in self._type_faults(place, type[1:-1], item)]


def _read(properties: Mapping[str, Any]) -> dict[str, Property]:
    return {
        name: Property(**{**fact, "environment": tuple(fact.get("environment", ()))})
        for name, fact in properties.items()
    }


@cache
def load(provider: str) -> Facts:
    """The facts about a provider, from `schema/PROVIDER.json`."""
    data = json.loads((Path(__file__).parent / "schema" / f"{provider}.json").read_text())
    return Facts(
        config=_read(data["config"]),
        resources={token: _read(properties) for token, properties in data["resources"].items()},
        functions={
            token: (_read(function["inputs"]), _read(function["outputs"]))
            for token, function in data["functions"].items()
        },
        types={name: _read(properties) for name, properties in data["types"].items()},
    )
