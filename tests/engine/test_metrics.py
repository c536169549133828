"""The port that serves metrics of a machine's runners, on a real Docker Engine."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from renderers.cloud_init import CloudInit, user_data
from renderers.metrics import METRICS_PORT, METRICS_SCRIPT, RUNNER_LABEL
from sandbox.engine import Engine
from tests.engine.harness import Project, Sandbox, inside, wait_until
from tests.promtool import promtool

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]
SERVE = f"mkdir /tmp/www; echo {{}} > /tmp/www/metrics; exec busybox httpd -f -p {METRICS_PORT} -h /tmp/www"
Get = Callable[[str], str]


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    written = yaml.safe_load(user_data(CloudInit("debian", 1450, True, "PRIVATE\n", "PUBLIC", metrics=True)))
    return {file["path"]: file["content"] for file in written["write_files"]}


@pytest.fixture
def get(engine: Engine, tmp_path: Path, files: dict[str, str]) -> Get:
    """What the user_data's own script answers, without carriage returns."""
    script = tmp_path / "serve-metrics"
    script.write_text(files[METRICS_SCRIPT])
    return lambda path: inside(engine, f"printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' | bash {script}")


def test_the_newest_manager_of_a_runner_answers(sandbox: Sandbox, project: Project, get: Get) -> None:
    administration = sandbox.gitlab.settings.get()
    administration.project_runner_token_expiration_interval = 10 * 24 * 60 * 60
    administration.save()
    project.configure(lambda config: config["host"].update(metricsFrom=["127.0.0.1/32"]))
    try:
        assert "runners.app: its token expires on" in project.up().output
    finally:
        administration.project_runner_token_expiration_interval = None
        administration.save()
    assert project.preview() == {}
    (host,) = project.outputs()["hosts"].values()
    assert project.outputs()["prometheusTargets"][1] == {
        "targets": [f"{host['addresses'][-1]}:{METRICS_PORT}"],
        "labels": {
            "stack": "sandbox",
            "instance": "sandbox-1",
            "gitlab_runner": "app",
            "__metrics_path__": "/metrics/app",
        },
    }
    sandbox.wait_for_job(sandbox.put_job(["true"]))
    head, _, body = get("/metrics/app").partition("\n\n")
    assert head.startswith("HTTP/1.0 200 OK\nContent-Type: text/plain; version=0.0.4; charset=utf-8\n")
    assert re.search(r'^gitlab_runner_jobs_total\{.*runner_name="sandbox-1-app".*\} 1$', body, re.MULTILINE)
    assert re.search(r"^gitlab_runners_token_expiry_timestamp_seconds [1-9][0-9]{9}$", body, re.MULTILINE)
    # In the form that Prometheus reads, as far as its own program can tell.
    subprocess.run([promtool(), "check", "metrics"], input=body, text=True, check=True, capture_output=True)
    assert get("/metrics/other").startswith("HTTP/1.0 502 ")
    # As in an update: the successor is there while the predecessor ends its jobs.
    image = sandbox.environment["SANDBOX_JOB_IMAGE"]
    successor = sandbox.docker.containers.run(
        image, ["sh", "-c", SERVE.format("successor 1")], labels={RUNNER_LABEL: "app"}, detach=True
    )
    try:
        wait_until(lambda: "\n\nsuccessor 1\n" in get("/metrics/app"), "the successor's metrics")
    finally:
        successor.remove(force=True)
    assert 'runner_name="sandbox-1-app"' in get("/metrics/app")


@pytest.fixture
def port_of_the_machine(sandbox: Sandbox, engine: Engine) -> Iterator[None]:
    image = sandbox.environment["SANDBOX_JOB_IMAGE"]
    server = sandbox.docker.containers.run(
        image, ["sh", "-c", SERVE.format("reached")], network_mode="host", detach=True
    )
    yield
    server.remove(force=True)
    inside(engine, "iptables -w -t raw -F PREROUTING")


@pytest.mark.usefixtures("port_of_the_machine")
def test_jobs_do_not_reach_it(sandbox: Sandbox, engine: Engine, files: dict[str, str]) -> None:
    network = sandbox.docker.networks.create("job")

    def answer(network_name: str) -> str:
        machine = "$(ip route | awk '/default/ {print $3}')"
        fetch = f"timeout 3 wget -q -O - http://{machine}:{METRICS_PORT}/metrics || echo nothing"
        output: bytes = sandbox.docker.containers.run(
            sandbox.environment["SANDBOX_JOB_IMAGE"], ["sh", "-c", fetch], network=network_name, remove=True
        )
        return output.decode().strip()

    try:
        wait_until(lambda: answer("job") == "reached", "an answer, as long as nothing is in the way")
        rule = re.search(r"ExecStartPre=/bin/sh -c '(.*)'", files["/etc/systemd/system/runner-metrics.socket"])
        assert rule is not None
        for _ in range(2):
            inside(engine, rule[1])
            assert {answer("job"), answer("bridge")} == {"nothing"}
        assert inside(engine, "iptables -w -t raw -S PREROUTING").count("DROP") == 2
        # The machine itself, and through it Prometheus, still does.
        assert inside(engine, f"exec 3<>/dev/tcp/127.0.0.1/{METRICS_PORT}".join(("bash -c '", "' && echo open"))) == (
            "open\n"
        )
    finally:
        network.remove()
