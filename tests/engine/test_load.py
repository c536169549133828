"""Jobs without a pause while a stack changes: none is lost, and at every moment some manager takes new ones."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox, wait_until

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
                self.sandbox.put_job([f"sleep {durations.randint(*SECONDS_OF_A_JOB)}", "echo done"])

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
def project(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    used = Project(sandbox, tmp_path_factory.mktemp("project"))
    used.configure(lambda config: config["runners"].pop("team"))
    used.configure(lambda config: config["manager"].update(concurrent=CONCURRENT))
    yield used
    sandbox.clear()


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "config.toml": lambda config: config["runners"]["app"].update(environment={"GREETING": "hello"}),
    "tags in GitLab": lambda config: config["runners"]["app"].update(tags=["docker", "linux"]),
    "runner image": lambda config: config["manager"].update(version="next"),
    "token rotated": lambda config: config["runners"]["app"].update(rotation=1),
    "machine replaced": lambda config: config["host"].update(mtu=1400),
}


def test_no_change_loses_a_job(project: Project, sandbox: Sandbox) -> None:
    sandbox.docker.images.get(sandbox.environment["SANDBOX_RUNNER_IMAGE"]).tag(
        "gitlab-runners-sandbox/runner-stand-in", "next"
    )
    project.up()
    feed = Feed(sandbox)
    rows = []
    try:
        wait_until(lambda: running(feed) == CONCURRENT, "all slots to be taken")
        for name, change in CHANGES.items():
            project.configure(change)
            rows.append(row(name, feed, sandbox, project.up))
        rows.append(row("destroy", feed, sandbox, project.destroy))
    finally:
        feed.stop()
        print_table(rows)
    for each in rows:
        assert (each["killed"], each["failed"]) == (0, 0)
        assert each["orphans"] == 0
        assert each["gap"] == 0 or each["change"] == "destroy"
    assert sandbox.inventory() == NOTHING


def running(feed: Feed) -> int:
    """Jobs that run."""
    return Counter(job["status"] for job in feed.jobs())["running"]


def row(name: str, feed: Feed, sandbox: Sandbox, change: Callable[[], object]) -> dict[str, Any]:
    """What came of the jobs during a change, and of those that ran at its end once they have ended."""
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
    return {
        "change": name,
        "started": len(jobs),
        "finished": sum(job["status"] == "success" for job in jobs),
        "killed": sum(job["failure_reason"] not in (None, "script_failure") for job in jobs),
        "failed": sum(job["failure_reason"] == "script_failure" for job in jobs),
        "orphans": orphans(feed, sandbox),
        "gap": round(gap, 1),
    }


def orphans(feed: Feed, sandbox: Sandbox) -> int:
    """Containers and networks of jobs that have ended and should have taken them along."""

    def left() -> list[str]:
        over = {str(job["id"]) for job in feed.jobs() if job["status"] in ("success", "failed")}
        names = [container.name or "" for container in sandbox.docker.containers.list(all=True)]
        names += [network.name or "" for network in sandbox.docker.networks.list()]
        return [name for name in names if "-job-" in name and name.partition("-job-")[2].split("-")[0] in over]

    # The runner removes them after it has reported the job's end.
    deadline = time.monotonic() + 30
    while left() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return len(left())


def print_table(rows: list[dict[str, Any]]) -> None:
    """The figures, for whoever reads the run."""
    print("\n{:<18}{:>9}{:>10}{:>8}{:>8}{:>9}{:>24}".format(*HEADINGS))
    for each in rows:
        print("{change:<18}{started:>9}{finished:>10}{killed:>8}{failed:>8}{orphans:>9}{gap:>22} s".format(**each))


HEADINGS = ("change", "started", "finished", "killed", "failed", "orphans", "without a manager for")
