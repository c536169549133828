"""A stack as a Mermaid flowchart: where its runners belong in GitLab, the runners, the hosts, and what changes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from review.assessment import StackReview, is_configuration, runner_of
from review.markdown import fence, one_line
from review.plan import Operation
from settings import OpenStackHost, Runner, Settings

# Colours that are told apart on a light and on a dark page, and by people who do not see red and green: the words on
# the nodes say the same.
_COLOURS: Mapping[Operation, str] = {
    "create": "fill:#dafbe1,stroke:#1a7f37,color:#1f2328",
    "update": "fill:#ddf4ff,stroke:#0969da,color:#1f2328",
    "replace": "fill:#fff8c5,stroke:#9a6700,color:#1f2328",
    "delete": "fill:#ffebe9,stroke:#cf222e,color:#1f2328,stroke-dasharray:4",
}
_WORDS: Mapping[Operation, str] = {"create": "new", "update": "changed", "replace": "replaced", "delete": "removed"}
_LONGEST_LABEL = 40
# More would be drawn too small to read.
_MOST_RUNNERS = 30
_MOST_HOSTS = 12


@dataclass(frozen=True)
class _Node:
    id: str
    label: str
    operation: Operation | None


def picture(review: StackReview) -> str:
    """The flowchart as a block of Markdown; empty where nobody can tell what the stack says, or it is too large."""
    settings = review.after or review.before
    if settings is None:
        return ""
    runners = {**(review.before.runners if review.before else {}), **settings.runners}
    hosts = list(_hosts(review, settings))
    runners = {name: runner for name, runner in runners.items() if name in settings.runners or _of(review, name)}
    if len(runners) > _MOST_RUNNERS or len(hosts) > _MOST_HOSTS:
        return ""
    lines = ["flowchart LR"]
    scopes: dict[str, str] = {}
    for index, (name, runner) in enumerate(runners.items()):
        scope = scopes.setdefault(_scope(runner), f"s{len(scopes)}")
        node = _Node(f"r{index}", f"runner {name}", _of(review, name))
        lines += [_drawn(node, "([", "])"), f"  {scope} --> {node.id}", f"  {node.id} --> hosts"]
    lines += [f'  {id_}["{_label(scope)}"]' for scope, id_ in scopes.items()]
    lines.append('  subgraph hosts ["hosts"]')
    lines += [_drawn(host, "[", "]") for host in hosts]
    lines.append("  end")
    lines += [f"  classDef {operation} {style}" for operation, style in _COLOURS.items()]
    return fence("mermaid", "\n".join(lines))


def _hosts(review: StackReview, settings: Settings) -> Iterator[_Node]:
    changed = {change.name: change.operation for change in review.plan.changes if change.type == "Instance"}
    count = settings.host.count if isinstance(settings.host, OpenStackHost) else 1
    # In this order: the numbers are not padded.
    names = dict.fromkeys([*(f"{review.stack}-{number}" for number in range(1, count + 1)), *changed])
    for index, name in enumerate(names):
        kind = "virtual machine" if isinstance(settings.host, OpenStackHost) or name in changed else "Docker Engine"
        yield _Node(f"h{index}", f"{kind} {name}", changed.get(name))


def _of(review: StackReview, runner: str) -> Operation | None:
    """What happens to a runner: to its registration, else to its managers, else to their configuration."""
    registration: list[Operation] = []
    managers: list[Operation] = []
    configurations: list[Operation] = []
    for change in review.plan.changes:
        if change.type == "UserRunner" and change.name == f"{review.stack}-{runner}":
            registration.append(change.operation)
        elif change.type == "Container" and runner_of(change) == runner:
            (configurations if is_configuration(change) else managers).append(change.operation)
    if registration:
        return registration[0]
    # With a host more or less only some managers come or go: the runner itself stays.
    if managers:
        return managers[0] if len(set(managers)) == 1 and managers[0] != "create" else "update"
    return "update" if configurations else None


def _scope(runner: Runner) -> str:
    if runner.project is not None:
        return f"GitLab project {runner.project}"
    if runner.group is not None:
        return f"GitLab group {runner.group}"
    return "GitLab instance" if runner.instance else "GitLab, registered by hand"


def _drawn(node: _Node, begin: str, end: str) -> str:
    word = f"<br/>{_WORDS[node.operation]}" if node.operation else ""
    class_ = f":::{node.operation}" if node.operation else ""
    return f'  {node.id}{begin}"{_label(node.label)}{word}"{end}{class_}'


def _label(text: str) -> str:
    """Text for a label in quotes; all but letters, digits and a few signs as Mermaid's entity codes."""
    return "".join(
        character if character.isalnum() or character in " -_.," else f"#{ord(character)};"
        for character in one_line(text, _LONGEST_LABEL)
    )
