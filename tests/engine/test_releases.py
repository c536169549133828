"""Stacks that an earlier release made: this program takes them over, changes them in place, and removes them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.engine.harness import NOTHING, ROOT, Sandbox, restarted
from tests.engine.releases import Release, releases

pytestmark = pytest.mark.docker
# What this version declares and an earlier one did not, by the beginning of its name in a plan: "Stash ", say. Only
# what a stack that is there can be given without any change to what runs belongs here.
ADDED: tuple[str, ...] = ()
# Three machines take longer.
LONG = {"hosts"}


def stacks() -> Iterator[ParameterSet]:
    for release in releases():
        for stack in release.stacks():
            marks = [pytest.mark.acceptance] if stack in LONG else []
            yield pytest.param(release, stack, id=f"{release.folder.name}-{stack}", marks=marks)


@pytest.mark.parametrize(("release", "stack"), stacks())
def test_a_stack_of_an_earlier_release_lives_on(
    sandbox: Sandbox, tmp_path: Path, release: Release, stack: str, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(sandbox.clear)
    project = release.project(sandbox, stack, tmp_path)
    project.up()
    servers, managers = {server.id for server in sandbox.openstack.compute.servers()}, sandbox.managers()
    assert managers

    project.program = ROOT
    plan = project.preview()
    assert {name: step for name, step in plan.items() if step != "create" or not name.startswith(ADDED)} == {}

    project.configure(lambda config: config["runners"]["app"].update(environment={"GREETING": "hello"}))
    project.up()
    assert {server.id for server in sandbox.openstack.compute.servers()} == servers
    assert not restarted(managers, sandbox.managers())
    assert project.preview() == {}

    project.destroy()
    assert sandbox.inventory() == NOTHING
