"""Runs `pulumi preview --json`, or that of another command, for the stacks."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from review.plan import Plan, PlanError, read
from scripts.console import Failure, last_line
from scripts.stack import Stack, in_sandbox, open_stack, sandbox_up
from scripts.toolchain import ROOT

Preview = tuple[Plan, str | None]
"""A plan, and why there is none."""


def previews(stacks: Sequence[str], at_once: int, command: Sequence[str] = ("preview",)) -> dict[str, Preview]:
    """A preview of each stack, `at_once` at a time; one that fails never stops the others.

    `command` is the one of Pulumi that is to be previewed.
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
        return dict(zip(opened, pool.map(partial(_preview, command), opened.values()), strict=True))


def is_tried_out(stack: str) -> bool:
    """Whether a stack runs in the embedded sandbox; one whose layers are wrong does not run at all."""
    try:
        return in_sandbox(stack)
    except Failure:
        return False


def _preview(what: Sequence[str], stack: Stack | str) -> Preview:
    if isinstance(stack, str):
        return Plan(), stack
    file = [f"--config-file={stack.config_file}"] if stack.config_file else []
    command = ["pulumi", *what, "--json", "--non-interactive", f"--stack={stack.name}", *file]
    done = subprocess.run(command, cwd=ROOT, env=stack.environment, capture_output=True, text=True, check=False)
    return preview_of(done.stdout, done.stderr, done.returncode)


def preview_of(output: str, errors: str, status: int) -> Preview:
    """What a preview that ended with this status printed."""
    try:
        plan = read(output)
    except PlanError as error:
        # Before there is a plan the engine says on the other channel why there will be none.
        return Plan(), last_line(errors).removeprefix("error: ") if status else str(error)
    if status and not plan.errors:
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
