"""Programs of npm that a test needs, in the versions that a folder beside it pins; installed into the cache."""

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.packages import cache_directory


def installed(pins: Path) -> Path:
    """A folder with the files of `pins` and their node_modules; skips the test on a machine that cannot have it."""
    if shutil.which("npm") is None:
        pytest.skip(f"needs npm, for {pins.name}")
    files = sorted(path for path in pins.iterdir() if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]
    folder = cache_directory() / pins.name / digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path in files:
                shutil.copy(path, folder)
            install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"npm cannot install {pins.name}: {done.stderr.strip().splitlines()[-1:]}")
            (folder / "installed").touch()
    return folder
