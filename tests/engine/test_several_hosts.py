"""A runner on several hosts: one registration, a manager on each, and each host in its own zone."""

from collections.abc import Iterator

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = pytest.mark.docker


@pytest.fixture
def fresh(fresh: Project, sandbox: Sandbox) -> Iterator[Project]:
    fresh.configure(
        lambda config: config["host"].update(
            count=2, availabilityZones=["zone-2", "nova"], overrides={"2": {"metadata": {"disk": "ssd"}}}
        )
    )
    yield fresh
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


@pytest.mark.acceptance
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
    servers = {server.name: server for server in sandbox.openstack.compute.servers()}
    first = servers["sandbox-1"]
    assert (first.availability_zone, servers["sandbox-2"].availability_zone) == ("zone-2", "nova")
    assert [name for name, server in servers.items() if server.metadata.get("disk") == "ssd"] == ["sandbox-2"]
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
    fresh.configure(lambda config: config["host"].update(count=3))
    plan = fresh.preview()
    assert set(plan.values()) == {"create"}
    assert all(" sandbox-3" in name for name in plan)
    fresh.configure(lambda config: (config["host"].update(count=1), config["host"].pop("overrides")))
    plan = fresh.preview()
    assert plan.pop("ServerGroup sandbox") == "delete"
    assert set(plan.values()) == {"delete"}
    assert all(" sandbox-2" in name for name in plan)
    fresh.up()
    assert [server.id for server in sandbox.openstack.compute.servers()] == [first.id]
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
