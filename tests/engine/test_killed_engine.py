"""An engine that is killed, by the kernel for want of memory, say: what it had started goes with it."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.engine.harness import ROOT, Project, Sandbox, wait_until

pytestmark = pytest.mark.docker
MARK = "RUN_OF_A_TEST"
# It looks every five minutes whether the engine is there: rpcutil.Healthcheck in Pulumi's SDK for Go.
BY_ITSELF = "pulumi-language-python"


class Run:
    """A command of Pulumi that a test kills."""

    def __init__(self, project: Project, command: str) -> None:
        self.mark = uuid4().hex
        words = ["pulumi", command, f"--stack={project.stack}", "--yes", "--skip-preview"]
        self.engine = subprocess.Popen(
            [*words, "--non-interactive", f"--config-file={project.file}"],
            cwd=ROOT,
            env=project.environment | {MARK: self.mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def processes(self) -> Iterator[str]:
        """The command lines of what the engine has started, and of what that has."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if folder.name != str(self.engine.pid) and self.mark.encode() in (folder / "environ").read_bytes():
                    yield (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                # It has just ended, or is nobody's to look at.
                continue

    def kill_when(self, condition: Callable[[], bool], what: str) -> None:
        """Kills the engine, and nothing else."""
        wait_until(condition, what)
        assert self.engine.poll() is None
        self.engine.kill()
        self.engine.wait()

    def assert_nothing_is_left(self) -> None:
        try:
            wait_until(lambda: not self.left(), "the end of what the engine had started")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.left()}") from None

    def left(self) -> list[str]:
        """What still runs, without that which ends by itself, and without what has ended."""
        return [line for line in self.processes() if line and Path(line.split()[0]).name != BY_ITSELF]

    def runs(self, text: str) -> bool:
        """Whether there is a process with that text in its command line."""
        return any(text in line for line in self.processes())


@pytest.mark.acceptance
def test_while_its_providers_start(fresh: Project) -> None:
    run = Run(fresh, "up")
    run.kill_when(lambda: run.runs("pulumi.dynamic"), "the dynamic providers")
    run.assert_nothing_is_left()


def test_while_a_manager_is_made(fresh: Project, sandbox: Sandbox) -> None:
    run = Run(fresh, "up")
    run.kill_when(lambda: bool(sandbox.docker.containers.list(all=True)), "the first container")
    run.assert_nothing_is_left()


@pytest.mark.acceptance
def test_while_a_job_is_waited_for(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    sandbox.wait_for_job(sandbox.put_job(["sleep 600"]), "running")
    run = Run(fresh, "destroy")
    run.kill_when(lambda: run.runs("docker wait"), "the drain")
    run.assert_nothing_is_left()
