"""`make config`: a stack's effective configuration, with the line of the layer that each value comes from."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from scripts.console import Failure, failures_in_one_line
from scripts.stack import layers_of, require_file
from settings.layers import Layers, is_hidden
from settings.yaml_file import Location, Origin, Value, shown

_HIDDEN = '"[secret]"'
# Longer lines do not move the column in which the layers stand.
_WIDEST = 72


def page(layers: Layers) -> str:
    """The configuration as YAML; secrets are masked, whether they are encrypted or not."""
    lines = list(_lines(layers.values, ()))
    width = max((len(text) for text, _ in lines if len(text) <= _WIDEST), default=0)
    whose = f"team {layers.owner.team} in {layers.owner.environment}" if layers.owner is not None else "no layers"
    head = f"# Stack {layers.stack}: {whose}"
    return "\n".join([head, *(f"{text:{width}}  # {_place(origin)}" if origin else text for text, origin in lines)])


def _lines(value: Value, location: Location) -> Iterator[tuple[str, Origin | None]]:
    """Each line with where its value comes from; a map has a line without."""
    indent = "  " * len(location)
    for key, inner in value.content.items():
        here = (*location, key)
        name = f"{indent}{_dumped(key)}:"
        if is_hidden(here, inner.plain):
            yield f"{name} {_HIDDEN}", inner.origin
        elif isinstance(inner.content, dict) and inner.content:
            yield name, None
            yield from _lines(inner, here)
        elif isinstance(inner.content, list):
            yield f"{name} {_dumped(_masked(inner, here))}", inner.origin
        else:
            yield f"{name} {_dumped(inner.plain)}", inner.origin


def _masked(value: Value, location: Location) -> Any:
    if is_hidden(location, value.plain):
        return "[secret]"
    if isinstance(value.content, dict):
        return {key: _masked(inner, (*location, key)) for key, inner in value.content.items()}
    if isinstance(value.content, list):
        return [_masked(inner, (*location, index)) for index, inner in enumerate(value.content)]
    return value.content


def _dumped(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").rstrip("\n")


def _place(origin: Origin) -> str:
    return f"{shown(origin.file)}:{origin.line}"


def main(arguments: Sequence[str]) -> None:
    """Prints a stack's configuration; its own secrets stay encrypted, so nothing is asked of anybody."""
    if len(arguments) != 1:
        raise Failure("name one stack")
    require_file(arguments[0])
    print(page(layers_of(arguments[0])))


if __name__ == "__main__":
    with failures_in_one_line():
        main(sys.argv[1:])
