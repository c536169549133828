"""Prints docs/reference/policies.md: `cd policy && python -m guard_rails.reference > ../docs/reference/policies.md`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard_rails.rules import RULES, Rule

FOLDER = Path(__file__).parents[1]
_HEAD = """\
# Policies

The policy pack in [`policy/`](../../policy), which `pulumi preview` and `pulumi up` ask with `--policy-pack policy`, or
`make preview POLICY=1`. How to configure it, and how to add a policy:
[guard rails](../how-to/guard-rails.md).

A violation of a **mandatory** policy fails the preview, and stops an update before the resource is made or changed. One
of an **advisory** policy warns. A policy that is **disabled** is not asked.
"""
_TAIL = """\
## What a policy sees

Each policy looks at the inputs of one resource, so at what the program declares, and not at what is really in the
clouds. The settings that stand nowhere else in a readable form are inputs of the program's own components: `scope`,
`builds` and `image` of a `Registration`; `flavor` and `image` of a `VirtualMachine`; the same, `plugin`,
`maxInstances`, `capacityPerInstance` and `metadata` of a `WorkerGroup`; `team`, `hosts` and `workers` of the `Fleet`.
No other resource has them: the server has ids, workers are no resources, and config.toml is a secret that a preview
does not know before the runner has a token.

- The user_data of a new machine is not known in its first preview, as its host key is not made yet. The preview then
  says that `no-secret-in-user-data` could not be asked. The update asks it before the machine is made.
- A policy knows one stack. The caps on machines are one for each stack: what a team may have in an environment.
- A runner with a token of its own was registered elsewhere: whether it is locked and protected cannot be seen.
- A stack with `host.kind: docker` makes no machines, and the policies for these have nothing to look at.
- Policies look at stack files through the program. Who can change the program or the pack can do without them:
  [who can do what](../explanation/teams.md).
"""


def reference() -> str:
    """The page, in Markdown."""
    configurations = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}
    titles = ["policy", "what must hold, and why", "what to do", "level", *configurations]
    rows = [[*_about(rule), *(_level(rule, each) for each in configurations.values())] for rule in RULES]
    lines = [_row(titles), _row(["---"] * len(titles)), *map(_row, rows)]
    levels = "`level` is the pack's own; the other columns are what `policy/<environment>.json` makes of it.\n"
    return "\n".join([_HEAD, levels, *lines, "", "## Options\n", *_options(), _TAIL])


def _about(rule: Rule) -> list[str]:
    return [f"`{rule.name}`", f"{rule.rule}. {rule.reason}.", f"{rule.fix}.", rule.level]


def _level(rule: Rule, configuration: dict[str, Any]) -> str:
    said = configuration.get(rule.name, {})
    level: str = said if isinstance(said, str) else said.get("enforcementLevel", rule.level)
    return level


def _options() -> Iterator[str]:
    yield from (_row(["policy", "option", "default", "meaning"]), _row(["---"] * 4))
    for rule in RULES:
        for name, schema in rule.options.items():
            yield _row([f"`{rule.name}`", f"`{name}`", f"`{json.dumps(schema['default'])}`", schema["description"]])
    yield ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(reference(), end="")
