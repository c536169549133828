"""The stand-in for GitLab Runner is a Go program with tests of its own."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "sandbox" / "images" / "runner"


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go, as building the stand-in does")
@pytest.mark.parametrize("command", ["vet", "test"])
def test_the_stand_in_passes_its_own_checks(command: str) -> None:
    done = subprocess.run(["go", command, "./..."], cwd=SOURCES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
