"""A removal that is interrupted while a job runs: with the next `up` the managers are at work, and no job is killed."""

from collections.abc import Callable, Iterator

import pytest
from docker.models.containers import Container

from tests.engine.background import Background, Jobs, signals
from tests.engine.harness import Project, Sandbox, wait_until

pytestmark = pytest.mark.docker


@pytest.fixture
def jobs(sandbox: Sandbox, fresh: Project) -> Iterator[Jobs]:
    with signals(sandbox, fresh) as found:
        yield found
        fresh.run("cancel", "--yes", f"--stack={fresh.stack}")
        fresh.environment["ABORT_JOBS"] = fresh.stack
        fresh.destroy()


@pytest.fixture(params=["openstack", "docker"])
def kind(request: pytest.FixtureRequest, sandbox: Sandbox, fresh: Project) -> str:
    """Whether the managers are on a machine, or on an engine that existed already."""
    if request.param == "docker":
        host = {"kind": "docker", "url": sandbox.environment["SANDBOX_DOCKER_HOST"]}
        fresh.configure(lambda config: config.update(host=host))
    return str(request.param)


def policy(manager: Container) -> str:
    manager.reload()
    return str(manager.attrs["HostConfig"]["RestartPolicy"]["Name"])


def draining(fresh: Project, sandbox: Sandbox, jobs: Jobs) -> tuple[Background, Container, int]:
    """A `destroy` that waits for a job."""
    fresh.up()
    (manager,) = sandbox.managers()
    job = jobs.running()
    destroy = Background.of(fresh, "destroy")
    wait_until(lambda: b"received stop signal" in manager.logs(), "the manager to get SIGQUIT", 30)
    return destroy, manager, job


def assert_at_work(fresh: Project, sandbox: Sandbox, jobs: Jobs, job: int) -> None:
    """The job that ran ends well, another one is taken, and nothing is left to do."""
    if jobs.states(job) == ["running"]:
        jobs.end(job)
    assert sandbox.wait_for_job(job)["status"] == "success"
    another = jobs.running()
    jobs.end(another)
    assert sandbox.wait_for_job(another)["status"] == "success"
    assert [policy(manager) for manager in sandbox.managers()] == ["always"]
    assert fresh.preview() == {}


@pytest.mark.acceptance
def test_after_one_signal_it_ends_with_the_job(fresh: Project, sandbox: Sandbox, jobs: Jobs, kind: str) -> None:
    destroy, manager, job = draining(fresh, sandbox, jobs)
    destroy.interrupt()
    jobs.end(job)
    destroy.ended()
    assert manager.id not in {each.id for each in sandbox.managers()}
    fresh.up()
    assert_at_work(fresh, sandbox, jobs, job)


def two_signals(destroy: Background) -> None:
    """The second one counts once Pulumi has heard of the first."""
    destroy.interrupt()
    destroy.read_until("cancel")
    destroy.interrupt()
    destroy.ended()


@pytest.mark.parametrize(
    "cut_off",
    [two_signals, Background.kill_alone, Background.kill],
    ids=["two signals", "Pulumi alone", "power failure"],
)
def test_after_a_kill_the_next_update_has_the_manager_at_work(
    fresh: Project, sandbox: Sandbox, jobs: Jobs, kind: str, cut_off: Callable[[Background], None]
) -> None:
    destroy, manager, job = draining(fresh, sandbox, jobs)
    cut_off(destroy)
    fresh.run("cancel", "--yes", f"--stack={fresh.stack}")
    # A machine undoes it by itself.
    if kind == "openstack":
        wait_until(lambda: policy(manager) == "always", "the drain to be undone", 30)
    else:
        assert fresh.preview() == {"Handover sandbox-1": "update"}
    fresh.up()
    assert_at_work(fresh, sandbox, jobs, job)


@pytest.mark.acceptance
def test_a_removal_that_refreshes_first_waits_for_the_job(
    fresh: Project, sandbox: Sandbox, jobs: Jobs, kind: str
) -> None:
    fresh.up()
    job = jobs.running()
    destroy = Background.of(fresh, "destroy", "--refresh")
    (manager,) = sandbox.managers()
    wait_until(lambda: b"received stop signal" in manager.logs(), "the manager to get SIGQUIT", 30)
    assert jobs.states(job) == ["running"]
    jobs.end(job)
    destroy.result()
    assert sandbox.wait_for_job(job)["status"] == "success"


@pytest.mark.acceptance
def test_what_replaces_the_drain_alone_stops_nothing(fresh: Project, sandbox: Sandbox, jobs: Jobs, kind: str) -> None:
    fresh.up()
    job = jobs.running()
    (resource,) = [
        each["urn"]
        for each in fresh.export()["deployment"]["resources"]
        if each["type"].endswith({"openstack": ":Drain", "docker": ":Handover"}[kind])
    ]
    fresh.up(f"--replace={resource}")
    assert jobs.states(job) == ["running"]
    assert fresh.run("state", "taint", resource, f"--stack={fresh.stack}", "--yes").status == 0
    fresh.up()
    assert jobs.states(job) == ["running"]
    assert_at_work(fresh, sandbox, jobs, job)
