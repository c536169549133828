"""Jobs without a pause while a stack changes: none is lost, and at every moment some manager takes new ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox
from tests.engine.load import COLUMNS, Feed, assert_no_job_was_lost, row, show

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]

CONCURRENT = 3
SECONDS_OF_A_JOB = (2, 20)


@pytest.fixture
def project(fresh: Project) -> Project:
    fresh.configure(lambda config: config["manager"].update(concurrent=CONCURRENT))
    return fresh


def app(**keys: Any) -> Callable[[dict[str, Any]], object]:
    """A change of the runner's settings."""
    return lambda config: config["runners"]["app"].update(keys)


# What is changed in the stack file, one update after the other.
CHANGES: dict[str, list[Callable[[dict[str, Any]], object]]] = {
    "config.toml": [app(environment={"GREETING": "hello"}, jobLimits={"memory": "256m"})],
    "tags": [app(tags=["docker", "linux"])],
    "protected": [app(protected=True)],
    "locked": [app(locked=False)],
    "paused and back": [app(paused=True), app(paused=False)],
    "image or version": [lambda config: config["manager"].update(version="next")],
    "token rotated": [app(rotation=1)],
    "machine replaced": [lambda config: config["host"].update(mtu=1400)],
}


def test_no_change_loses_a_job(project: Project, sandbox: Sandbox) -> None:
    sandbox.docker.images.get(sandbox.environment["SANDBOX_RUNNER_IMAGE"]).tag(
        "gitlab-runners-sandbox/gitlab-runner", "next"
    )
    project.up()
    feed = Feed(sandbox, CONCURRENT, SECONDS_OF_A_JOB)
    rows = []
    show(COLUMNS)

    def apply(changes: list[Callable[[dict[str, Any]], object]]) -> None:
        for change in changes:
            project.configure(change)
            project.up()

    try:
        for name, changes in CHANGES.items():
            # Two machines are two hosts, each with its own manager.
            hosts = 2 if name == "machine replaced" else 1
            rows.append(row(name, feed, sandbox.docker, partial(apply, changes), hosts=hosts))
        rows.append(row("destroy", feed, sandbox.docker, project.destroy))
    finally:
        feed.stop()
    for each in rows:
        assert_no_job_was_lost(each)
        assert each["gap"] == 0 or each["change"] == "destroy"
    assert sandbox.inventory() == NOTHING
