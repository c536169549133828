"""YAML files of the stacks, with the line of each value."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from settings.errors import SettingsError

ROOT = Path(__file__).parents[1]
# A key and those inside of its value: ("gitlab-runners:host", "ssh", "port").
Location = tuple[str | int, ...]
_NUMBER = r"[-+]?[0-9][0-9a-fA-FxXoO_]*"


@dataclass(frozen=True)
class Origin:
    """A line of a layer's file; `line` is None where only the file is known."""

    file: Path
    line: int | None

    def __str__(self) -> str:
        return shown(self.file) if self.line is None else f"{shown(self.file)}, line {self.line}"


@dataclass(frozen=True)
class Value:
    """A value and where it comes from; those inside of a map or list are Values too."""

    origin: Origin
    content: Any

    @property
    def plain(self) -> Any:
        """The value as YAML has it."""
        if isinstance(self.content, dict):
            return {key: value.plain for key, value in self.content.items()}
        return [value.plain for value in self.content] if isinstance(self.content, list) else self.content

    def at(self, location: Sequence[str | int]) -> "Value":
        """What stands at a location, or the innermost map or list on the way there."""
        if location:
            name, *rest = location
            inner: Value | None = None
            if isinstance(self.content, dict):
                inner = self.content.get(name)
            elif isinstance(self.content, list) and isinstance(name, int) and name < len(self.content):
                inner = self.content[name]
            return self if inner is None else inner.at(rest)
        return self


def shown(file: Path) -> str:
    """A file as people know it: from the project's folder on."""
    return str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file)


def read(file: Path) -> Value:
    """A file as a map, which an empty file is too. Raises SettingsError."""
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        value = _value(loader, node, file) if node is not None else Value(Origin(file, 1), {})
    except yaml.YAMLError as error:
        problem, line = " ".join(str(error).split()), None
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            problem, line = error.problem or problem, error.problem_mark.line + 1
        raise SettingsError(f"{Origin(file, line)}: is not YAML: {problem}") from None
    except ValueError as error:
        # Bytes that are no text, or a value that is none of the type that it is tagged with.
        raise SettingsError(f"{shown(file)}: is not YAML in UTF-8: {error}") from None
    if not isinstance(value.content, dict):
        raise SettingsError(f"{value.origin}: must be a map with config")
    return value


def _value(loader: yaml.SafeLoader, node: yaml.Node, file: Path, around: tuple[yaml.Node, ...] = ()) -> Value:
    origin = Origin(file, node.start_mark.line + 1)
    if node in around:
        raise SettingsError(f"{origin}: an alias stands inside of what it names")
    around = (*around, node)
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, file)
        loader.flatten_mapping(node)
        content = {}
        for key, inner in node.value:
            # The line of the key: that of a map is the one after it.
            value = _value(loader, inner, file, around)
            content[str(key.value)] = Value(Origin(file, key.start_mark.line + 1), value.content)
        return Value(origin, content)
    if isinstance(node, yaml.SequenceNode):
        return Value(origin, [_value(loader, inner, file, around) for inner in node.value])
    value = loader.construct_object(node)
    # As Pulumi reads it, which knows no dates, no `yes` and no 1:30: those are text.
    is_text = not isinstance(value, str | int | float | None) or (
        isinstance(value, int) and node.value.lower() not in {"true", "false"} and not re.fullmatch(_NUMBER, node.value)
    )
    return Value(origin, node.value if is_text else value)


def _check_keys(node: yaml.MappingNode, file: Path) -> None:
    """Whether a map says each key once, without what it merges: of two, readers differ about which counts."""
    said = set()
    for key, _ in node.value:
        if key.tag != "tag:yaml.org,2002:merge" and str(key.value) in said:
            raise SettingsError(f"{Origin(file, key.start_mark.line + 1)}: {key.value}: is there twice")
        said.add(str(key.value))
