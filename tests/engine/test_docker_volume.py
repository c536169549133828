"""Docker's data on a volume: it grows in place, goes to nobody else, and leaves with its machine."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("docker-volume")]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def stack(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(sandbox, tmp_path_factory.mktemp("project"))
    project.configure(lambda config: config["runners"].pop("team"))
    project.configure(size(20))
    project.up()
    yield project
    project.destroy()
    assert sandbox.inventory() == NOTHING


def size(gib: int, **more: Any) -> Change:
    return lambda config: config["host"].update(dockerVolume={"size": gib} | more)


def test_it_is_the_machines(stack: Project, sandbox: Sandbox) -> None:
    (volume,) = sandbox.openstack.block_storage.volumes()
    (server,) = sandbox.openstack.compute.servers()
    assert (volume.name, volume.size, volume.status) == (server.name, 20, "in-use")
    assert [attachment["server_id"] for attachment in volume.attachments] == [server.id]
    assert stack.preview() == {}


def test_it_grows_in_place(stack: Project, sandbox: Sandbox) -> None:
    managers = {manager.id for manager in sandbox.managers()}
    stack.configure(size(30))
    assert stack.preview() == {"Volume sandbox-1": "update"}
    stack.up()
    (volume,) = sandbox.openstack.block_storage.volumes()
    assert (volume.size, volume.status) == (30, "in-use")
    assert {manager.id for manager in sandbox.managers()} == managers
    assert stack.preview() == {}


def test_it_does_not_shrink(stack: Project) -> None:
    stack.configure(size(10))
    refusal = (
        "host.dockerVolume.size: 10: volume sandbox-1 has 30 GiB, and volumes only grow; "
        "for a smaller one remove dockerVolume, update the stack and set it again"
    )
    assert refusal in stack.failing_preview().output
    stack.configure(size(30))


def test_another_machine_gets_another_one(stack: Project, sandbox: Sandbox) -> None:
    (before,) = sandbox.openstack.block_storage.volumes()
    stack.configure(size(30, type="ssd"))
    plan = stack.preview()
    assert {plan[each] for each in ("Volume sandbox-1", "Port sandbox-1", "Instance sandbox-1")} == {"replace"}
    stack.up()
    (after,) = sandbox.openstack.block_storage.volumes()
    assert before.id != after.id
    assert after.volume_type == "ssd"
    assert len(sandbox.managers()) == 1
    assert stack.preview() == {}
