"""The pictures of the preview comment, as Mermaid itself reads them."""

import json
import subprocess
from pathlib import Path

import pytest

from review.assessment import StackReview
from review.markdown import one_line
from review.picture import picture
from tests.npm import installed
from tests.unit.test_review import APP, PLANS, SETTINGS, review

pytestmark = pytest.mark.acceptance
NAMES = (
    "end",
    'a"b',
    "graph",
    "%%{init: {}}%%",
    "click r0 call x()",
    "a]) --> x",
    "#quot;",
    "ä-日本",
    "`x`",
    "a;b",
    "o--o",
)


def read(*pictures: str) -> subprocess.CompletedProcess[str]:
    folder = installed(Path(__file__).parent / "mermaid")
    texts = [text.removeprefix("```mermaid\n").removesuffix("\n```") for text in pictures]
    command = ["node", "parse.mjs"]
    return subprocess.run(command, cwd=folder, input=json.dumps(texts), capture_output=True, text=True, check=False)


def named(name: str) -> StackReview:
    return StackReview(one_line(name), before=SETTINGS, after=SETTINGS.model_copy(update={"runners": {name: APP}}))


def test_every_picture_is_a_flowchart() -> None:
    names = [file.stem for file in PLANS.glob("*.json")]
    pictures = [picture(review(name)) for name in names] + [picture(named(name)) for name in NAMES]
    pictures = [text for text in pictures if text]
    done = read(*pictures)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["flowchart-v2"] * len(pictures)
    assert len(pictures) > len(NAMES)


def test_what_is_none_is_found() -> None:
    assert read(picture(named("app")).replace("(", "[", 1)).returncode
