"""The script that restarts a machine for its updates, on a real Docker Engine with a stack and a running job."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from renderers.cloud_init import CloudInit, user_data
from renderers.updates import REBOOT_REQUIRED, UPDATE_SCRIPT, Updates
from sandbox.engine import Engine, ensure
from sandbox.processes import Process
from tests.engine.harness import Project, Sandbox, inside, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.acceptance, pytest.mark.xdist_group("updates")]
Update = Callable[..., list[str]]
STAND_INS = {
    "dpkg-query": "printf 'docker.io installed\\ncontainerd installed\\n'",
    "apt-get": """\
case "$*" in
  *--simulate*) [ ! -e {folder}/pending ] || echo 'Inst docker.io [1] (2 Debian)' ;;
  *) echo "updated with $(docker ps --quiet --filter label=gitlab-runners.runner | wc -l) managers" >> {folder}/did
     rm {folder}/pending ;;
esac""",
    "systemctl": 'echo "$*" >> {folder}/did',
}


@pytest.fixture
def update(engine: Engine, tmp_path: Path) -> Update:
    """Runs the user_data's own script, for which a restart or the engine's update is due; tells what it did."""

    def run(*, reboot: bool = False, engine_update: bool = False) -> list[str]:
        machine = CloudInit("debian", 1450, True, "PRIVATE\n", "PUBLIC", updates=Updates("02:00-05:00", 1))
        files = {file["path"]: file["content"] for file in yaml.safe_load(user_data(machine))["write_files"]}
        script = tmp_path / "script"
        script.write_text(files[UPDATE_SCRIPT].replace(REBOOT_REQUIRED, f"{tmp_path}/reboot-required"))
        for name, body in STAND_INS.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body.replace('{folder}', str(tmp_path))}\n")
            (tmp_path / name).chmod(0o755)
        for name, due in (("reboot-required", reboot), ("pending", engine_update)):
            if due:
                (tmp_path / name).touch()
        (tmp_path / "did").write_text("")
        inside(engine, f"PATH={tmp_path}:$PATH sh {script}")
        return (tmp_path / "did").read_text().splitlines()

    return run


def long_job(sandbox: Sandbox) -> int:
    job = sandbox.put_job(["sleep 3", "echo done"])
    sandbox.wait_for_job(job, "running")
    return job


def test_nothing_happens_when_nothing_asks_for_it(sandbox: Sandbox, project: Project, update: Update) -> None:
    project.up()
    managers = {manager.id for manager in sandbox.managers()}
    assert update() == []
    assert {manager.id for manager in sandbox.managers()} == managers


def test_the_engine_is_updated_between_jobs(sandbox: Sandbox, update: Update) -> None:
    managers = {manager.id for manager in sandbox.managers()}
    job = long_job(sandbox)
    assert update(engine_update=True) == ["updated with 0 managers"]
    assert sandbox.job(job)["status"] == "success"
    assert {manager.id for manager in sandbox.managers()} == managers


def test_a_machine_that_is_about_to_go_is_left_alone(sandbox: Sandbox, engine: Engine, update: Update) -> None:
    managers = [str(manager.id) for manager in sandbox.managers()]
    inside(engine, f"docker update --restart no {' '.join(managers)}")
    assert update(reboot=True) == []
    inside(engine, f"docker update --restart always {' '.join(managers)}")
    assert [manager.id for manager in sandbox.managers()] == managers


def test_it_restarts_when_the_last_job_has_ended_and_the_managers_come_back(
    sandbox: Sandbox, project: Project, engine: Engine, update: Update
) -> None:
    managers = {manager.id for manager in sandbox.managers()}
    job = long_job(sandbox)
    assert update(reboot=True, engine_update=True) == ["updated with 0 managers", "reboot"]
    assert sandbox.job(job)["status"] == "success"
    assert sandbox.managers() == []
    # What a restart does to the engine: everything is gone at once, and dockerd starts.
    keeper = Process.read(Path(engine.namespace or ""))
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGKILL)
    wait_until(lambda: not keeper.alive, "the engine to end")
    ensure(sandbox.state, lambda _: None)
    assert {manager.id for manager in sandbox.managers()} == managers
    assert sandbox.wait_for_job(sandbox.put_job(["true"]))["status"] == "success"
    assert project.preview() == {}
