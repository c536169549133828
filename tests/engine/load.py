"""Jobs without a pause while a stack changes, and what became of them."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from docker import DockerClient

from tests.engine.harness import Clouds, at_once, wait_until

RUNNER_LABEL = "gitlab-runners.runner=app"
JOB_LABEL = "com.gitlab.gitlab-runner.job.id"
"""Label of each container and network of a job (GitLab Runner, executors/docker/internal/labels)."""
POLL_SECONDS = 0.3
SIGQUIT = "3"
COLUMNS = {
    "change": "change",
    "started": "started",
    "finished": "finished",
    "killed": "killed",
    "failed": "failed",
    "containers": "orphaned containers",
    "networks": "orphaned networks",
    "at once": "at once",
    "allowed": "allowed at once",
    "gap": "seconds without a manager",
}
"""What the figures of a change are called in the table that `show` prints."""


@dataclass
class Feed:
    """Keeps jobs waiting in GitLab for the runner `app`, until it is stopped.

    slots:   how many of them the runner runs at once.
    seconds: how long a job sleeps, at least and at most.
    """

    clouds: Clouds
    slots: int
    seconds: tuple[int, int]
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        durations = random.Random(0)
        while not self._over.wait(POLL_SECONDS):
            waiting = Counter(job["status"] for job in self.jobs())["pending"]
            # So many that a manager that may take one finds one.
            for _ in range(self.slots - waiting):
                # Protected, so that a runner that becomes protected still finds jobs.
                script = [f"sleep {durations.randint(*self.seconds)}", "echo done"]
                self.clouds.put_job(script, protected=True)

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that there ever were."""
        found: list[dict[str, Any]] = self.clouds.control("GET", "jobs")
        return found

    def running(self) -> int:
        """Jobs that run."""
        return Counter(job["status"] for job in self.jobs())["running"]

    def stop(self) -> None:
        """No further jobs, also none of those that wait: the next stack's runner would take them."""
        self._over.set()
        self._thread.join()
        self.clouds.control("DELETE", "jobs")


class Watch:
    """Follows the engine's events: for how long there was no manager that takes jobs."""

    def __init__(self, engine: DockerClient) -> None:
        self._taking = {manager.id for manager in engine.containers.list(filters={"label": RUNNER_LABEL})}
        self._empty_since: float | None = None
        self.longest_gap = 0.0
        filters = {"type": "container", "label": RUNNER_LABEL}
        self._events = engine.events(decode=True, filters=filters)
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


def row(name: str, feed: Feed, engine: DockerClient, change: Callable[[], object], *, hosts: int = 1) -> dict[str, Any]:
    """What came of the jobs during a change, and of those that ran at its end once they have ended; by COLUMNS.

    engine: the one whose containers and networks are looked at.
    hosts:  on how many the runner has a manager during the change, each of which may have all of its slots.
    """
    wait_until(lambda: feed.running() == feed.slots, "all slots to be taken", feed.clouds.patience_seconds)
    before = {job["id"] for job in feed.jobs() if job["status"] in ("success", "failed")}
    watch = Watch(engine)
    try:
        change()
    finally:
        gap = watch.stop()
    affected = {job["id"] for job in feed.jobs() if job["status"] != "pending"} - before
    wait_until(
        lambda: not [job for job in feed.jobs() if job["id"] in affected and job["status"] == "running"],
        "the jobs to end",
        feed.clouds.patience_seconds,
    )
    jobs = [job for job in feed.jobs() if job["id"] in affected]
    containers, networks = orphans(feed, engine)
    figures = {
        "change": name,
        "started": len(jobs),
        "finished": sum(job["status"] == "success" for job in jobs),
        "killed": sum(job["failure_reason"] not in (None, "script_failure") for job in jobs),
        "failed": sum(job["failure_reason"] == "script_failure" for job in jobs),
        "containers": containers,
        "networks": networks,
        "at once": at_once(jobs),
        "allowed": feed.slots * hosts,
        "gap": round(gap, 1),
    }
    show(figures)
    return figures


def assert_no_job_was_lost(figures: Mapping[str, Any]) -> None:
    """Every job that started has finished and has taken its containers and networks along; none was one too many."""
    assert (figures["killed"], figures["failed"]) == (0, 0), figures
    assert (figures["containers"], figures["networks"]) == (0, 0), figures
    assert figures["started"] == figures["finished"] > 0, figures
    assert figures["at once"] <= figures["allowed"], figures


def orphans(feed: Feed, engine: DockerClient) -> tuple[int, int]:
    """Containers and networks of jobs that have ended and should have taken them along."""

    def left() -> tuple[int, int]:
        over = {str(job["id"]) for job in feed.jobs() if job["status"] in ("success", "failed")}
        containers = engine.containers.list(all=True, filters={"label": JOB_LABEL}, ignore_removed=True)
        networks = engine.networks.list(filters={"label": JOB_LABEL})
        return (
            sum(container.labels[JOB_LABEL] in over for container in containers),
            sum(network.attrs["Labels"][JOB_LABEL] in over for network in networks),
        )

    # The runner removes them after it has reported the job's end.
    deadline = time.monotonic() + feed.clouds.patience_seconds
    while any(left()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left()


def show(values: Mapping[str, Any]) -> None:
    """Prints a line of the table; with COLUMNS, its head."""
    first, *others = (f"{values[key]}".rjust(len(title)) for key, title in COLUMNS.items())
    print(first.strip().ljust(18), *others, sep="  ", flush=True)
