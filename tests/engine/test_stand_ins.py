"""The official docker and openstack plugins, and the project's stand-ins for them, in turn on one stack."""

from pathlib import Path

import pytest

from sandbox.plugins import install
from scripts.toolchain import Toolchain, users_pulumi_home
from tests.engine.harness import Project

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]

Environment = dict[str, str]


@pytest.fixture
def official() -> Environment:
    """The plugins that `make setup` chose, where none of these two is a stand-in."""
    toolchain = Toolchain.load()
    versions = install.versions()
    for name in ("docker", "openstack"):
        if toolchain.home and install.is_stand_in(install.executable(toolchain.home, name, versions[name])):
            pytest.skip("the official plugins are not here: make setup PLUGINS=built")
    return toolchain.environment() | {"PULUMI_HOME": str(toolchain.home or users_pulumi_home())}


@pytest.fixture
def stand_ins(tmp_path: Path) -> Environment:
    toolchain = Toolchain(Toolchain.load().bin, tmp_path / "home")
    (tmp_path / "home" / "plugins").mkdir(parents=True)
    install.install(toolchain.bin / "pulumi", tmp_path / "home", install.versions())
    return toolchain.environment()


@pytest.mark.parametrize("first", ["official", "stand_ins"])
def test_neither_finds_anything_to_do_in_what_the_others_made(
    fresh: Project, first: str, official: Environment, stand_ins: Environment
) -> None:
    fresh.configure(lambda config: config["host"].update(dockerVolume={"size": 20}))
    fresh.configure(lambda config: config.update(cache={"kind": "openstack"}))
    makers, others = (official, stand_ins) if first == "official" else (stand_ins, official)
    fresh.environment.update(makers)
    fresh.up()
    fresh.environment.update(others)
    assert fresh.preview() == {}
    assert fresh.refresh() == {}
    assert fresh.preview() == {}
