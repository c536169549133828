"""What the real ground keeps in the user's cache: of each kind the newest two, and nothing that is in use goes."""

import os
from pathlib import Path

import pytest

from tests.acceptance.ground.artefacts import artefact


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gitlab-runners" / "ground"


def use(kind: str, version: str) -> None:
    """Uses an artefact after all that were used before, however coarse the file system's clock is."""
    with artefact(kind, version, lambda directory: None) as directory:
        pass
    lock = directory.with_name(f"{directory.name}.lock")
    latest = max(other.stat().st_mtime for other in directory.parent.glob("*.lock"))
    os.utime(lock, (latest + 1, latest + 1))


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def test_of_each_kind_the_newest_two_are_kept(cache: Path) -> None:
    for version in ("1", "2", "3"):
        use("seed", version)
    use("disk", "1")
    assert kept(cache) == {"seed-2", "seed-3", "disk-1"}


def test_newest_is_what_was_used_last_not_what_was_made_last(cache: Path) -> None:
    for version in ("1", "2", "1", "3"):
        use("seed", version)
    assert kept(cache) == {"seed-1", "seed-3"}


def test_what_is_in_use_stays(cache: Path) -> None:
    with artefact("seed", "1", lambda directory: None):
        for version in ("2", "3", "4"):
            use("seed", version)
        assert kept(cache) == {"seed-1", "seed-3", "seed-4"}


def test_the_draft_of_a_process_that_was_killed_goes(cache: Path) -> None:
    use("seed", "1")
    (cache / ".draft-seed-0").mkdir()
    use("seed", "2")
    assert kept(cache) == {"seed-1", "seed-2"}
