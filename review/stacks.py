"""The stacks of a checkout: the files each is made of, what it says, and which of them a change touches."""

import json
import os
import subprocess
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from clients.gitlab import instance_url
from review.plan import SECRET
from settings import Settings, SettingsError, layers, load
from settings.cli_keys import changes, copies
from settings.yaml_file import Location, Origin, Value, read, shown

FOLDER = "stacks"
# Everything else is the program, which touches every stack: what is new is rather previewed once too often.
_HARMLESS_FOLDERS = {"docs", "tests", "sandbox", "scripts", "review", "ops", "ci", ".ci", ".github", ".gitlab"}
_HARMLESS_FILES = {
    ".gitignore",
    ".gitlab-ci.yml",
    "LICENSE",
    "Makefile",
    "pyproject.toml",
    "requirements-dev.txt",
}


class GitError(Exception):
    """Git could not tell what was asked; one line."""


class Stacks:
    """The stacks of one revision, in whose `stacks` folder they are."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / FOLDER

    def names(self) -> list[str]:
        """All stacks that have a file."""
        return layers.stacks(self._folder)

    def require_names(self) -> None:
        """Raises SettingsError when a stack, a team or an environment is called as none may be."""
        if mistakes := layers.misnamed(self._folder):
            raise SettingsError("\n".join(mistakes))

    def files(self, stack: str) -> list[str]:
        """The files that make up a stack, as paths in the repository; none for a stack that does not exist."""
        own = layers.stack_file(stack, self._folder)
        if not own.is_file():
            return []
        try:
            found = layers.layer_files(stack, self._folder)
        except SettingsError:
            found = [own]
        return [file.relative_to(self._root).as_posix() for file in found]

    def has_layers(self, stack: str) -> bool:
        """Whether a stack has layers; one whose name can be read in two ways is refused elsewhere."""
        try:
            return layers.owner_of(stack, self._folder) is not None
        except SettingsError:
            return True

    def own_file(self, stack: str) -> Path:
        """The stack's own file, whether it exists or not."""
        return layers.stack_file(stack, self._folder)

    def settings(self, stack: str) -> Settings | None:
        """What a stack says, with secrets replaced; None where that is nothing or wrong, which the preview tells."""
        if not self.files(stack):
            return None
        try:
            return load(stack, self._config(stack))
        except SettingsError:
            return None

    def gitlab_url(self, stack: str) -> str:
        """GitLab's URL as the gitlab provider has it, from the stack's files alone."""
        try:
            return instance_url({"baseUrl": self._config(stack).get("gitlab:baseUrl", "")}, {})
        except SettingsError:
            return instance_url({}, {})

    def _config(self, stack: str) -> dict[str, str]:
        values = layers.effective(stack, folder=self._folder).values.plain
        masked = {key: _without_secrets(value, (key,)) for key, value in values.items()}
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in masked.items()}


def refusals(stacks: Iterable[str], before: Stacks, after: Stacks) -> dict[str, str]:
    """Why Pulumi must not even read the files of some stacks as a change has them, by the stacks' names.

    What stands at the top of a file is not for a change under review to set, no secret may be one that another stack
    had, and a stack with layers keeps them.
    """
    was = {name: _document(before.own_file(name)) for name in before.names()}
    named = [each.content["secretsprovider"] for each in was.values() if "secretsprovider" in each.content]
    providers = frozenset(str(each.plain) for each in named)
    found = {}
    for stack in stacks:
        document = _document(after.own_file(stack))
        others = (before.own_file(name) for name in was if name != stack)
        lines = "; ".join(
            [
                *_lost_layers(stack, before, after),
                *changes(was.get(stack), document, providers),
                *copies(document, others, " as it was before the change"),
            ]
        )
        if lines:
            for side in (before, after):
                lines = lines.replace(f"{side.own_file(stack).parent}/", f"{FOLDER}/")
            found[stack] = lines
    return found


def _lost_layers(stack: str, before: Stacks, after: Stacks) -> Iterator[str]:
    """A line when a change takes its layers from a stack, and with them what only an environment may say."""
    if before.has_layers(stack) and not after.has_layers(stack):
        yield f"{shown(after.own_file(stack))}: has no layers any more; this change removes one of their files"


def _document(file: Path) -> Value:
    """A stack's file; one that is no YAML says nothing, and Pulumi does not take it either."""
    try:
        return read(file)
    except SettingsError:
        return Value(Origin(file, None), {})


def _without_secrets(value: Any, location: Location) -> Any:
    # A provider's own configuration is a secret or not, and shown nowhere.
    if (len(location) > 1 or isinstance(value, dict)) and layers.is_hidden(location, value):
        return SECRET
    if isinstance(value, dict):
        return {key: _without_secrets(each, (*location, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_secrets(each, (*location, index)) for index, each in enumerate(value)]
    return value


@dataclass(frozen=True)
class Touched:
    """The stacks that a change touches: those to preview, and those whose file it removes."""

    stacks: Sequence[str]
    removed: Sequence[str] = ()


def touched(changed: Collection[str], before: Stacks, after: Stacks) -> Touched:
    """Which stacks changed files touch: a stack's own files that one, the program all, docs and tests none."""
    old, new = before.names(), after.names()
    removed = [stack for stack in old if stack not in new]
    files = {stack: {*before.files(stack), *after.files(stack)} for stack in (*old, *new)}
    if any(_is_program(path) for path in changed):
        return Touched(new, removed)
    return Touched([stack for stack in new if files[stack] & set(changed)], removed)


def _is_program(path: str) -> bool:
    parts = PurePosixPath(path).parts
    if len(parts) > 1:
        return parts[0] not in _HARMLESS_FOLDERS | {FOLDER}
    return path not in _HARMLESS_FILES and not path.endswith(".md")


def changed_files(root: Path, base: str) -> list[str]:
    """Paths that differ between the commit from which HEAD forked off `base`, and HEAD; both ends of a renaming."""
    listed = _git(root, "diff", "--name-only", "--no-renames", "-z", merge_base(root, base), "HEAD")
    return [path for path in os.fsdecode(listed).split("\0") if path]


def merge_base(root: Path, base: str) -> str:
    """The commit from which HEAD forked off `base`."""
    try:
        return _git(root, "merge-base", base, "HEAD").decode().strip()
    except GitError as error:
        raise GitError(
            f"git knows no common commit of {base} and HEAD ({error}); a shallow clone needs more depth: "
            "GIT_DEPTH: 0 in GitLab CI, fetch-depth: 0 in GitHub's checkout"
        ) from None


@contextmanager
def stacks_at(root: Path, commit: str) -> Iterator[Stacks]:
    """The stacks as they were at a commit; for as long as the block lasts."""
    with TemporaryDirectory(prefix="review-") as folder:
        listed = _git(root, "ls-tree", "-r", "-z", "--name-only", commit, "--", FOLDER)
        for path in filter(None, os.fsdecode(listed).split("\0")):
            file = Path(folder) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_git(root, "show", f"{commit}:{path}"))
        yield Stacks(Path(folder))


def _git(root: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    if done.returncode:
        raise GitError(" ".join(done.stderr.decode(errors="replace").split()) or f"git {arguments[0]} failed")
    return done.stdout
