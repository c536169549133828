"""A runner on several hosts: one registration, a manager on each."""

from collections.abc import Iterator

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = pytest.mark.docker


@pytest.fixture
def fresh(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(sandbox, tmp_path_factory.mktemp("project"))
    project.configure(lambda config: (config["runners"].pop("team"), config["host"].update(count=2)))
    yield project
    project.destroy()
    assert sandbox.inventory() == NOTHING


def test_hosts_come_and_go_without_touching_the_others(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    assert sandbox.inventory() == NOTHING | {
        "servers": 2,
        "server groups": 1,
        "key pairs": 1,
        "ports": 2,
        "floating IPs": 2,
        "security groups": 1,
        "security group rules": 3,
        "runners": 1,
        "containers": 4,
        "volumes": 2,
    }
    (first,) = [server for server in sandbox.openstack.compute.servers() if server.name == "sandbox-1"]
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
    fresh.configure(lambda config: config["host"].update(count=1))
    plan = fresh.preview()
    assert plan.pop("ServerGroup sandbox") == "delete"
    assert set(plan.values()) == {"delete"}
    assert all(" sandbox-2" in name for name in plan)
    fresh.up()
    assert [server.id for server in sandbox.openstack.compute.servers()] == [first.id]
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
