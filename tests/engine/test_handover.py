"""Another runner image while all slots are taken: never more jobs than the stack says, none lost, no slot left idle."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from docker.models.containers import Container

from tests.engine.background import Background, Jobs, signals, updates
from tests.engine.harness import NOTHING, Project, Sandbox, at_once, wait_until

pytestmark = pytest.mark.docker
CONCURRENT = 3


@pytest.fixture
def project(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Project:
    used = Project(sandbox, tmp_path_factory.mktemp("project"))
    used.configure(lambda config: config["manager"].update(concurrent=CONCURRENT))
    image = sandbox.docker.images.get(sandbox.environment["SANDBOX_RUNNER_IMAGE"])
    image.tag("gitlab-runners-sandbox/gitlab-runner", "next")
    return used


@pytest.fixture
def jobs(sandbox: Sandbox, project: Project) -> Iterator[Jobs]:
    with signals(sandbox, project) as found:
        yield found


@pytest.fixture
def up(project: Project) -> Iterator[Callable[[], Background]]:
    with updates(project) as begin:
        yield begin


def managers(sandbox: Sandbox) -> list[Container]:
    """The managers of `app` that run, the newest first."""
    return [each for each in sandbox.managers() if each.labels["gitlab-runners.runner"] == "app"]


def takes_no_jobs(manager: Container) -> bool:
    """Whether it got SIGQUIT."""
    return b"received stop signal" in manager.logs()


def assert_limit_held(sandbox: Sandbox, ids: list[int]) -> None:
    found: list[dict[str, Any]] = [sandbox.wait_for_job(job) for job in ids]
    assert [job["status"] for job in found] == ["success"] * len(ids)
    assert at_once(found) == CONCURRENT


def with_all_slots_taken(project: Project, sandbox: Sandbox, jobs: Jobs) -> tuple[Container, list[int], list[int]]:
    """The manager of a stack that is up, its jobs, and as many that wait; the stack file asks for another image."""
    project.up()
    (old,) = managers(sandbox)
    taken = [jobs.put() for _ in range(CONCURRENT)]
    wait_until(lambda: jobs.states(*taken) == ["running"] * CONCURRENT, "all slots to be taken")
    waiting = [jobs.put() for _ in range(CONCURRENT)]
    project.configure(lambda config: config["manager"].update(version="next"))
    return old, taken, waiting


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", ["openstack", "docker"])
def test_two_managers_together_have_no_more_jobs_than_one_may(
    project: Project, sandbox: Sandbox, jobs: Jobs, up: Callable[[], Background], kind: str
) -> None:
    if kind == "docker":
        host = {"kind": kind, "url": sandbox.environment["SANDBOX_DOCKER_HOST"]}
        project.configure(lambda config: config.update(host=host))
    old, taken, waiting = with_all_slots_taken(project, sandbox, jobs)
    update = up()
    wait_until(lambda: takes_no_jobs(old), "the old manager to get SIGQUIT")
    for number in range(CONCURRENT):
        jobs.end(taken[number])
        sandbox.wait_for_job(waiting[number], "running")
        assert jobs.states(*taken[number + 1 :]) == ["running"] * (CONCURRENT - number - 1)
    update.result()
    jobs.end(*waiting)
    assert_limit_held(sandbox, taken + waiting)
    assert sandbox.job(taken[0])["system_id"] != sandbox.job(waiting[0])["system_id"]
    assert [each.id for each in managers(sandbox)] != [old.id]
    assert project.preview() == {}
    project.destroy()
    assert sandbox.inventory() == NOTHING


@pytest.mark.acceptance
def test_what_broke_off_goes_on_with_the_next_update(
    project: Project, sandbox: Sandbox, jobs: Jobs, up: Callable[[], Background]
) -> None:
    old, taken, waiting = with_all_slots_taken(project, sandbox, jobs)
    broken_off = up()
    wait_until(lambda: takes_no_jobs(old), "the old manager to get SIGQUIT")
    broken_off.kill()
    project.run("cancel", "--yes", f"--stack={project.stack}")
    # A configuration that is written while two managers run does not let go of the limit either.
    project.configure(lambda config: config["runners"]["app"].update(environment={"GREETING": "hello"}))
    repeated = up()
    new = next(each for each in managers(sandbox) if each.id != old.id)
    wait_until(lambda: "GREETING" in config_of(new), "the new configuration to be written")
    jobs.end(taken[0])
    sandbox.wait_for_job(waiting[0], "running")
    assert jobs.states(*taken[1:]) == ["running"] * (CONCURRENT - 1)
    jobs.end(*taken[1:])
    repeated.result()
    wait_until(lambda: jobs.states(*waiting) == ["running"] * CONCURRENT, "all slots to be taken again")
    jobs.end(*waiting)
    assert_limit_held(sandbox, taken + waiting)
    assert f"concurrent = {CONCURRENT}\n" in config_of(new)
    assert project.preview() == {}


def config_of(manager: Container) -> str:
    output: Any = manager.exec_run(["cat", "/etc/gitlab-runner/config.toml"]).output
    return str(output.decode())
