"""One sandbox for each worker; a project of its own for each module or test."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sandbox.engine import Engine
from tests.engine.harness import Project, Sandbox


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test begins first, so that at the end nobody waits for it alone."""
    items.sort(key=lambda item: item.path.name != "test_load.py")


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    # A short path: a Unix socket's has room for about a hundred characters.
    with TemporaryDirectory(prefix="glr-") as folder:
        started = Sandbox(Path(folder))
        try:
            yield started
        finally:
            started.close()


@pytest.fixture(scope="module")
def project(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project that the tests of one module carry on, one after the other."""
    used = Project(sandbox, tmp_path_factory.mktemp("project"))
    yield used
    used.destroy()


@pytest.fixture
def fresh(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project of a test's own, with one runner; what it leaves in the clouds is removed."""
    used = Project(sandbox, tmp_path_factory.mktemp("project"))
    used.configure(lambda config: config["runners"].pop("team"))
    yield used
    sandbox.clear()


@pytest.fixture
def engine(sandbox: Sandbox) -> Engine:
    """The sandbox's engine, where it is one of its own: its firewall and its disk are the tests' to change."""
    found = Engine(**json.loads((sandbox.state / "engine.json").read_text()))
    if found.namespace is None:
        pytest.skip("the engine is this machine's own, which is not the tests' to change")
    return found
