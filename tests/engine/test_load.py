"""Jobs without a pause while a stack changes: none is lost, and at every moment some manager takes new ones."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox, at_once, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]

RUNNER_LABEL = "gitlab-runners.runner=app"
CONCURRENT = 3
# Waiting jobs, so that a manager that may take one finds one.
WAITING = 3
SECONDS_OF_A_JOB = (2, 20)
POLL_SECONDS = 0.3
SIGQUIT = "3"


@dataclass
class Feed:
    """Keeps jobs waiting in GitLab, until it is stopped."""

    sandbox: Sandbox
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        durations = random.Random(0)
        while not self._over.wait(POLL_SECONDS):
            waiting = Counter(job["status"] for job in self.jobs())["pending"]
            for _ in range(WAITING - waiting):
                # Protected, so that a runner that becomes protected still finds jobs.
                script = [f"sleep {durations.randint(*SECONDS_OF_A_JOB)}", "echo done"]
                self.sandbox.put_job(script, protected=True)

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that there ever were."""
        found: list[dict[str, Any]] = self.sandbox.control("GET", "jobs")
        return found

    def stop(self) -> None:
        """No further jobs."""
        self._over.set()
        self._thread.join()


class Watch:
    """Follows the engine's events: for how long there was no manager that takes jobs."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._taking = {
            manager.id for manager in sandbox.managers() if manager.labels["gitlab-runners.runner"] == "app"
        }
        self._empty_since: float | None = None
        self.longest_gap = 0.0
        filters = {"type": "container", "label": RUNNER_LABEL}
        self._events = sandbox.docker.events(decode=True, filters=filters)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for event in self._events:
            at = event["timeNano"] / 1e9
            match event["Action"]:
                case "start":
                    self._taking.add(event["id"])
                case "die":
                    self._taking.discard(event["id"])
                case "kill" if event["Actor"]["Attributes"]["signal"] == SIGQUIT:
                    self._taking.discard(event["id"])
            if not self._taking:
                self._empty_since = self._empty_since or at
            elif self._empty_since is not None:
                self.longest_gap = max(self.longest_gap, at - self._empty_since)
                self._empty_since = None

    def stop(self) -> float:
        """The longest time in seconds without a manager that takes jobs."""
        self._events.close()
        self._thread.join()
        if self._empty_since is not None:
            self.longest_gap = max(self.longest_gap, time.time() - self._empty_since)
        return self.longest_gap


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
    feed = Feed(sandbox)
    rows = []
    show(COLUMNS)

    def apply(changes: list[Callable[[dict[str, Any]], object]]) -> None:
        for change in changes:
            project.configure(change)
            project.up()

    try:
        for name, changes in CHANGES.items():
            rows.append(row(name, feed, sandbox, partial(apply, changes)))
        rows.append(row("destroy", feed, sandbox, project.destroy))
    finally:
        feed.stop()
    for each in rows:
        assert (each["killed"], each["failed"]) == (0, 0)
        assert (each["containers"], each["networks"]) == (0, 0)
        assert each["started"] == each["finished"] > 0
        # While the old manager ends its jobs, its successor has slots of its own.
        side_by_side = each["change"] in ("image or version", "machine replaced")
        assert each["at once"] <= CONCURRENT * (2 if side_by_side else 1)
        assert each["gap"] == 0 or each["change"] == "destroy"
    assert sandbox.inventory() == NOTHING


def running(feed: Feed) -> int:
    """Jobs that run."""
    return Counter(job["status"] for job in feed.jobs())["running"]


def row(name: str, feed: Feed, sandbox: Sandbox, change: Callable[[], object]) -> dict[str, Any]:
    """What came of the jobs during a change, and of those that ran at its end once they have ended."""
    wait_until(lambda: running(feed) == CONCURRENT, "all slots to be taken")
    before = {job["id"] for job in feed.jobs() if job["status"] in ("success", "failed")}
    watch = Watch(sandbox)
    change()
    gap = watch.stop()
    affected = {job["id"] for job in feed.jobs() if job["status"] != "pending"} - before
    wait_until(
        lambda: not [job for job in feed.jobs() if job["id"] in affected and job["status"] == "running"],
        "the jobs to end",
    )
    jobs = [job for job in feed.jobs() if job["id"] in affected]
    containers, networks = orphans(feed, sandbox)
    figures = {
        "change": name,
        "started": len(jobs),
        "finished": sum(job["status"] == "success" for job in jobs),
        "killed": sum(job["failure_reason"] not in (None, "script_failure") for job in jobs),
        "failed": sum(job["failure_reason"] == "script_failure" for job in jobs),
        "containers": containers,
        "networks": networks,
        "at once": at_once(jobs),
        "gap": round(gap, 1),
    }
    show(figures)
    return figures


def orphans(feed: Feed, sandbox: Sandbox) -> tuple[int, int]:
    """Containers and networks of jobs that have ended and should have taken them along."""

    def left() -> tuple[int, int]:
        over = {str(job["id"]) for job in feed.jobs() if job["status"] in ("success", "failed")}
        containers = sandbox.docker.containers.list(all=True, ignore_removed=True)
        found = ([each.name or "" for each in containers], [each.name or "" for each in sandbox.docker.networks.list()])
        ours = [
            sum("-job-" in name and name.partition("-job-")[2].split("-")[0] in over for name in names)
            for names in found
        ]
        return ours[0], ours[1]

    # The runner removes them after it has reported the job's end.
    deadline = time.monotonic() + 30
    while any(left()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left()


def show(values: Mapping[str, Any]) -> None:
    """Prints a line of the table."""
    first, *others = (f"{values[key]}".rjust(len(title)) for key, title in COLUMNS.items())
    print(first.strip().ljust(18), *others, sep="  ", flush=True)


COLUMNS = {
    "change": "change",
    "started": "started",
    "finished": "finished",
    "killed": "killed",
    "failed": "failed",
    "containers": "orphaned containers",
    "networks": "orphaned networks",
    "at once": "at once",
    "gap": "seconds without a manager",
}
