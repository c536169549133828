"""Baking an image: where its file system lies, and what is refused. The rest is tried on the real ground."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bake_image import Contents, FileSystem, bake, file_system, largest_partition
from scripts.console import Failure
from tests.engine.harness import ROOT


def listed(device: str, *partitions: dict[str, Any]) -> str:
    """What `sfdisk --json` prints for Debian's and Ubuntu's cloud images."""
    return json.dumps(
        {"partitiontable": {"label": "gpt", "device": device, "unit": "sectors", "partitions": partitions}}
    )


def test_the_largest_partition_is_the_one_wherever_it_stands() -> None:
    table = listed(
        "/images/debian-13.raw",
        {"node": "/images/debian-13.raw1", "start": 262144, "size": 6027264},
        {"node": "/images/debian-13.raw14", "start": 2048, "size": 6144},
        {"node": "/images/debian-13.raw15", "start": 8192, "size": 253952},
    )
    assert largest_partition(table) == FileSystem(262144 * 512, 6027264 * 512, 1)


def test_the_number_of_a_partition_is_told_from_a_disk_whose_name_ends_in_a_digit() -> None:
    table = listed("/images/disk2", {"node": "/images/disk2p16", "start": 8, "size": 64})
    assert largest_partition(table) == FileSystem(4096, 32768, 16)


def test_a_disk_without_partitions_is_one_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4096))
    assert file_system(disk) == FileSystem(0, 4096)


def test_what_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing.qcow2"
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bake_image", str(missing), str(tmp_path / "out.raw"), "--archive", "no.tar"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "error: no such file: no.tar\n")
    assert not list(tmp_path.iterdir())


def test_only_root_is_let(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Failure, match="only root can mount"):
        bake(tmp_path / "in.raw", tmp_path / "out.raw", Contents())
