"""What `pulumi up --replace` and `pulumi state taint` do to things of a stack while a job runs on it."""

import re
from collections.abc import Iterator

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox
from tests.engine.load import JOB_LABEL

pytestmark = [pytest.mark.docker, pytest.mark.acceptance, pytest.mark.xdist_group("replacements")]

RULE = "sandbox-ssh-127.0.0.0/8"


@pytest.fixture(scope="module")
def stack(sandbox: Sandbox, project: Project) -> Project:
    """A stack with one runner and an object store's container, brought up once for all tests of this module."""
    project.configure(lambda config: config["runners"].pop("team"))
    project.configure(lambda config: config.update(cache={"kind": "openstack"}))
    project.up()
    return project


@pytest.fixture
def job(sandbox: Sandbox, stack: Project) -> Iterator[int]:
    """A job that runs throughout the test, and then ends well."""
    running = sandbox.put_job(["until [ -e /tmp/end ]; do sleep 1; done"])
    sandbox.wait_for_job(running, "running")
    yield running
    for container in sandbox.docker.containers.list(filters={"label": f"{JOB_LABEL}={running}"}):
        container.exec_run(["touch", "/tmp/end"])
    assert sandbox.wait_for_job(running)["status"] == "success"


def urn_of(stack: Project, type_: str, name: str) -> str:
    (urn,) = (
        resource["urn"]
        for resource in stack.export()["deployment"]["resources"]
        if resource["urn"].endswith(f"{type_}::{name}") and not resource.get("delete")
    )
    return str(urn)


def server(sandbox: Sandbox) -> str:
    (found,) = sandbox.openstack.compute.servers()
    return str(found.id)


@pytest.mark.parametrize("how", ["--replace", "taint"])
def test_a_machine_that_works_is_not_replaced_alone_and_the_preview_says_what_is(
    sandbox: Sandbox, stack: Project, job: int, how: str
) -> None:
    before, inventory = server(sandbox), sandbox.openstack_inventory()
    urn = urn_of(stack, "Instance", "sandbox-1")
    options = ["--replace", urn]
    if how == "taint":
        assert stack.run("state", "taint", urn, f"--stack={stack.stack}", "--yes").status == 0
        options = []
    for command in (["preview"], ["up", "--yes", "--skip-preview"]):
        refused = stack.run(*command, f"--stack={stack.stack}", *options, config=True)
        assert refused.status != 0
        told = [line for line in refused.errors if "cannot be replaced alone" in line]
        assert f"`pulumi up --replace '{urn_of(stack, 'HostKey', 'sandbox-1')}'`" in told[0]
        assert "Traceback" not in refused.output
    if how == "taint":
        assert stack.run("state", "untaint", urn, f"--stack={stack.stack}", "--yes").status == 0
    assert (server(sandbox), sandbox.openstack_inventory()) == (before, inventory)
    assert stack.preview() == {}


def test_its_host_key_replaces_the_machine_after_its_jobs(sandbox: Sandbox, stack: Project) -> None:
    before, inventory = server(sandbox), sandbox.inventory()
    job = sandbox.put_job(["sleep 30"])
    sandbox.wait_for_job(job, "running")
    stack.up("--replace", urn_of(stack, "HostKey", "sandbox-1"))
    assert sandbox.job(job)["status"] == "success"
    assert server(sandbox) != before
    assert sandbox.inventory() == inventory
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
    assert stack.preview() == {}


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        ("Keypair", "sandbox"),
        ("Container", "sandbox"),
        ("SecGroupRule", RULE),
        ("SecGroup", "sandbox"),
    ],
)
def test_what_is_replaced_is_there_afterwards_and_no_job_notices(
    sandbox: Sandbox, stack: Project, job: int, type_: str, name: str
) -> None:
    before, inventory = server(sandbox), sandbox.openstack_inventory()
    replaced = stack.up("--replace", urn_of(stack, type_, name))
    assert re.search(r"\+-\s*\d+ replaced", replaced.output), replaced.output
    assert sandbox.job(job)["status"] == "running"
    assert server(sandbox) == before
    assert sandbox.openstack_inventory() == inventory
    assert stack.refresh() == {}
    assert stack.preview() == {}


def test_the_association_of_an_address_is_not_replaced_alone(sandbox: Sandbox, stack: Project) -> None:
    urn = urn_of(stack, "FloatingIpAssociate", "sandbox-1")
    refused = stack.try_up("--replace", urn)
    assert refused.status != 0
    assert f"`pulumi up --replace '{urn_of(stack, 'FloatingIp', 'sandbox-1')}'`" in refused.output
    (address,) = sandbox.openstack.network.ips()
    assert address.port_id is not None
    assert stack.preview() == {}


def test_what_somebody_did_to_a_machine_by_hand_is_not_undone_under_its_jobs(
    sandbox: Sandbox, stack: Project, job: int
) -> None:
    """Flavor and image: the provider would resize the machine, or wipe it."""
    cloud, before = sandbox.openstack, server(sandbox)
    larger = next(each for each in cloud.compute.flavors() if each.name == "m1.medium")
    state = stack.export()
    for resource in state["deployment"]["resources"]:
        if resource["type"].endswith("instance:Instance"):
            for side in ("inputs", "outputs"):
                # As a refresh takes it over.
                resource[side] |= {"flavorId": larger.id, "imageId": "11111111-2222-3333-4444-555555555555"}
    stack.take_over(state)
    assert stack.preview() == {}
    stack.up()
    assert (server(sandbox), sandbox.job(job)["status"]) == (before, "running")


def test_a_stack_of_an_empty_backend_makes_nothing_beside_living_machines(
    sandbox: Sandbox, stack: Project, job: int
) -> None:
    inventory = sandbox.openstack_inventory()
    other = Project(sandbox, stack.folder / "elsewhere")
    for refused in (other.failing_preview(), other.try_up()):
        assert refused.status != 0
        (line,) = [line for line in refused.errors if "with this stack's marks" in line]
        assert other.environment["PULUMI_BACKEND_URL"].rstrip("/") in line
        assert server(sandbox) in line
    assert sandbox.openstack_inventory() == inventory
    assert len(sandbox.gitlab.runners_all.list(get_all=True)) == 1
    assert sandbox.job(job)["status"] == "running"


def test_nothing_is_left_at_the_end(sandbox: Sandbox, stack: Project) -> None:
    stack.destroy()
    assert sandbox.inventory() == NOTHING
