"""Which stacks a pipeline of the default branch is to update: as a child pipeline of GitLab, or a list for GitHub.

After a push those are the stacks that it touches; in a pipeline that a person starts, all.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from review.previews import is_tried_out
from review.stacks import GitError, Stacks, changed_files, merge_base, stacks_at, touched
from scripts.console import Failure, failures_in_one_line
from scripts.toolchain import ROOT
from settings import SettingsError
from settings.layers import owner_of
from settings.names import name_mistake

OTHER = "other"
"""In the place of an environment, for stacks without layers."""
_JOB = "ci/pulumi-job.gitlab-ci.yml"


def chosen(root: Path, base: str | None, *, sandbox: bool) -> list[str]:
    """The stacks that differ between the commit `base` and HEAD; all where that cannot be told.

    Those that are run in the embedded sandbox are left out, but for `sandbox`. Failure when one is called as no stack
    may be.
    """
    there = Stacks(root)
    try:
        there.require_names()
    except SettingsError as error:
        raise Failure(str(error)) from None
    stacks = _touched(root, base) if base else there.names()
    return [stack for stack in stacks if sandbox or not is_tried_out(stack)]


def _touched(root: Path, base: str) -> Sequence[str]:
    after = Stacks(root)
    try:
        # After a forced push what was there before is no part of what is there now.
        if merge_base(root, base) != base:
            return after.names()
        with stacks_at(root, base) as before:
            found = touched(changed_files(root, base), before, after)
    except GitError:
        # The first push of a branch has none before it: GitLab and GitHub then say 000….
        return after.names()
    for stack in found.removed:
        print(f"{stack}: its file is removed, but what it made stays; run `pulumi destroy` on it", file=sys.stderr)
    return found.stacks


def environment_of(stack: str) -> str:
    """The environment that a stack belongs to. Failure when that is not clear."""
    try:
        owner = owner_of(stack)
    except SettingsError as error:
        raise Failure(str(error)) from None
    return owner.environment if owner else OTHER


def child_pipeline(
    stacks: Mapping[str, str], environments: Sequence[str], approved: Sequence[str], inputs: Mapping[str, str]
) -> dict[str, Any]:
    """A child pipeline for GitLab with a job a stack.

    Args:
        stacks: their environments by the stacks' names.
        environments: in the order in which they are updated; each waits until all before it are done.
        approved: environments, or `other`, whose jobs wait for a person.
        inputs: of the file that tells how a job runs Pulumi.

    Raises:
        Failure: when nothing says when an environment's turn is, or a name is none.
    """
    named = [("stack", name) for name in stacks] + [("environment", name) for name in (*environments, *approved)]
    if mistakes := [mistake for what, name in named if (mistake := name_mistake(what, name)) is not None]:
        raise Failure("\n".join(mistakes))
    stages = [*environments, *([OTHER] if OTHER not in environments else [])]
    for stack, environment in stacks.items():
        if environment not in stages:
            raise Failure(
                f"{stack}: its environment {environment} is not among those that are updated, "
                f"which are {', '.join(environments)}: add it to the input `environments`, in its place"
            )
    for environment in approved:
        if environment not in stages:
            raise Failure(f"input `approve`: {environment} is not among {', '.join(stages)}")
    jobs = {f"up {stack}": _job(stack, environment, approved) for stack, environment in stacks.items()}
    if not jobs:
        # GitLab refuses a pipeline without jobs.
        jobs["nothing to update"] = {
            "stage": stages[0],
            "image": inputs["image"],
            "tags": [inputs["runner-tag"]],
            "script": ["echo 'This push touches no stack.'"],
        }
    return {"include": [{"local": _JOB, "inputs": dict(inputs)}], "stages": stages, **jobs}


def _job(stack: str, environment: str, approved: Sequence[str]) -> dict[str, Any]:
    by_hand = {"when": "manual", "allow_failure": False} if environment in approved else {}
    return {
        "extends": ".pulumi",
        "stage": environment,
        "environment": {"name": f"{environment}/{stack}"},
        "resource_group": f"stack/{stack}",
        **by_hand,
        # No variable, which whoever starts the job could set: another stack would then be updated in this one's place.
        "script": [f"make up STACK={quote(stack)} YES=1 POLICY=1"],
    }


def _base(environment: Mapping[str, str]) -> str | None:
    """What the default branch was before a push, from a CI job's variables; None in other pipelines."""
    if environment.get("CI_PIPELINE_SOURCE") == "push":
        return environment.get("CI_COMMIT_BEFORE_SHA")
    return environment.get("PUSHED_AFTER") if environment.get("GITHUB_EVENT_NAME") == "push" else None


def main(arguments: Sequence[str]) -> None:
    """Writes the child pipeline, or prints the list."""
    asked = _parser().parse_args(arguments)
    stacks = {stack: environment_of(stack) for stack in chosen(ROOT, _base(os.environ), sandbox=asked.sandbox)}
    if asked.host == "github":
        print(json.dumps([stack for stack, environment in stacks.items() if environment == asked.environment]))
        return
    inputs = {"image": asked.image, "runner-tag": asked.runner_tag}
    pipeline = child_pipeline(stacks, asked.environments.split(), asked.approve.split(), inputs)
    asked.output.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    for name, job in pipeline.items():
        if isinstance(job, dict):
            print(f"{job['stage']}: {name}{', when a person starts it' if 'when' in job else ''}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts.pipeline", description=__doc__)
    parser.add_argument("--sandbox", action="store_true", help="also stacks that run in the embedded sandbox")
    hosts = parser.add_subparsers(dest="host", required=True)
    gitlab = hosts.add_parser("gitlab", help="writes a child pipeline")
    gitlab.add_argument("--environments", required=True, metavar="NAMES", help="in their order, with spaces in between")
    gitlab.add_argument("--approve", default="", metavar="NAMES", help="environments whose jobs wait for a person")
    gitlab.add_argument("--image", required=True, help="image of the jobs")
    gitlab.add_argument("--runner-tag", required=True, help="tag of the runners that run the jobs")
    gitlab.add_argument("--output", type=Path, required=True, metavar="FILE")
    github = hosts.add_parser("github", help="prints a JSON list")
    github.add_argument("--environment", required=True, metavar="NAME", help=f"whose stacks; `{OTHER}` for the others")
    return parser


if __name__ == "__main__":
    with failures_in_one_line():
        main(sys.argv[1:])
