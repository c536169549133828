"""What stacks, teams and environments may be called: their names are parts of host names, paths, jobs and commands."""

import json
import re

from settings.model import LABEL, MAXIMUM_NAME_LENGTH


def is_name(name: str) -> bool:
    """Whether a stack, a team or an environment may be called so."""
    return len(name) <= MAXIMUM_NAME_LENGTH and re.fullmatch(LABEL, name) is not None


def name_mistake(what: str, name: str) -> str | None:
    """What is wrong with the name of `what`, in one line whatever is in it; or None."""
    if is_name(name):
        return None
    shown = name if name.isascii() and name.isprintable() else json.dumps(name)
    return (
        f"{what} {shown}: use lower-case letters, digits and hyphens: it is part of host names; at most "
        f"{MAXIMUM_NAME_LENGTH} are possible, at least one, and no hyphen at an end"
    )
