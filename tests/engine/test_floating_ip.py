"""A floating IP that SSH does not use: it stays the host's, and moves to the next machine last."""

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]


@pytest.fixture
def fresh(fresh: Project) -> Project:
    fresh.configure(lambda config: config["host"]["ssh"].update(address="fixed"))
    return fresh


def test_it_moves_when_the_last_job_of_the_old_machine_has_ended(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    (address,) = sandbox.openstack.network.ips()
    (old,) = sandbox.openstack.compute.servers()
    host = fresh.outputs()["hosts"]["sandbox-1"]
    assert address.floating_ip_address in host["addresses"]
    assert address.floating_ip_address not in host["dockerUrl"]
    running = sandbox.put_job(["sleep 20", "echo done"])
    sandbox.wait_for_job(running, "running")
    fresh.configure(lambda config: config["host"].update(mtu=1400))
    plan = fresh.preview()
    assert plan["FloatingIpAssociate sandbox-1"] == "update"
    assert "FloatingIp sandbox-1" not in plan
    sandbox.control("DELETE", "requests")
    fresh.up()
    calls = [(call["method"], call["path"]) for call in sandbox.control("GET", "requests")]
    assert sandbox.job(running)["status"] == "success"
    ((port,), (same,)) = list(sandbox.openstack.network.ports()), list(sandbox.openstack.network.ips())
    assert (same.id, same.port_id) == (address.id, port.id)
    ended = max(number for number, call in enumerate(calls) if call == ("PUT", f"/api/v4/jobs/{running}"))
    moved = calls.index(("PUT", f"/network/v2.0/floatingips/{address.id}"))
    gone = next(number for number, call in enumerate(calls) if call[0] == "DELETE" and call[1].endswith(old.id))
    assert ended < moved < gone
    assert fresh.preview() == {}

    # And it stays until the last machine has drained.
    running = sandbox.put_job(["sleep 8", "echo done"])
    sandbox.wait_for_job(running, "running")
    sandbox.control("DELETE", "requests")
    fresh.destroy()
    calls = [(call["method"], call["path"]) for call in sandbox.control("GET", "requests")]
    ended = max(number for number, call in enumerate(calls) if call == ("PUT", f"/api/v4/jobs/{running}"))
    changed = [number for number, call in enumerate(calls) if call[0] != "GET" and address.id in call[1]]
    assert ended < min(changed)
    assert sandbox.job(running)["status"] == "success"
    assert sandbox.inventory() == NOTHING
