"""A Docker Engine that exists already: over its socket, and over SSH with a key that is known."""

import json
import re

import pytest

from clients.managers import Engine
from clients.remnants import Place, Remnants, find, remove
from clients.ssh import ssh_options
from clients.state import State
from renderers.drain import SERVER_LABEL, STACK_LABEL
from scripts.stack import Stack
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


async def test_what_an_interrupted_update_left_there_is_what_the_state_does_not_know(sandbox: Sandbox) -> None:
    engine = Engine(sandbox.environment["SANDBOX_DOCKER_HOST"], [], None)
    labels, image = {STACK_LABEL: "dev"}, sandbox.environment["SANDBOX_JOB_IMAGE"]
    volumes, containers = sandbox.docker.volumes, sandbox.docker.containers
    for name in ("known", "used", "unused"):
        volumes.create(name, labels=labels)
    volumes.create("prod", labels={STACK_LABEL: "prod"})
    volumes.create("on-a-machine", labels=labels | {SERVER_LABEL: "machine"})
    known = containers.create(image, labels=labels, volumes=["used:/v"])
    never_started = containers.create(image, labels=labels, volumes=["known:/v", "/anonymous"])
    ended = containers.run(image, "true", labels=labels, volumes=["known:/v"], detach=True)
    ended.wait()
    running = containers.run(image, "sleep 600", labels=labels, volumes=["known:/v"], detach=True)
    state = State(lambda: json.dumps({"deployment": {"resources": [{"id": id_} for id_ in ("known", known.id)]}}))
    removed: list[str] = []
    place = Place("dev", "", engine)
    await remove(place, await find(place, state, lambda: ""), 60, removed.append)
    assert {each.id for each in containers.list(all=True)} == {known.id}
    assert {each.name for each in volumes.list(filters={"label": STACK_LABEL})} == {
        "known",
        "used",
        "prod",
        "on-a-machine",
    }
    assert set(removed) == {
        *(f"removed container {each.name}" for each in (never_started, ended, running)),
        "removed volume unused",
    }
    assert await find(place, state, lambda: "") == Remnants([], [], {"used"})
    known.remove()
    for name in ("known", "used", "prod", "on-a-machine"):
        volumes.get(name).remove()


async def test_over_ssh_the_same_is_known_of_it(sandbox: Sandbox, fresh: Project) -> None:
    fresh.up()
    (server,) = sandbox.openstack.compute.servers()
    options = ssh_options(_host_key(sandbox), identity_file=fresh.config["gitlab-runners:host"]["ssh"]["identityFile"])
    over_ssh = Engine(fresh.outputs()["hosts"]["sandbox-1"]["dockerUrl"], options, None)
    over_its_socket = Engine(sandbox.environment["SANDBOX_DOCKER_HOST"], [], None)
    found = await over_ssh.containers("sandbox", server.id)
    assert {each.volume for each in found if each.runner == "app"} > {""}
    assert found == await over_its_socket.containers("sandbox", server.id)
    for unused in (False, True):
        volumes = await over_ssh.volumes("sandbox", server.id, unused=unused)
        assert bool(volumes) is not unused
        assert volumes == await over_its_socket.volumes("sandbox", server.id, unused=unused)
    assert not await over_ssh.containers("sandbox", "")


@pytest.mark.acceptance
def test_over_ssh_its_host_key_is_checked(
    sandbox: Sandbox, fresh: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # The machine of one stack is the existing engine of another.
    fresh.up()
    key = _host_key(sandbox)
    host = {
        "kind": "docker",
        "url": fresh.outputs()["hosts"]["sandbox-1"]["dockerUrl"],
        "hostKey": key,
        "ssh": {"identityFile": fresh.config["gitlab-runners:host"]["ssh"]["identityFile"]},
    }
    like = Stack("second", sandbox.environment, sandbox.stack.config_file)
    second = Project(sandbox, tmp_path_factory.mktemp("second"), like=like)
    second.configure(lambda config: (config["runners"].pop("team"), config.update(host=host)))
    second.up()
    assert len(sandbox.managers()) == 2
    second.configure(lambda config: config["host"].update(hostKey=ANOTHER_KEY))
    assert "the SSH host key is not the expected one" in second.failing_preview().output
    second.configure(lambda config: config["host"].update(hostKey=key))
    second.destroy()
    assert len(sandbox.managers()) == 1


def _host_key(sandbox: Sandbox) -> str:
    (server,) = sandbox.openstack.compute.servers()
    console = sandbox.openstack.compute.get_server_console_output(server)["output"]
    found = re.search(r"^ssh-ed25519 \S+", console, re.MULTILINE)
    assert found is not None
    return found[0]
