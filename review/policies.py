"""What a policy pack says against a preview, from the engine's event log: a JSON object a line.

`pulumi preview --json` itself tells only that the preview failed. Secrets are `[secret]` in the log already.
"""

import json
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from review.plan import PlanError, Violation, type_and_name

# What pulumi-policy says where a policy looks at a value that only the update will tell.
_NOT_ASKED = "can't run policy"


class _Event(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")

    resource_urn: str = ""
    message: str
    policy_name: str
    enforcement_level: str


def read(log: str) -> tuple[list[Violation], list[str]]:
    """The violations in an event log, alike ones once, and the policies that could not be asked.

    Raises PlanError when the log cannot be read.
    """
    found: dict[tuple[str, bool, str, str], list[str]] = {}
    not_asked: dict[str, None] = {}
    for event in _events(log):
        # The policy's description, then what this resource does against it.
        *description, message = [line.strip() for line in event.message.splitlines() if line.strip()] or [""]
        if message.startswith(_NOT_ASKED):
            not_asked[event.policy_name] = None
            continue
        key = event.policy_name, event.enforcement_level == "mandatory", message, " ".join(description)
        found.setdefault(key, []).append(type_and_name(event.resource_urn)[1])
    # The engine asks about many resources at once: the same plan must become the same comment.
    violations = [Violation(*key, sorted(set(names))) for key, names in sorted(found.items())]
    return violations, sorted(not_asked)


def _events(log: str) -> Iterator[_Event]:
    for line in log.splitlines():
        if '"policyEvent"' in line:
            try:
                yield _Event.model_validate(json.loads(line)["policyEvent"])
            except (json.JSONDecodeError, KeyError, TypeError, ValidationError):
                raise PlanError("the policies' verdict cannot be read") from None
