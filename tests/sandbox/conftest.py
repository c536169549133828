"""What several of the sandbox's tests need."""

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def shell_root(tmp_path: Path) -> Path:
    """A root file system to make an image of without a registry: this machine's bash and the libraries it needs."""
    root = tmp_path / "shell-root"
    bash = shutil.which("bash")
    assert bash is not None
    linked = subprocess.run(["ldd", bash], capture_output=True, text=True, check=True).stdout
    (root / "bin").mkdir(parents=True)
    shutil.copy(bash, root / "bin")
    for library in (word for word in linked.split() if word.startswith("/")):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    return root
