"""What a stack has made and its state does not know: `make orphans` lists it, and removes it after its jobs."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.console import Failure
from scripts.orphans import main, orphans
from scripts.stack import Stack
from tests.engine.harness import NOTHING, Project, Sandbox, wait_until
from tests.engine.load import JOB_LABEL

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("orphans")]


@contextmanager
def job_runs(sandbox: Sandbox) -> Iterator[int]:
    """A job that ends well after this, if it is left alone until then."""
    running = sandbox.put_job(["until [ -e /tmp/end ]; do sleep 1; done"])
    sandbox.wait_for_job(running, "running")
    try:
        yield running
        assert sandbox.job(running)["status"] == "running"
    finally:
        _end(sandbox, running)


def _end(sandbox: Sandbox, job: int) -> None:
    for container in sandbox.docker.containers.list(filters={"label": f"{JOB_LABEL}={job}"}):
        container.exec_run(["touch", "/tmp/end"])


def in_empty_backend(stack: Project, folder: Path) -> Stack:
    """The stack in a backend that has never heard of it."""
    return Stack(stack.stack, {**stack.environment, "PULUMI_BACKEND_URL": folder.as_uri()}, stack.file)


def removed_after_the_job(sandbox: Sandbox, stack: Stack, capsys: pytest.CaptureFixture[str], waits: str) -> str:
    """Removes what the stack's state does not know while a job runs, which must end well; what is printed."""
    told = ""

    def is_waiting() -> bool:
        nonlocal told
        told += capsys.readouterr().out
        return waits in told or removal.done()

    with ThreadPoolExecutor() as pool:
        with job_runs(sandbox) as job:
            inventory = sandbox.openstack_inventory()
            removal = pool.submit(orphans, stack, remove=True)
            wait_until(is_waiting, "the removal to wait for the job")
            assert sandbox.openstack_inventory() == inventory
            assert len(sandbox.gitlab.runners_all.list(get_all=True)) == 1
        assert removal.result() == 0
    assert sandbox.wait_for_job(job)["status"] == "success"
    return told + capsys.readouterr().out


def test_a_living_stack_is_listed_from_an_empty_backend_and_removed_after_its_jobs(
    sandbox: Sandbox, fresh: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh.configure(lambda config: config.update(cache={"kind": "openstack"}))
    fresh.configure(lambda config: config["host"].update(dockerVolume={"size": 10}))
    fresh.up()
    assert orphans(fresh.as_stack(), remove=False) == 0
    assert orphans(fresh.as_stack(), remove=True) == 0
    assert "knows all that carries the stack's marks" in capsys.readouterr().out
    lost = in_empty_backend(fresh, tmp_path)
    before = sandbox.inventory()
    with job_runs(sandbox):
        assert orphans(lost, remove=False) == 1
    listed = capsys.readouterr().out
    runner = fresh.outputs()["runners"]["app"]["id"]
    assert f"{tmp_path.as_uri()} does not exist" in listed
    for line in (
        r"server sandbox-1 \(.+\): ACTIVE, jobs may be running there",
        r"floating IP [0-9.]+ \(.+\): of port .+",
        r"port sandbox-1 \(.+\): of server .+",
        r"volume sandbox-1 \(.+\): of server .+",
        r"security group sandbox \(.+\): ports use it",
        r"object store container gitlab-runners-sandbox-cache: holds 0 objects of the jobs' cache",
        rf"runner sandbox app \({runner}\): in use, or was",
    ):
        assert re.search(f"^  {line}$", listed, re.MULTILINE), listed
    wait_until(lambda: sandbox.inventory() == before, "nothing but the job's containers to be changed")
    assert not list(tmp_path.rglob("sandbox.json"))
    told = removed_after_the_job(sandbox, lost, capsys, f"waiting for the jobs of runner sandbox app ({runner})")
    assert f"removed runner sandbox app ({runner})" in told
    assert re.search(r"^  key pair sandbox-[0-9a-f]{8}: unused$", told, re.MULTILINE)
    # Neither has a mark: an EC2 credential not even a name.
    assert sandbox.inventory() == NOTHING | {"key pairs": 1, "EC2 credentials": 1}
    assert orphans(lost, remove=False) == 0


def test_an_engine_that_exists_is_listed_from_an_empty_backend_and_cleared_after_its_jobs(
    sandbox: Sandbox, fresh: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = {"kind": "docker", "url": sandbox.environment["SANDBOX_DOCKER_HOST"], "mtu": 1400}
    fresh.configure(lambda config: config.update(host=host))
    fresh.up()
    others = sandbox.docker.volumes.create("of-another", labels={"gitlab-runners.stack": "sandbox-2"})
    assert orphans(fresh.as_stack(), remove=False) == 0
    lost = in_empty_backend(fresh, tmp_path)
    assert orphans(lost, remove=False) == 1
    listed = capsys.readouterr().out
    assert re.search(r"^  container sandbox-1-app-\w+ \([0-9a-f]{64}\): manager of app, running$", listed, re.MULTILINE)
    assert re.search(r"^  volume sandbox-1-app-\w+: a container uses it$", listed, re.MULTILINE)
    removed_after_the_job(sandbox, lost, capsys, "after its jobs")
    others.remove()
    assert sandbox.inventory() == NOTHING


def test_nothing_is_removed_for_another_name_or_without_a_state(
    sandbox: Sandbox, fresh: Project, tmp_path: Path
) -> None:
    with pytest.raises(Failure, match=r"^REMOVE=sandbox-2: must repeat the name of the stack, sandbox; nothing was"):
        main({"STACK": "sandbox", "REMOVE": "sandbox-2"})
    nowhere = in_empty_backend(fresh, tmp_path / "nowhere")
    with pytest.raises(
        Failure, match=r"^the stack's state cannot be read: .*; without it nothing is told, and nothing"
    ):
        orphans(nowhere, remove=True)


def test_a_server_that_the_state_lost_is_imported_and_goes_with_its_machine(sandbox: Sandbox, fresh: Project) -> None:
    """As docs/how-to/recover-a-state.md has it."""
    fresh.up()
    (server,) = sandbox.openstack.compute.servers()
    urns = {each["urn"].rpartition("$")[2]: each["urn"] for each in fresh.export()["deployment"]["resources"]}
    stack, instance = f"--stack={fresh.stack}", "openstack:compute/instance:Instance"
    lost = fresh.run("state", "delete", urns[f"{instance}::sandbox-1"], "--target-dependents", "--yes", stack)
    assert lost.status == 0, lost.output
    runner = sandbox.gitlab.runners.get(fresh.outputs()["runners"]["app"]["id"])
    runner.paused = True
    runner.save()
    machine = urns["gitlab-runners:openstack:VirtualMachine::sandbox-1"]
    named = ["sandbox-1", server.id, f"--parent=machine={machine}"]
    options = [stack, "--protect=false", "--generate-code=false", "--yes", "--skip-preview"]
    imported = fresh.run("import", instance, *named, *options, config=True)
    assert imported.status == 0, imported.output
    key = urns["pulumi-python:dynamic/ssh:HostKey::sandbox-1"]
    assert f"pulumi up --replace '{key}'" in " ".join(fresh.failing_preview().output.split())
    fresh.up("--replace", key)
    assert [each.id for each in sandbox.openstack.compute.servers()] not in ([], [server.id])
    runner.paused = False
    runner.save()
    assert fresh.preview() == {}
    job = sandbox.wait_for_job(sandbox.put_job(["true"]))
    assert job["status"] == "success"
    fresh.destroy()
    assert sandbox.inventory() == NOTHING
