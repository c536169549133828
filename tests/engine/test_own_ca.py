"""Certificates of a CA of one's own, on their way to managers and jobs."""

import pytest

from tests.certificates import certificate
from tests.engine.harness import Project, Sandbox

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]


def test_managers_and_jobs_find_the_certificates(sandbox: Sandbox, project: Project) -> None:
    file, certificates = "/etc/gitlab-runner/certs/ca.crt", [certificate(), certificate()]
    project.configure(lambda config: config["host"].update(caCertificates=certificates))
    project.up()
    for manager in sandbox.managers():
        assert manager.exec_run(["cat", file]).output == "".join(certificates).encode()
    job = sandbox.put_job([f"wc -l < {file}", f"touch {file} || echo it stays as it is"])
    trace = sandbox.wait_for_job(job, "success")["trace"]
    assert str("".join(certificates).count("\n")) in trace.splitlines()
    assert "it stays as it is" in trace
