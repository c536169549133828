"""The comment: warnings, a line for each stack, and below it, folded up, what changes in each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby

from review.assessment import CONFIGURATION_SUFFIX, Jobs, StackReview, name_of, telling
from review.markdown import cell_code, code, details, diff, fence, html_code, number, value
from review.picture import picture
from review.plan import SECRET, UNKNOWN, Change, Operation, Property

MARKER = "<!-- gitlab-runners:preview -->"
"""First line of the comment, by which it is found again."""
TITLE = "## Preview of the runners"
_DONE: dict[Operation, str] = {
    "create": "created",
    "update": "updated",
    "replace": "replaced",
    "delete": "removed",
}
# All that these say are ids and addresses of other resources.
_WITHOUT_PROPERTIES = {"DeclaredRules", "FloatingIpAssociate", "docker provider", "Drain", "Handover", "JobsEnded"}
_MOST_WARNINGS = 30
_MOST_STACKS = 200
_LONGEST_ERROR = 300
_LONGEST_LIST = 8


class Detail(IntEnum):
    """How much is told about one stack below its line."""

    NOTHING = 0
    NAMES = 1
    CHANGES = 2
    ALL = 3


@dataclass(frozen=True)
class Report:
    """All that the comment tells: the stacks, those whose file the change removes, and which commit was previewed."""

    stacks: Sequence[StackReview]
    removed: Sequence[str] = ()
    commit: str | None = None


def render(report: Report, limit: int) -> str:
    """The comment as Markdown, of at most `limit` bytes as UTF-8, which is never less than its characters.

    What does not fit is left out where there is most of it: first pictures and files, then properties, then all that is
    folded up.
    """
    changed = [review for review in _ordered(report.stacks) if not review.is_unchanged]
    levels = dict.fromkeys((review.stack for review in changed), Detail.ALL)
    parts = {review.stack: _stack(review, Detail.ALL) for review in changed}
    by_name = {review.stack: review for review in changed}
    head = _head(report, changed, _MOST_STACKS, _MOST_WARNINGS)
    shortened = ""

    def size() -> int:
        return _bytes(head) + _bytes(shortened) + sum(_bytes(part) + 2 for part in parts.values()) + 4

    total = size()
    while total > limit and any(levels.values()):
        shortened = "_Shortened to fit: the full report is the job's file and log._"
        stack = max((each for each in levels if levels[each]), key=lambda each: _bytes(parts[each]))
        levels[stack] = Detail(levels[stack] - 1)
        parts[stack] = _stack(by_name[stack], levels[stack])
        total = size()
    most = _MOST_STACKS
    while total > limit and most:
        most //= 2
        head = _head(report, changed, most, most // 4)
        total = size()
    return "\n\n".join(part for part in (head, shortened, *parts.values()) if part) + "\n"


def _bytes(text: str) -> int:
    return len(text.encode())


def _ordered(stacks: Sequence[StackReview]) -> list[StackReview]:
    """What needs a look comes first."""
    return sorted(stacks, key=lambda review: (review.failure is None, -review.jobs[0], review.stack))


def _head(report: Report, changed: Sequence[StackReview], most_stacks: int, most_warnings: int) -> str:
    commit = f" at {code(report.commit[:12])}" if report.commit else ""
    parts = [f"{MARKER}\n{TITLE}{commit}"]
    warnings = [
        f"- {code(review.stack)}: {warning.text}{': ' + code(warning.subject) if warning.subject else ''}"
        for review in changed
        for warning in review.warnings
    ]
    warnings = [*_violations(report.stacks, "**refused** by", mandatory=True), *warnings]
    warnings += [
        f"- {code(stack)}: its file is removed, but what it made stays; run `pulumi destroy` on it first"
        for stack in report.removed
    ]
    warnings += _violations(report.stacks, "warning of", mandatory=False)
    if warnings:
        more = [f"- … and {number(len(warnings) - most_warnings, 'more')}"] if len(warnings) > most_warnings else []
        parts.append("\n".join(["### ⚠️ Look at these first", "", *warnings[:most_warnings], *more]))
    if changed and most_stacks:
        rows = [_row(review) for review in changed[:most_stacks]]
        more = [f"\n… and {number(len(changed) - most_stacks, 'more stack')}"] if len(changed) > most_stacks else []
        header = ["| stack | create | update | replace | remove | running jobs |", "|---|--:|--:|--:|--:|---|"]
        parts.append("\n".join([*header, *rows, *more]))
    elif changed:
        parts.append(f"{number(len(changed), 'stack')} would change.")
    unchanged = sorted(review.stack for review in report.stacks if review.is_unchanged)
    if unchanged:
        parts.append(f"Nothing changes in {_listed(unchanged)}.")
    if not report.stacks:
        parts.append("This change touches no stack.")
    return "\n\n".join(parts)


def _violations(reviews: Sequence[StackReview], what: str, *, mandatory: bool) -> list[str]:
    """A line for each thing that policies find wrong. The names of resources begin with that of their stack."""
    alike: dict[tuple[str, str], list[str]] = {}
    for review in reviews:
        for each in review.plan.violations:
            if each.is_mandatory == mandatory:
                alike.setdefault((each.policy, each.message), []).extend(each.resources)
    return [
        f"- {what} policy {code(policy)}: {code(message, _LONGEST_ERROR)} ({_listed(sorted(resources))})"
        for (policy, message), resources in sorted(alike.items())
    ]


def _row(review: StackReview) -> str:
    if review.failure is not None:
        return f"| {cell_code(review.stack)} | | | | | ❌ preview failed: {cell_code(review.failure, _LONGEST_ERROR)} |"
    counts = " | ".join(str(count or "") for count in review.counts.values())
    return f"| {cell_code(review.stack)} | {counts} | {_jobs(review)} |"


def _jobs(review: StackReview) -> str:
    effect, reason = review.jobs
    match effect:
        case Jobs.MAY_DIE:
            return f"🔴 **may be killed**: {cell_code(reason, _LONGEST_ERROR)}"
        case Jobs.FINISH_FIRST:
            return f"🟡 finish first{', ' + reason if reason else ''}"
        case _:
            return "🟢 notice nothing"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(code(name) for name in names[:_LONGEST_LIST])
    return shown if len(names) <= _LONGEST_LIST else f"{shown} and {number(len(names) - _LONGEST_LIST, 'more', 'more')}"


def _stack(review: StackReview, detail: Detail) -> str:
    if detail is Detail.NOTHING or review.is_unchanged:
        return ""
    summary = f"{html_code(review.stack)}: {_counted(review)}"
    parts: list[str] = []
    if review.failure is not None:
        # What the engine had found until then is not what would happen.
        refusals = (f"policy {each.policy}: {each.message}\n  {each.reason}" for each in review.plan.refusals)
        parts.append(fence("text", "\n".join([*review.plan.errors, *refusals] or [review.failure])))
    else:
        parts.append(picture(review) if detail is Detail.ALL else "")
        parts.append("\n".join(_changes(review.plan.changes, with_properties=detail > Detail.NAMES)))
        parts += _files(review) if detail is Detail.ALL else []
    if review.plan.warnings and detail > Detail.NAMES:
        warnings = [f"- {code(warning, _LONGEST_ERROR)}" for warning in review.plan.warnings]
        parts.append("\n".join(["The program warns:", "", *warnings]))
    return details(summary, "\n\n".join(part for part in parts if part))


def _counted(review: StackReview) -> str:
    if review.failure is not None:
        return "the preview failed"
    return ", ".join(f"{count} {_DONE[operation]}" for operation, count in review.counts.items() if count)


def _changes(changes: Sequence[Change], *, with_properties: bool) -> list[str]:
    """A line for each kind of change with the same properties, and the properties below it; the rest on one line."""
    order = {"Instance": 0, "UserRunner": 1, "SecGroupRule": 2, "Container": 3}
    lines = [(change, tuple(_properties(change)) if with_properties else ()) for change in changes]
    key: Callable[[tuple[Change, tuple[str, ...]]], tuple[int, str, str, tuple[str, ...]]] = lambda each: (  # noqa: E731
        order.get(each[0].type, len(order)),
        _DONE[each[0].operation],
        name_of(each[0]).kind,
        each[1],
    )
    written = []
    # What mostly follows from the others is on one line, where there is no more to say of it.
    besides: dict[str, list[str]] = {}
    for (rank, operation, kind, properties), group in groupby(sorted(lines, key=key), key):
        names = f"{kind} {_listed(sorted(name_of(change).which for change, _ in group))}"
        if rank == len(order) and not properties:
            besides.setdefault(operation, []).append(names)
        else:
            written.append(f"- **{operation}** {names}")
            written += [f"  - {each}" for each in properties]
    return written + [f"- **{operation}** {'; '.join(names)}" for operation, names in besides.items()]


def _properties(change: Change) -> list[str]:
    if change.type in _WITHOUT_PROPERTIES:
        return []
    if change.operation == "create":
        return [f"{code(key)}: {value(given)}" for key, given in telling(change) if given not in (SECRET, UNKNOWN)]
    return [_property(each) for each in change.properties if each.after != UNKNOWN]


def _property(given: Property) -> str:
    if given.is_secret:
        return f"{code(given.path)}: changes; it holds a secret"
    if _is_file(given):
        return f"{code(given.path)}: see the difference below"
    return f"{code(given.path)}: {value(given.before)} → {value(given.after)}"


def _is_file(given: Property) -> bool:
    sides = (given.before, given.after)
    is_text = all(side is None or (isinstance(side, str) and side not in (SECRET, UNKNOWN)) for side in sides)
    return is_text and any("\n" in side.strip() for side in sides if side is not None)


def _files(review: StackReview) -> list[str]:
    """Differences of files, those that look alike only once."""
    changes = {
        (change.name, each.path.partition("[")[2].rstrip("]")): (each.before, each.after)
        for change in review.plan.changes
        for each in change.properties
        if _is_file(each)
    }
    # The plan knows better what it shows; the rest is a secret there.
    for file in review.files:
        changes.setdefault((file.resource, file.path), (file.before, file.after))
    alike: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
    for (resource, path), (before, after) in changes.items():
        shown = diff(before or "", after or "", path.lstrip("/"))
        signed = tuple(line for line in shown.splitlines() if line.startswith(("+", "-")))
        alike.setdefault(signed, []).append((resource, path, shown))
    return [
        f"{code(path)} of {_listed([resource.removesuffix(CONFIGURATION_SUFFIX) for resource, *_ in each])}:\n\n{shown}"
        for each in alike.values()
        for _, path, shown in each[:1]
        if shown
    ]
