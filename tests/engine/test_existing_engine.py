"""A Docker Engine that exists already: over its socket, and over SSH with a key that is known."""

import re

import pytest

from clients.readiness import Remnants
from settings import DockerHost
from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = pytest.mark.docker
ANOTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGW1bPRFPkyhcJpkyBnwYyAyk3cnkmKZK1zhhD0cwlnA"


@pytest.mark.acceptance
def test_over_its_socket_it_needs_no_cloud_at_all(sandbox: Sandbox, fresh: Project) -> None:
    host = {"kind": "docker", "url": sandbox.environment["SANDBOX_DOCKER_HOST"], "mtu": 1400}
    fresh.configure(lambda config: config.update(host=host))
    fresh.environment["OS_CLIENT_CONFIG_FILE"] = "/nowhere/clouds.yaml"
    fresh.up()
    assert sandbox.inventory() == NOTHING | {"runners": 1, "containers": 2, "volumes": 1}
    job = sandbox.wait_for_job(sandbox.put_job(["cat /sys/class/net/eth0/mtu"]))
    assert "\n1400\n" in job["trace"]
    assert fresh.preview() == {}
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


async def test_what_an_interrupted_update_left_there_is_known_by_its_labels(sandbox: Sandbox) -> None:
    remnants = Remnants(DockerHost(kind="docker", url=sandbox.environment["SANDBOX_DOCKER_HOST"]), [])
    mine, label = {"gitlab-runners.stack": "dev", "gitlab-runners.runner": "app"}, ("gitlab-runners.stack", "dev")
    sandbox.docker.volumes.create("mine", labels=mine)
    sandbox.docker.volumes.create("other", labels={"gitlab-runners.stack": "prod"})
    container = sandbox.docker.containers.create(sandbox.environment["SANDBOX_JOB_IMAGE"], labels=mine)
    assert await remnants.unused("volume", label) == {"mine": mine}
    found = await remnants.unused("container", label)
    assert found.keys() == {container.id}
    assert mine.items() <= found[str(container.id)].items()
    await remnants.remove("volume", "mine")
    await remnants.remove("container", str(container.id))
    assert not await remnants.unused("volume", label)
    assert not await remnants.unused("container", label)
    sandbox.docker.volumes.get("other").remove()


@pytest.mark.acceptance
def test_over_ssh_its_host_key_is_checked(
    sandbox: Sandbox, fresh: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # The machine of one stack is the existing engine of another.
    fresh.up()
    (server,) = sandbox.openstack.compute.servers()
    console = sandbox.openstack.compute.get_server_console_output(server)["output"]
    found = re.search(r"^ssh-ed25519 \S+", console, re.MULTILINE)
    assert found is not None
    host = {
        "kind": "docker",
        "url": fresh.outputs()["hosts"]["sandbox-1"]["dockerUrl"],
        "hostKey": found[0],
        "ssh": {"identityFile": fresh.config["gitlab-runners:host"]["ssh"]["identityFile"]},
    }
    second = Project(sandbox, tmp_path_factory.mktemp("second"))
    second.configure(lambda config: (config["runners"].pop("team"), config.update(host=host)))
    second.up()
    assert len(sandbox.managers()) == 2
    second.configure(lambda config: config["host"].update(hostKey=ANOTHER_KEY))
    assert "the SSH host key is not the expected one" in second.failing_preview().output
    second.configure(lambda config: config["host"].update(hostKey=found[0]))
    second.destroy()
    assert len(sandbox.managers()) == 1
