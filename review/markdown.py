"""Puts untrusted text into Markdown, so that it is only shown: no HTML, mention, reference or quick action.

GitLab and GitHub look for none of those in code, but for quick actions where a line begins with one. So everything that
comes from a stack file, a plan or an error is put into code, on one line or in a fence that it cannot close.
"""

import difflib
import html
import json
import re
import unicodedata
from typing import Any

from review.plan import SECRET, UNKNOWN

LONGEST_VALUE = 120
LONGEST_LINE = 400
_CUT = "…"


def visible(text: str) -> str:
    """Text in which characters that cannot be seen, or turn the order of others, are written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character in "\n " or unicodedata.category(character)[0] not in "CZ"
        else character.encode("unicode-escape").decode()
        for character in text.replace("\r\n", "\n").replace("\t", "    ")
    )


def one_line(text: str, length: int = LONGEST_VALUE) -> str:
    """Text on one line, cut when it is long."""
    line = " ".join(visible(text).split())
    return line if len(line) <= length else line[: length - 1] + _CUT


def code(text: str, length: int = LONGEST_VALUE) -> str:
    """Inline code; not for a table, see `cell_code`."""
    line = one_line(text, length) or " "
    ticks = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def cell_code(text: str, length: int = LONGEST_VALUE) -> str:
    """Inline code in a table, where a pipe ends the cell unless it has a backslash (GitHub Flavored Markdown)."""
    return code(text, length).replace("|", "\\|")


def html_code(text: str, length: int = LONGEST_VALUE) -> str:
    """The same inside of an HTML element, where Markdown is not read."""
    return f"<code>{html.escape(one_line(text, length))}</code>"


def value(given: Any) -> str:
    """A property's value as inline code; what is secret or not known yet in words."""
    if given is None:
        return "absent"
    if given == SECRET:
        return "a secret"
    if given == UNKNOWN:
        return "known after the update"
    if isinstance(given, str):
        return code(given)
    text = json.dumps(given, ensure_ascii=False)
    return code(text.replace(json.dumps(UNKNOWN), "known after the update").replace(json.dumps(SECRET), "a secret"))


def fence(language: str, text: str) -> str:
    """A block of code.

    No line begins with a slash: GitLab looks for quick actions before it reads Markdown, with a rough notion of code
    (lib/gitlab/quick_actions/extractor.rb).
    """
    shown = re.sub("^/", " /", visible(text).rstrip("\n"), flags=re.MULTILINE)
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    return f"{ticks}{language}\n{shown}\n{ticks}"


def diff(before: str, after: str, name: str) -> str:
    """A unified diff as a block; empty when nothing differs."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), f"a/{name}", f"b/{name}", lineterm="", n=2)
    # Each line keeps the sign in front, so that none of a file's own comes first.
    return fence("diff", text) if (text := "\n".join(one_diff_line(line) for line in lines)) else ""


def one_diff_line(line: str) -> str:
    """A line of a diff, cut when it is long."""
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + _CUT


def details(summary: str, body: str) -> str:
    """A part that is folded up; `summary` is HTML."""
    # The empty lines let Markdown be read again inside of the element (CommonMark, HTML blocks).
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def number(count: int, one: str, many: str | None = None) -> str:
    """`1 runner`, `2 runners`."""
    return f"{count} {one if count == 1 else many or one + 's'}"
