"""Managers and jobs behind an HTTP proxy."""

from urllib.parse import urlsplit

import pytest

from renderers.handover import BUSY_WORKERS
from tests.engine.harness import Project, Sandbox

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]
# Nothing listens there: whoever asks it gets no answer.
PROXY = "http://127.0.0.1:9"


def test_a_manager_reaches_what_needs_no_proxy_and_jobs_know_it(sandbox: Sandbox, project: Project) -> None:
    gitlab = urlsplit(project.config["gitlab-runners:gitlabUrl"]).hostname
    project.configure(lambda config: config["host"].update(proxy={"http": PROXY, "noProxy": [gitlab]}))
    # A manager that asked the proxy for GitLab would never be healthy.
    project.up()
    job = sandbox.put_job(["echo to $http_proxy, but not for $NO_PROXY"])
    assert f"to {PROXY}, but not for localhost,127.0.0.1,docker,{gitlab}" in sandbox.wait_for_job(job)["trace"]
    # Its own metrics are not the proxy's either, whatever the image's wget knows of no_proxy: the next handover asks.
    manager, *_ = sandbox.managers()
    _, busy = manager.exec_run(["sh", "-c", BUSY_WORKERS])
    assert isinstance(busy, bytes)
    assert busy.strip().isdigit()
