"""Jobs that run for as long as a test wants, and commands of Pulumi in the background."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from docker.errors import NotFound

from tests.engine.harness import ROOT, Project, Sandbox

SIGNALS = "jobs.signals"
"""The volume by whose files jobs are told to end."""


@contextmanager
def signals(sandbox: Sandbox, project: Project) -> Iterator["Jobs"]:
    """Lets the jobs of the runner `app` see the files."""
    project.configure(lambda config: config["runners"]["app"].update(volumes=[f"{SIGNALS}:/{SIGNALS}"]))
    volume = sandbox.docker.volumes.create(SIGNALS)
    yield Jobs(sandbox)
    # With the last machine its volumes went as well.
    sandbox.clear()
    with suppress(NotFound):
        volume.remove()


@dataclass
class Jobs:
    """Jobs that run until they are told to end, by files in a volume that all of them have."""

    sandbox: Sandbox

    def put(self) -> int:
        """A job that runs until it is told to end."""
        return self.sandbox.put_job([f"until [ -e /{SIGNALS}/$CI_JOB_ID ]; do sleep 1; done"])

    def end(self, *jobs: int) -> None:
        """Tells jobs to end."""
        command = ["touch", *(f"/{SIGNALS}/{job}" for job in jobs)]
        image, volumes = self.sandbox.environment["SANDBOX_JOB_IMAGE"], {SIGNALS: {"bind": f"/{SIGNALS}"}}
        self.sandbox.docker.containers.run(image, command, volumes=volumes, remove=True)

    def states(self, *jobs: int) -> list[str]:
        return [self.sandbox.job(job)["status"] for job in jobs]

    def running(self) -> int:
        """A new job, once it runs."""
        job = self.put()
        self.sandbox.wait_for_job(job, "running")
        return job


@dataclass
class Background:
    """A command of Pulumi in the background."""

    process: subprocess.Popen[str]

    @classmethod
    def of(cls, project: Project, command: str, *options: str) -> "Background":
        """Starts `up` or `destroy`."""
        words = ["pulumi", command, f"--stack={project.stack}", "--yes", "--skip-preview", "--non-interactive"]
        process = subprocess.Popen(
            [*words, *options, f"--config-file={project.file}"],
            cwd=ROOT,
            env=project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return cls(process)

    def interrupt(self) -> None:
        """As Ctrl+C does: the signal reaches Pulumi, and not its plugins, which have process groups of their own."""
        self.process.send_signal(signal.SIGINT)

    def read_until(self, words: str) -> None:
        """Waits until it has printed a line with these words."""
        assert self.process.stdout is not None
        assert any(words in line for line in self.process.stdout), f"it ended without {words}"

    def kill_alone(self) -> None:
        """Ends Pulumi without notice, and leaves its plugins behind."""
        self.process.kill()
        self.process.wait()

    def kill(self) -> None:
        """As when the machine that it runs on loses its power."""
        # Plugins have process groups of their own, in the same session.
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                if int(file.read_text().rpartition(")")[2].split()[3]) == self.process.pid:
                    os.kill(int(file.parent.name), signal.SIGKILL)
        self.process.wait()

    def ended(self) -> str:
        """What it printed, once it has ended, well or not."""
        output, _ = self.process.communicate()
        return output

    def result(self) -> str:
        """What it printed; it must have succeeded."""
        output = self.ended()
        assert self.process.returncode == 0, output
        return output


@contextmanager
def updates(project: Project) -> Iterator[Callable[[], Background]]:
    """Begins updates; none of them survives."""
    begun: list[Background] = []

    def begin() -> Background:
        begun.append(Background.of(project, "up"))
        return begun[-1]

    yield begin
    for each in begun:
        if each.process.poll() is None:
            each.kill()
