"""Compares what a program asks for with the state, as Terraform's plugin SDK does, from data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .facts import Facts, Habits, Property
from .values import UNKNOWN, contains_unknown


@dataclass(frozen=True)
class Change:
    """A property whose wanted value differs from the state's."""

    kind: Literal["add", "delete", "update"]
    replace: bool


class Kind:
    """A resource type: the facts of its schema and its habits."""

    def __init__(self, token: str, facts: Facts, habits: Habits) -> None:
        self.token = token
        self.facts = facts
        self.habits = habits
        self.properties: Mapping[str, Property] = facts.resources[token]

    def replaces(self, name: str) -> bool:
        """Whether a change of this property replaces the resource.

        Where only the members of a property's objects are marked, adding or removing an object replaces as well: that
        changes its members from or to nothing.
        """
        fact = self.properties[name]
        members = self.facts.members(fact.type)
        return (
            fact.replace
            or name in self.habits.replaces
            or bool(members and all(member.replace for member in members.values()))
        )

    def stored(self, name: str, value: Any) -> Any:
        """The form in which the state keeps a property's value."""
        form = self.habits.stored.get(name)
        return value if form is None or not isinstance(value, str) else form(value)

    def changes(self, state: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Change]:
        """The inputs whose wanted value differs from the state's, in alphabetical order.

        An input that is not given keeps what the service made of it when it is computed; else it is wanted at its
        default, or empty. A value not yet known counts as different.
        """
        found: dict[str, Change] = {}
        for name, fact in sorted(self.properties.items()):
            if not fact.input:
                continue
            want = wanted.get(name, self.habits.defaults.get(name))
            have = state.get(name)
            if want is None and fact.computed:
                continue
            if not contains_unknown(want) and self.same(name, want, have):
                continue
            kind: Literal["add", "delete", "update"] = (
                "delete" if want is None else "add" if _empty(have) and name not in state else "update"
            )
            found[name] = Change(kind, self.replaces(name))
        return found

    def same(self, name: str, want: Any, have: Any) -> bool:
        """Whether a wanted value of a property means the same as the state's."""
        return self._same(name, self.stored(name, want), have)

    def _same(self, path: str, want: Any, have: Any) -> bool:
        if want is UNKNOWN or have is UNKNOWN:
            return False
        if _empty(want) and _empty(have):
            return True
        if isinstance(want, list) and isinstance(have, list):
            return len(want) == len(have) and self._same_list(path, want, have)
        if isinstance(want, dict) and isinstance(have, dict):
            return self._same_object(path, want, have)
        return bool(_scalar(want) == _scalar(have))

    def _same_list(self, path: str, want: list[Any], have: list[Any]) -> bool:
        if path not in self.habits.sets:
            return all(self._same(path, left, right) for left, right in zip(want, have, strict=True))
        left = list(have)
        for item in want:
            match = next((i for i, other in enumerate(left) if self._same(path, item, other)), None)
            if match is None:
                return False
            del left[match]
        return True

    def _same_object(self, path: str, want: dict[str, Any], have: dict[str, Any]) -> bool:
        defaults = self.habits.element_defaults.get(path, {})
        filled_in = path in self.habits.filled_in
        return all(
            (filled_in and want.get(member) is None)
            or self._same(
                f"{path}.{member}",
                want.get(member, defaults.get(member)),
                have.get(member, defaults.get(member)),
            )
            for member in {*want, *have}
            if not member.startswith("__")
        )


def _empty(value: Any) -> bool:
    """Whether Terraform's plugin SDK cannot tell the value from one that was not given."""
    return value is None or (value is not UNKNOWN and value in ("", 0, False, [], {}))


def _scalar(value: Any) -> Any:
    # A number or truth value may stand where the other side has its text (maps of strings in Terraform).
    return value if isinstance(value, str) else json.dumps(value)
