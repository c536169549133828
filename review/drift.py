"""`python -m review.drift`: what is not as the last update left it, in one issue that is closed when all is well."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from review import HostError
from review.assessment import StackReview, name_of
from review.issues import MARKER, GitLabIssues, tracker_of
from review.markdown import code, number, value
from review.plan import UNKNOWN, Change
from review.previews import is_tried_out, previews, redacted
from scripts.console import Failure, failures_in_one_line
from scripts.stack import require_file
from settings import layers

_REFRESH = ("refresh", "--preview-only")
_EPILOG = """\
In GitLab CI (CI_API_V4_URL) the issue is one of the project; REVIEW_TOKEN is a project access token with the scope api
and the role Reporter. In a workflow on GitHub (GITHUB_REPOSITORY) it is one of the repository, with GITHUB_TOKEN.
Anywhere else the report is only written and printed.

The status is 1 when a stack could not be looked at or the issue could not be posted; drift alone is no failure.
"""


def main(arguments: Sequence[str]) -> int:
    """The command; its exit status."""
    asked = _parser().parse_args(arguments)
    if mistakes := layers.misnamed():
        raise Failure("\n".join(mistakes))
    for stack in asked.stack:
        require_file(stack)
    # As in the preview comment: what is there to be tried out is on clouds that only `make` brings.
    stacks = asked.stack or [stack for stack in layers.stacks() if asked.sandbox or not is_tried_out(stack)]
    try:
        tracker = None if asked.no_post else tracker_of(os.environ)
    except HostError as error:
        raise Failure(str(error)) from None
    reviews = [StackReview(stack, *found) for stack, found in previews(stacks, asked.at_once, _REFRESH).items()]
    report = redacted(render(reviews, GitLabIssues.limit), os.environ)
    asked.output.write_text(report)
    print(report, flush=True)
    failed = any(review.failure is not None for review in reviews)
    if tracker is None:
        return int(failed)
    drifts = any(_drifts(review) for review in reviews)
    if failed and not drifts:
        # Nothing is known of that stack: neither a reason to open the issue nor one to close it.
        return 1
    try:
        url = tracker.post(redacted(render(reviews, tracker.limit), os.environ), is_open=drifts)
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Issue: {url or 'none, as nothing differs'}")
    return int(failed)


def _drifts(review: StackReview) -> bool:
    return review.failure is None and bool(review.plan.changes)


def render(reviews: Sequence[StackReview], limit: int) -> str:
    """The report as Markdown, of at most `limit` bytes as UTF-8; lines that do not fit are left out and counted.

    It says nothing about when it was made, so that it stays the same while nothing else differs.
    """
    lines = [MARKER, *_lines(reviews)]
    left = limit - len("\n\n… and 0000000 more lines: see the job's file and log\n")
    kept: list[str] = []
    for line in lines:
        left -= len(line.encode()) + 1
        if left < 0:
            rest = number(len(lines) - len(kept), "more line")
            kept += ["", f"… and {rest}: see the job's file and log"]
            break
        kept.append(line)
    return "\n".join(kept) + "\n"


def _lines(reviews: Sequence[StackReview]) -> Iterator[str]:
    changed = [review for review in reviews if _drifts(review)]
    if changed:
        yield "Something was changed by hand, or by somebody else's program, since the last update."
        yield ""
        yield "- To have it undone: `make refresh STACK=…`, then `make up STACK=…`, which says what it will do first."
        yield "  A machine's flavor, image and zone stay until the machine is replaced, after its jobs."
        yield "- To keep it: put it into the stack's file, then the same."
    else:
        yield "Nothing differs from what was applied."
    for review in changed:
        yield from ("", f"### {code(review.stack)}", "")
        for change in sorted(review.plan.changes, key=lambda each: (name_of(each).kind, name_of(each).which)):
            yield from _change(change)
    failed = [review for review in reviews if review.failure is not None]
    if failed:
        yield from ("", "### Not looked at", "")
        yield from (f"- {code(review.stack)}: {code(review.failure or '', 300)}" for review in failed)


def _change(change: Change) -> Iterator[str]:
    name = name_of(change)
    yield f"- **{'gone' if change.operation == 'delete' else 'changed'}**: {name.kind} {code(name.which)}"
    properties = [each for each in change.properties if UNKNOWN not in (each.before, each.after)]
    for each in properties:
        if each.is_secret:
            yield f"  - {code(each.path)}: changed; it holds a secret"
        else:
            yield f"  - {code(each.path)}: {value(each.before)} → {value(each.after)}"
    if not properties and change.operation != "delete":
        yield from (f"  - {code(reason)}" for reason in change.reasons)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m review.drift",
        description="Looks at everything that stacks have made, and says in one issue what is not as it was applied.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--stack", action="append", default=[], metavar="NAME", help="look at this stack, not at all; repeatable"
    )
    parser.add_argument("--sandbox", action="store_true", help="also look at stacks that run in the embedded sandbox")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="stacks at once (default: 4)")
    parser.add_argument(
        "--output", type=Path, default=Path("drift.md"), metavar="FILE", help="the report (default: drift.md)"
    )
    parser.add_argument("--no-post", action="store_true", help="write and print the report, and post nothing")
    return parser


if __name__ == "__main__":
    with failures_in_one_line():
        sys.exit(main(sys.argv[1:]))
