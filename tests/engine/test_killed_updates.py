"""An update that is killed on an existing engine: the next one ends what it left there, and no job with it.

The engine's socket is one on which a call can be held until the update that made it is dead.
"""

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker.models.containers import Container

from renderers.drain import STACK_LABEL
from sandbox.docker_proxy import DockerProxy
from sandbox.faults import Fault, Faults
from tests.engine.background import SIGNALS, Background, updates
from tests.engine.harness import NOTHING, Project, Sandbox, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]

ONE_RUNNER = NOTHING | {"runners": 1, "containers": 2, "volumes": 1}
HELD_SECONDS = 3600


class Nobody:
    """Wants to know nothing of what goes through the socket."""

    def created(self, kind: str, key: str) -> None:
        """Something was created."""

    async def removing(self, kind: str, key: str) -> None:
        """Something is to be removed."""


class Socket:
    """A socket of the engine's on which a call can be held."""

    def __init__(self, path: Path, engine: str) -> None:
        self.url = f"unix://{path}"
        self._faults = Faults()
        self._proxy = DockerProxy(path, engine.removeprefix("unix://"), self._faults, Nobody())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._proxy.start(), self._loop).result()

    def hold(self, method: str, path: str, n: int = 1) -> None:
        """The n-th such call from now on does not reach the engine."""
        self._faults.add(Fault(do="delay", seconds=HELD_SECONDS, method=method, path=path, n=n))

    def holds(self) -> bool:
        return any(request["fault"] for request in self._faults.requests())

    def let_go(self) -> None:
        """Calls pass again; one that is held never does."""
        self._faults.clear()
        self._faults.reset_requests()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._proxy.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Trial:
    """A stack on an existing engine, whose jobs run until they are told to end."""

    project: Project
    sandbox: Sandbox
    socket: Socket
    folder: Path
    begin: Callable[[], Background]

    def put_job(self) -> int:
        """A job whose script runs: it asks nothing more of the engine before it ends."""
        job = self.sandbox.put_job(["echo its script $((6 * 7))", f"until [ -e /{SIGNALS}/end ]; do sleep 1; done"])
        wait_until(lambda: "its script 42" in self.sandbox.job(job)["trace"], "the job's script to run")
        return job

    def end_jobs(self) -> None:
        image, volumes = self.sandbox.environment["SANDBOX_JOB_IMAGE"], {SIGNALS: {"bind": f"/{SIGNALS}"}}
        self.sandbox.docker.containers.run(image, ["touch", f"/{SIGNALS}/end"], volumes=volumes, remove=True)

    def nothing_is_healthy(self) -> None:
        """An update waits in vain for each manager that it makes; they take jobs all the same."""
        fault = {"do": "status", "status": 403, "path": "/runners/verify$", "background": True, "times": 10000}
        self.sandbox.control("POST", "faults", fault)

    def kill(self, update: Background) -> None:
        """As when the machine that it runs on loses its power; what was amiss with the clouds is not any more."""
        update.kill()
        self.project.run("cancel", "--yes", f"--stack={self.project.stack}")
        self.socket.let_go()
        self.sandbox.control("DELETE", "faults")

    def assert_all_is_one_runners(self) -> None:
        """Asserts that there is what one runner has, and after the stack's end nothing."""
        assert self.sandbox.inventory() == ONE_RUNNER
        assert len(self.sandbox.managers()) == 1
        assert self.project.preview() == {}
        self.project.destroy()
        assert self.sandbox.inventory() == NOTHING


@pytest.fixture
def trial(sandbox: Sandbox, fresh: Project, tmp_path: Path) -> Iterator[Trial]:
    socket = Socket(sandbox.state / "held.sock", sandbox.environment["SANDBOX_DOCKER_HOST"])
    fresh.configure(lambda config: config.update(host={"kind": "docker", "url": socket.url}))
    fresh.configure(lambda config: config["runners"]["app"].update(volumes=[f"{SIGNALS}:/{SIGNALS}"]))
    image = sandbox.docker.images.get(sandbox.environment["SANDBOX_RUNNER_IMAGE"])
    image.tag("gitlab-runners-sandbox/gitlab-runner", "next")
    with updates(fresh) as begin:
        yield Trial(fresh, sandbox, socket, tmp_path, begin)
    socket.close()
    sandbox.control("DELETE", "faults")
    for container in sandbox.docker.containers.list(all=True):
        container.remove(force=True, v=True)
    sandbox.docker.volumes.prune(filters={"all": True})


def of_stacks(sandbox: Sandbox) -> list[str | None]:
    """Ids of what is not a job's."""
    return [each.id for each in sandbox.docker.containers.list(all=True, filters={"label": STACK_LABEL})]


def asked_to_end(manager: Container) -> bool:
    return b"received stop signal" in manager.logs()


MADE_AT_FIRST = {
    "the volume": ("GET", "/volumes/"),
    "the container of the configuration": ("PUT", "/archive$"),
    "the manager, which has not started": ("POST", "/start$"),
}


@pytest.mark.parametrize("call", MADE_AT_FIRST.values(), ids=MADE_AT_FIRST.keys())
def test_what_it_made_last_is_there_once(trial: Trial, call: tuple[str, str]) -> None:
    trial.socket.hold(*call)
    update = trial.begin()
    wait_until(trial.socket.holds, "the call to be held")
    trial.kill(update)
    assert "which an interrupted update left" in trial.project.up().output
    trial.assert_all_is_one_runners()


