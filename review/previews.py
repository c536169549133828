"""Runs `pulumi preview --json`, or that of another command, for the stacks."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from review import policies
from review.plan import Plan, PlanError, read
from scripts.console import Failure, last_line
from scripts.stack import Stack, in_sandbox, open_stack, policy_pack, sandbox_up
from scripts.toolchain import ROOT

Preview = tuple[Plan, str | None]
"""A plan, and why there is none."""


def previews(
    stacks: Sequence[str], at_once: int, command: Sequence[str] = ("preview",), *, with_policies: bool = False
) -> dict[str, Preview]:
    """A preview of each stack, `at_once` at a time; one that fails never stops the others.

    `command` is the one of Pulumi that is to be previewed; `with_policies` asks the policy pack about each stack, in
    the configuration of its environment.
    """
    if any(map(is_tried_out, stacks)):
        sandbox_up()
    opened: dict[str, Stack | str] = {}
    for name in stacks:
        # One after the other: Pulumi keeps the selected stack in a file.
        try:
            opened[name] = open_stack(name)
        except Failure as failure:
            opened[name] = str(failure)
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        previewed = pool.map(partial(_preview, command, with_policies), opened.values())
        return dict(zip(opened, previewed, strict=True))


def is_tried_out(stack: str) -> bool:
    """Whether a stack runs in the embedded sandbox; one whose layers are wrong does not run at all."""
    try:
        return in_sandbox(stack)
    except Failure:
        return False


def _preview(command: Sequence[str], with_policies: bool, stack: Stack | str) -> Preview:
    if isinstance(stack, str):
        return Plan(), stack
    return preview(stack, [*command, *(policy_pack(stack.name) if with_policies else [])])


def preview(stack: Stack, command: Sequence[str] = ("preview",)) -> Preview:
    """A preview of one stack by this command of Pulumi, with its options such as a policy pack."""
    file = [f"--config-file={stack.config_file}"] if stack.config_file else []
    with TemporaryDirectory() as folder:
        log = Path(folder) / "events"
        options = ["--json", "--non-interactive", f"--stack={stack.name}", *file, f"--event-log={log}"]
        # The option is one for debugging, which the engine takes only with this variable.
        environment = {**stack.environment, "PULUMI_DEBUG_COMMANDS": "true"}
        done = subprocess.run(
            ["pulumi", *command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        return preview_of(done.stdout, done.stderr, done.returncode, log.read_text() if log.exists() else "")


def preview_of(output: str, errors: str, status: int, log: str = "") -> Preview:
    """What a preview that ended with this status printed, and what policies said, from its event log."""
    try:
        violations, not_asked = policies.read(log)
        plan = read(output, refused=any(violation.is_mandatory for violation in violations))
    except PlanError as error:
        # Before there is a plan the engine says on the other channel why there will be none.
        return Plan(), last_line(errors).removeprefix("error: ") if status and errors else str(error)
    warnings = [f"only the update can ask the policy {policy}" for policy in not_asked]
    plan = replace(plan, violations=violations, warnings=[*plan.warnings, *warnings])
    if status and not plan.errors and not plan.refusals:
        return plan, last_line(errors).removeprefix("error: ")
    return plan, None


def redacted(text: str, environment: Mapping[str, str]) -> str:
    """Text without the values of variables that are secrets by their names. The engine has replaced its own already."""
    for name, secret in environment.items():
        if len(secret) >= _SHORTEST_SECRET and any(word in name.upper() for word in _SECRET_WORDS):
            for form in (secret, json.dumps(secret)[1:-1]):
                text = text.replace(form, "[secret]")
    return text


_SECRET_WORDS = ("TOKEN", "PASSWORD", "PASSPHRASE", "SECRET", "CREDENTIAL", "PRIVATE_KEY", "ACCESS_KEY")
# A shorter one is as well a part of words.
_SHORTEST_SECRET = 8
