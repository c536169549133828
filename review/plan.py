"""What `pulumi preview --json` says, read into types.

The engine prints one JSON object: `steps` with the inputs before and after, and `diagnostics`. Steps that change
nothing are left out, all but the stack's own; secrets are `[secret]` already, and what only the update will tell is a
fixed UUID.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

SECRET = "[secret]"
# plugin.UnknownStringValue of Pulumi's Go SDK (sdk/go/common/resource/plugin/rpc.go).
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
Operation = Literal["create", "update", "replace", "delete"]
OPERATIONS: tuple[Operation, ...] = ("create", "update", "replace", "delete")
# The steps of a replacement are told apart only by newer or older engines; `same`, `refresh` and `read` change nothing.
_OPERATIONS: dict[str, Operation] = {
    "create": "create",
    "import": "create",
    "update": "update",
    "replace": "replace",
    "create-replacement": "replace",
    "delete-replaced": "replace",
    "import-replacement": "replace",
    "delete": "delete",
}
# Labels and keys that only tell that something else changed.
_DERIVED = {"gitlab-runners.configuration", "gitlab-runners.server", "gitlab-runners.volume", "volumeName"}
_URN = re.compile(r"urn:pulumi:[^\s\"'`]+")
# Types whose last part is also that of another provider's: Docker's containers and volumes.
_AMBIGUOUS = {
    "openstack:objectstorage/container:Container": "objectstorage.Container",
    "openstack:blockstorage/volume:Volume": "blockstorage.Volume",
}
_ABSENT = object()


class PlanError(Exception):
    """There is no plan; the text is one line that says why."""


@dataclass(frozen=True)
class Property:
    """A property that changes, by its path. None is a value that is not there."""

    path: str
    before: Any
    after: Any

    @property
    def is_secret(self) -> bool:
        """Whether both values are secrets, so that all there is to say is that they differ."""
        return bool(self.before == SECRET and self.after == SECRET)


@dataclass(frozen=True)
class Change:
    """What happens to one resource.

    `type` is the last part of its type token, Instance or UserRunner; with its module where that is ambiguous.
    """

    operation: Operation
    type: str
    name: str
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    reasons: Sequence[str] = ()
    protected: bool = False

    @cached_property
    def properties(self) -> list[Property]:
        """What changes, where both sides are there to compare. Inputs only: outputs follow from them."""
        if self.operation in ("create", "delete"):
            return []
        found = list(_differences(self.old, self.new, ""))
        # A secret looks the same before and after: that it changes, only the reasons tell.
        told = {part for each in found for part in (each.path.partition(".")[0].partition("[")[0],)}
        for reason in self.reasons:
            key = reason.partition(".")[0].partition("[")[0]
            if key not in told and _holds_secret(self.new.get(key)):
                found.append(Property(key, SECRET, SECRET))
        return found


@dataclass(frozen=True)
class Violation:
    """What a policy finds wrong with resources, and what to do; `reason` says what the policy is for."""

    policy: str
    is_mandatory: bool
    message: str
    reason: str
    resources: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """What a preview found: changes of resources (components are left out), warnings and errors, one line each, and
    what policies say.
    """

    changes: Sequence[Change] = ()
    warnings: Sequence[str] = ()
    errors: Sequence[str] = ()
    violations: Sequence[Violation] = ()

    @property
    def refusals(self) -> list[Violation]:
        """Violations for which the preview fails."""
        return [violation for violation in self.violations if violation.is_mandatory]


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class _State(_Model):
    inputs: dict[str, Any] | None = None
    custom: bool = True
    protect: bool = False


class _Step(_Model):
    op: str
    urn: str
    old_state: _State | None = None
    new_state: _State | None = None
    detailed_diff: dict[str, Any] | None = None
    diff_reasons: list[str] = Field(default_factory=list)
    replace_reasons: list[str] = Field(default_factory=list)


class _Diagnostic(_Model):
    message: str
    severity: str


class _Preview(_Model):
    steps: list[_Step] = Field(default_factory=list)
    diagnostics: list[_Diagnostic] = Field(default_factory=list)


# What the engine says itself of a preview that policies refuse: that it failed, and, since it is cancelled, that a
# plugin has ended before it was asked to.
_OF_REFUSAL = re.compile(r"(error: )?\s*(preview failed\s*$|Detected that .* exited prematurely\.)")


def read(text: str, *, refused: bool = False) -> Plan:
    """The plan in the output of `pulumi preview --json`; `refused` says that policies do. Raises PlanError when it is
    none."""
    try:
        preview = _Preview.model_validate(json.loads(text))
    except (json.JSONDecodeError, ValidationError) as error:
        kind = "not JSON" if isinstance(error, json.JSONDecodeError) else "not what `pulumi preview --json` prints"
        # The text itself is left out: it may hold anything.
        raise PlanError(f"the plan is {kind}") from None
    changes: dict[str, Change] = {}
    for step in preview.steps:
        change = _change(step)
        if change is not None:
            changes.setdefault(step.urn, change)
    warnings, errors = (
        [each.message for each in preview.diagnostics if each.severity == severity] for severity in ("warning", "error")
    )
    if refused:
        errors = [error for error in errors if not _OF_REFUSAL.match(error)]
    return Plan(list(changes.values()), _lines(warnings), _lines(errors))


def _change(step: _Step) -> Change | None:
    operation = _OPERATIONS.get(step.op)
    type_, name = type_and_name(step.urn)
    if operation is None or type_.startswith(("gitlab-runners:", "pulumi:pulumi:")):
        return None
    old, new = step.old_state or _State(), step.new_state or _State()
    return Change(
        operation=operation,
        type=_AMBIGUOUS.get(type_) or _short(type_),
        name=name,
        old=old.inputs or {},
        new=new.inputs or {},
        reasons=list(dict.fromkeys([*step.replace_reasons, *step.diff_reasons, *(step.detailed_diff or {})])),
        protected=old.protect,
    )


def _short(type_: str) -> str:
    kind, _, name = type_.rpartition(":")
    return f"{name} provider" if kind == "pulumi:providers" else name


def type_and_name(urn: str) -> tuple[str, str]:
    """`urn:pulumi:stack::project::types, outermost first::name`."""
    types, _, name = urn.partition("::")[2].partition("::")[2].partition("::")
    return types.rpartition("$")[2], name


def _readable(urn: "re.Match[str]") -> str:
    type_, name = type_and_name(urn[0])
    return f"{type_.rpartition(':')[2]} {name}"


def _lines(messages: Iterable[str]) -> list[str]:
    lines = (
        _URN.sub(_readable, line.strip().removeprefix("warning: ").removeprefix("error: "))
        for message in messages
        for line in message.splitlines()
    )
    return list(dict.fromkeys(line for line in lines if line))


def _differences(old: Any, new: Any, path: str) -> Iterator[Property]:
    if old == new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        # What the provider fills in is missing where a preview cannot ask it, and names are made up anew.
        skipped = {*old.get("__defaults", ()), *new.get("__defaults", ())}
        for key in dict.fromkeys([*old, *new]):
            if not key.startswith("__") and key not in skipped | _DERIVED:
                before, after = old.get(key, _ABSENT), new.get(key, _ABSENT)
                yield from _differences(before, after, f"{path}.{key}" if path else key)
        return
    labels = _labelled(old), _labelled(new)
    if labels[0] is not None and labels[1] is not None:
        for key in dict.fromkeys([*labels[0], *labels[1]]):
            if key not in _DERIVED:
                yield from _differences(labels[0].get(key, _ABSENT), labels[1].get(key, _ABSENT), f"{path}[{key}]")
        return
    if _tables(old) and _tables(new) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, f"{path}[{index}]")
        return
    yield Property(path, None if old is _ABSENT else old, None if new is _ABSENT else new)


def _labelled(value: Any) -> dict[str, Any] | None:
    """Labels and uploaded files of a container as a mapping; None for anything else."""
    for key, content in (("label", "value"), ("file", "content")):
        if _tables(value) and all({key, content} <= each.keys() for each in value):
            return {str(each[key]): each[content] for each in value}
    return None


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) for each in value)


def _holds_secret(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_secret, value.values()))
    return any(map(_holds_secret, value)) if isinstance(value, list) else bool(value == SECRET)
