"""What goes wrong outside: a machine that somebody deleted, one that cannot be used, a token with few rights."""

import json
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from sandbox.vm import SSH_PORT
from tests.engine.harness import NOTHING, Project, Sandbox
from tests.engine.load import JOB_LABEL

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]


def delete_server(sandbox: Sandbox) -> str:
    (server,) = sandbox.openstack.compute.servers()
    sandbox.openstack.compute.delete_server(server)
    sandbox.openstack.compute.wait_for_delete(server)
    return str(server.id)


def test_a_stack_whose_machine_is_gone_can_be_destroyed(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    delete_server(sandbox)
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


def test_a_machine_that_is_gone_is_made_anew_and_nothing_is_registered_twice(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    gone = delete_server(sandbox)
    runners = [runner.id for runner in sandbox.gitlab.runners_all.list(get_all=True)]
    fresh.run("refresh", "--stack=sandbox", "--yes", "--skip-preview", config=True)
    fresh.up()
    (server,) = sandbox.openstack.compute.servers()
    assert server.id != gone
    assert [runner.id for runner in sandbox.gitlab.runners_all.list(get_all=True)] == runners
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


def test_a_runner_image_that_does_not_work_leaves_the_old_manager_at_work(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    (before,) = sandbox.managers()
    version = fresh.config["gitlab-runners:manager"]["version"]
    # It runs, but never polls: only the health check finds that, when its time is over.
    idle = "trap exit QUIT; while true; do sleep 1; done"
    image = sandbox.docker.containers.create(sandbox.environment["SANDBOX_JOB_IMAGE"], ["sh", "-c", idle])
    image.commit("gitlab-runners-sandbox/gitlab-runner", "broken")
    image.remove()
    fresh.configure(lambda config: config["manager"].update(version="broken"))
    failed = fresh.try_up()
    assert failed.errors
    assert before.id in {manager.id for manager in sandbox.managers()}
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
    fresh.configure(lambda config: config["manager"].update(version=version))
    fresh.up()
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
    assert len(sandbox.managers()) == 1
    assert sandbox.inventory()["containers"] == 2
    assert sandbox.inventory()["volumes"] == 1
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


def test_jobs_are_aborted_where_the_environment_names_the_stack(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    running = sandbox.put_job(["sleep 600"])
    sandbox.wait_for_job(running, "running")
    fresh.environment["ABORT_JOBS"] = "sandbox"
    assert "ABORT_JOBS=sandbox: jobs" in fresh.run("preview", "--stack=sandbox", config=True).output
    fresh.destroy()
    assert sandbox.job(running)["failure_reason"] == "runner_interrupted"
    assert sandbox.inventory() == NOTHING
    assert not sandbox.docker.networks.list(filters={"label": JOB_LABEL})


def test_a_protected_registration_is_neither_removed_nor_replaced(fresh: Project, sandbox: Sandbox) -> None:
    fresh.configure(lambda config: config.update(protect=True))
    fresh.up()
    (runner,) = sandbox.gitlab.runners_all.list(get_all=True)
    refused = fresh.run("destroy", "--stack=sandbox", "--yes", "--skip-preview", config=True)
    assert refused.status != 0
    assert "protected" in refused.output
    fresh.configure(lambda config: config["runners"]["app"].update(rotation=1))
    assert "protection" in fresh.failing_preview().output
    assert [runner.id] == [each.id for each in sandbox.gitlab.runners_all.list(get_all=True)]
    fresh.configure(lambda config: config.update(protect=False))
    fresh.up()
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


def test_a_machine_that_nova_cannot_make_is_made_anew(fresh: Project, sandbox: Sandbox) -> None:
    network = sandbox.openstack.network
    (tenant,) = network.networks(name="runners")
    probe = network.create_port(network_id=tenant.id)
    network.delete_port(probe)
    # The sandbox's Neutron hands addresses out one after the other, and its Nova cannot boot on one that is taken.
    following = ip_address(probe.fixed_ips[0]["ip_address"]) + 1
    with socket.create_server((str(following), SSH_PORT)):
        failed = fresh.try_up()
    assert failed.status != 0
    (broken,) = sandbox.openstack.compute.servers()
    assert broken.status == "ERROR"
    assert fresh.preview()["Instance sandbox-1"] == "replace"
    fresh.up()
    (server,) = sandbox.openstack.compute.servers()
    assert (server.status, server.id == broken.id) == ("ACTIVE", False)
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


def test_an_update_that_breaks_off_does_not_take_a_machine_from_its_jobs(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    (before,) = sandbox.openstack.compute.servers()
    fresh.configure(lambda config: config["host"].update(metadata={"owner": "platform"}))
    sandbox.control(
        "POST", "faults", {"do": "status", "status": 503, "method": "POST", "path": "/servers/.*/metadata$"}
    )
    failed = fresh.try_up()
    sandbox.control("DELETE", "faults")
    assert failed.errors
    assert "replace" not in fresh.preview().values()
    fresh.up()
    (after,) = sandbox.openstack.compute.servers()
    assert after.id == before.id


def test_a_machine_whose_interface_cannot_carry_the_mtu_is_not_used(fresh: Project, sandbox: Sandbox) -> None:
    (network,) = sandbox.openstack.network.networks(name="runners")

    def jumbo(config: dict[str, Any]) -> None:
        # By its id, the network is not looked up: only the machine itself can tell.
        config["host"].update(network=network.id, mtu=9000)

    fresh.configure(jumbo)
    failed = fresh.try_up()
    assert failed.status != 0
    assert "but Docker was given 9000: set host.mtu or mend the network" in failed.output
    assert sandbox.inventory()["containers"] == 0
    fresh.configure(lambda config: config["host"].update(mtu="auto"))
    fresh.up()
    assert sandbox.inventory()["servers"] == 1
    assert len(sandbox.managers()) == 1


def test_a_token_that_may_only_create_and_manage_runners_is_enough(sandbox: Sandbox, fresh: Project) -> None:
    fresh.environment["GITLAB_TOKEN"] = sandbox.environment["SANDBOX_GITLAB_RUNNERS_TOKEN"]
    fresh.up()
    assert len(sandbox.managers()) == 1
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


def test_where_everything_is_given_by_id_a_preview_needs_no_cloud(
    sandbox: Sandbox, fresh: Project, tmp_path: Path
) -> None:
    cloud = sandbox.openstack
    (image,) = cloud.image.images(name="debian-13")
    (network,) = cloud.network.networks(name="runners")

    def by_id(config: dict[str, Any]) -> None:
        config["host"].pop("floatingIpPool")
        # A flavor's id need not be a UUID in every cloud; where it is one it is not looked up either.
        config["host"].update(image=image.id, network=network.id, flavor=image.id, mtu=1450)

    fresh.configure(by_id)
    auth = {"auth_url": "http://127.0.0.1:1/v3", "username": "ci", "password": "secret", "project_name": "ci"}
    nowhere = tmp_path / "clouds.yaml"
    nowhere.write_text(json.dumps({"clouds": {"sandbox": {"auth": auth}}}))
    fresh.environment["OS_CLIENT_CONFIG_FILE"] = str(nowhere)
    assert fresh.preview()["Instance sandbox-1"] == "create"
