"""`python -m review`: what a change does to the stacks, as one comment on its merge request or pull request."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from review import HostError
from review.assessment import StackReview
from review.comment import Report, render
from review.files import FileChange, changed_files_of, runners_to_declare
from review.hosts import GitLabMergeRequest, Host, base_of, host_of
from review.plan import Plan, PlanError, read
from review.previews import Preview, is_tried_out, previews, redacted
from review.stacks import GitError, Stacks, Touched, changed_files, merge_base, refusals, stacks_at, touched
from scripts.console import Failure, failures_in_one_line
from scripts.stack import require_name
from scripts.toolchain import ROOT
from settings import SettingsError

# Each takes some hundredths of a second; that many would not fit into a comment anyway.
_MOST_DECLARED = 150
_EPILOG = """\
In a merge request's pipeline of GitLab CI (CI_MERGE_REQUEST_IID) the comment goes to the merge request; REVIEW_TOKEN is
a project access token with the scope api and the role Reporter. In a pull request's workflow on GitHub (GITHUB_REF) it
goes to the pull request, with GITHUB_TOKEN. Anywhere else it is only written and printed.

The status is 1 when a preview failed or the comment could not be posted; the report is written and printed all the
same.
"""


def main(arguments: Sequence[str]) -> int:
    """The command; its exit status."""
    asked = _parser().parse_args(arguments)
    with ExitStack() as opened:
        try:
            report = _report(asked, opened)
            host = None if asked.no_post else host_of(os.environ)
        except (GitError, HostError, SettingsError) as error:
            raise Failure(str(error)) from None
    full = redacted(render(report, GitLabMergeRequest.limit), os.environ)
    asked.output.write_text(full)
    print(full, flush=True)
    status = int(any(review.failure is not None for review in report.stacks))
    if host is not None:
        status = max(status, _post(host, report))
    return status


def _post(host: Host, report: Report) -> int:
    body = redacted(render(report, host.limit), os.environ)
    try:
        url = host.post(body, create=bool(report.stacks or report.removed))
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Comment: {url or 'none, as the change touches no stack'}")
    return 0


def _report(asked: argparse.Namespace, opened: ExitStack) -> Report:
    after = before = Stacks(ROOT)
    after.require_names()
    for stack in (*asked.stack, *(name for name, _ in asked.plan)):
        require_name(stack)
    base = asked.base or base_of(os.environ)
    if base is not None:
        before = opened.enter_context(stacks_at(ROOT, merge_base(ROOT, base)))
    if asked.stack or asked.plan:
        chosen = Touched([*asked.stack, *(name for name, _ in asked.plan if name not in asked.stack)])
    elif base is not None:
        found = touched(changed_files(ROOT, base), before, after)
        # They are there to be tried out, on clouds that only `make` brings.
        chosen = Touched([stack for stack in found.stacks if asked.sandbox or not is_tried_out(stack)], found.removed)
    else:
        raise Failure("nothing says what changed: name a revision with --base, or stacks with --stack")
    made: dict[str, Preview] = {name: _given(file) for name, file in asked.plan}
    if base is not None:
        refused = refusals(chosen.stacks, before, after)
        made |= {stack: (Plan(), why) for stack, why in refused.items()}
    left = [stack for stack in chosen.stacks if stack not in made]
    made |= previews(left, asked.at_once, with_policies=asked.policies)
    reviews = [
        StackReview(stack, *made[stack], before=before.settings(stack), after=after.settings(stack))
        for stack in chosen.stacks
    ]
    reviews = list(_with_files(reviews, before, after))
    return Report(reviews, chosen.removed, os.environ.get("CI_COMMIT_SHA") or os.environ.get("GITHUB_SHA"))


def _with_files(reviews: Sequence[StackReview], before: Stacks, after: Stacks) -> Iterator[StackReview]:
    left = _MOST_DECLARED
    for review in reviews:
        files: Sequence[FileChange] = ()
        if review.plan.changes and review.failure is None and review.before is not None and review.after is not None:
            urls = before.gitlab_url(review.stack), after.gitlab_url(review.stack)
            left -= len(runners_to_declare(review.before, review.after, urls))
            if left >= 0:
                try:
                    files = changed_files_of(review.stack, review.before, review.after, urls)
                except Exception as error:  # The program itself runs here; a comment without files is one all the same.
                    print(f"warning: the files of {review.stack} cannot be compared: {error!r}", file=sys.stderr)
        yield replace(review, files=files)


def _given(file: Path) -> Preview:
    try:
        return read(file.read_text()), None
    except OSError as error:
        return Plan(), f"{file} cannot be read: {error.strerror}"
    except PlanError as error:
        return Plan(), f"{file}: {error}"


def _plan(text: str) -> tuple[str, Path]:
    stack, separator, file = text.partition("=")
    if not separator or not stack or not file:
        raise argparse.ArgumentTypeError(f"{text}: must be STACK=FILE")
    return stack, Path(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m review",
        description="Previews the stacks that a change touches, and says in one comment what it would do.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", metavar="REVISION", help="the change is from where HEAD forked off here; CI tells it")
    parser.add_argument(
        "--stack", action="append", default=[], metavar="NAME", help="preview this stack, whatever changed; repeatable"
    )
    parser.add_argument(
        "--plan",
        action="append",
        default=[],
        type=_plan,
        metavar="STACK=FILE",
        help="take what `pulumi preview --json` has printed into a file; repeatable",
    )
    parser.add_argument("--sandbox", action="store_true", help="also preview stacks that run in the embedded sandbox")
    parser.add_argument("--policies", action="store_true", help="ask the policy pack about each preview")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="previews that run at once (default: 4)")
    parser.add_argument(
        "--output", type=Path, default=Path("preview.md"), metavar="FILE", help="the report (default: preview.md)"
    )
    parser.add_argument("--no-post", action="store_true", help="write and print the report, and post nothing")
    return parser


if __name__ == "__main__":
    with failures_in_one_line():
        sys.exit(main(sys.argv[1:]))