def test_a_manager_that_has_a_job_already_ends_with_it(trial: Trial) -> None:
    trial.nothing_is_healthy()
    update, sandbox = trial.begin(), trial.sandbox
    wait_until(lambda: len(sandbox.managers()) == 1, "the manager to run")
    (unknown,) = sandbox.managers()
    job = trial.put_job()
    trial.kill(update)
    repeated = trial.begin()
    wait_until(lambda: asked_to_end(unknown), "the manager to get SIGQUIT")
    assert sandbox.job(job)["status"] == "running"
    trial.end_jobs()
    repeated.result()
    assert sandbox.job(job)["status"] == "success"
    assert [each.id for each in sandbox.managers()] != [unknown.id]
    trial.assert_all_is_one_runners()


WHILE_A_SUCCESSOR_IS_MADE = {
    "it is held back": ("PUT", "/archive$", 2),
    "it is made": ("POST", "/containers/create$", 2),
    "it is started": ("POST", "/start$", 1),
    "it is to be healthy": None,
}


@pytest.mark.parametrize("call", WHILE_A_SUCCESSOR_IS_MADE.values(), ids=WHILE_A_SUCCESSOR_IS_MADE.keys())
def test_a_successor_that_was_half_made_takes_nothing_from_jobs(
    trial: Trial, call: tuple[str, str, int] | None
) -> None:
    project, sandbox = trial.project, trial.sandbox
    project.up()
    (old,) = sandbox.managers()
    job = trial.put_job()
    project.configure(lambda config: config["manager"].update(version="next"))
    if call is not None:
        trial.socket.hold(*call)
    else:
        trial.nothing_is_healthy()
    update = trial.begin()
    half_made = trial.socket.holds if call is not None else lambda: len(sandbox.managers()) == 2
    wait_until(half_made, "the successor to be half made")
    trial.kill(update)
    repeated = trial.begin()
    wait_until(lambda: asked_to_end(old), "the old manager to get SIGQUIT")
    assert sandbox.job(job)["status"] == "running"
    trial.end_jobs()
    repeated.result()
    assert sandbox.job(job)["status"] == "success"
    assert [each.id for each in sandbox.managers()] != [old.id]
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
    trial.assert_all_is_one_runners()


def test_a_stack_whose_handover_was_killed_can_be_destroyed(trial: Trial) -> None:
    project, sandbox = trial.project, trial.sandbox
    project.up()
    (old,) = sandbox.managers()
    job = trial.put_job()
    project.configure(lambda config: config["manager"].update(version="next"))
    update = trial.begin()
    wait_until(lambda: asked_to_end(old), "the old manager to get SIGQUIT")
    trial.kill(update)
    trial.end_jobs()
    project.destroy()
    assert sandbox.job(job)["status"] == "success"
    assert sandbox.inventory() == NOTHING


def test_beside_a_stack_of_another_backend_nothing_is_made(trial: Trial) -> None:
    project, sandbox = trial.project, trial.sandbox
    project.up()
    job = trial.put_job()
    there = of_stacks(sandbox)
    second = Project(sandbox, trial.folder / "second")
    second.file.write_text(project.file.read_text())
    for refused in (second.failing_preview(), second.try_up()):
        (line,) = (line for line in refused.errors if "Docker at unix://" in line)
        assert "stack sandbox" in line
        assert str(trial.folder / "second") in line
        assert "docs/how-to/recover-a-state.md" in line
        assert "Traceback" not in refused.output
    assert of_stacks(sandbox) == there
    assert sandbox.inventory()["runners"] == 1
    trial.end_jobs()
    assert sandbox.wait_for_job(job)["status"] == "success"
    trial.assert_all_is_one_runners()


def test_where_the_state_cannot_be_read_nothing_is_removed(trial: Trial) -> None:
    project, sandbox = trial.project, trial.sandbox
    labels, image = {STACK_LABEL: "sandbox"}, sandbox.environment["SANDBOX_JOB_IMAGE"]
    sandbox.docker.volumes.create("remnant", labels=labels)
    sandbox.docker.containers.create(image, labels=labels, name="remnant")
    path = project.environment["PATH"]
    cli = trial.folder / "bin" / "pulumi"
    cli.parent.mkdir()
    cli.write_text(f"""\
#!/bin/sh
case "$*" in "stack export"*) echo "no such backend" >&2; exit 1 ;; esac
exec {shutil.which("pulumi", path=path)} "$@"
""")
    cli.chmod(0o755)
    project.environment["PATH"] = f"{cli.parent}:{path}"
    output = project.up().output
    told = output.partition("Diagnostics:")[2].splitlines()
    (line,) = (line for line in told if "sandbox-1: the stack's state cannot be read" in line)
    assert line.endswith("no such backend; what an interrupted update may have left is not removed")
    assert sandbox.inventory() == NOTHING | {"runners": 1, "containers": 3, "volumes": 2}
    project.environment["PATH"] = path
    project.configure(lambda config: config["runners"]["app"].update(environment={"GREETING": "hello"}))
    assert "removed container remnant, which an interrupted update left on sandbox-1" in project.up().output
    trial.assert_all_is_one_runners()
