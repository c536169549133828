"""GitLab's pipelines of a change to one team's file: their jobs, one after the other, in the embedded sandbox."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import requests
import yaml

from sandbox.packages import cache_directory
from scripts.stack import FOREIGN_VARIABLES
from tests.ci.pipeline import ROOT, Job, ProjectFolder, Ref, in_one_shell

pytestmark = [pytest.mark.acceptance, pytest.mark.docker]
PROJECT = 100
STACK = "payments-dev"
FILE = f"stacks/Pulumi.{STACK}.yaml"


class Checkout:
    """A clone of the project that a pipeline's jobs run in, and GitLab as its sandbox has it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        content = {
            "include": [
                {"local": "ci/pulumi.gitlab-ci.yml", "inputs": {"runner-tag": "deploy", "sandbox": "--sandbox"}}
            ]
        }
        (folder / ".gitlab-ci.yml").write_text(yaml.safe_dump(content))
        self.project = ProjectFolder.of(folder)
        # The jobs' cache is in the project's folder: what this machine has brought already is there from the start.
        (folder / ".cache").mkdir()
        cache_directory().mkdir(parents=True, exist_ok=True)
        (folder / ".cache" / "gitlab-runners").symlink_to(cache_directory())
        self.environment = {name: value for name, value in os.environ.items() if not FOREIGN_VARIABLES.match(name)}
        self.environment |= {
            "XDG_CACHE_HOME": str(folder / ".cache"),
            "PULUMI_HOME": str(folder / ".cache" / "pulumi-home"),
        }

    def open(self) -> None:
        """Starts the sandbox."""
        self.call("make", "sandbox-up")
        words = shlex.split((self.path / ".sandbox" / "env").read_text(), comments=True)
        self.variables = dict(word.split("=", 1) for word in words if word != "export")

    def call(self, *command: str, **more: str) -> str:
        """Runs a command in the clone; it must succeed."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment | more, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def commit(self, old: str, new: str) -> str:
        """A commit with another text in the team's file."""
        file = self.path / FILE
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
        who = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
        self.call("git", *who, "commit", "--quiet", "--all", "--message=change")
        return self.head()

    def head(self) -> str:
        """The commit that is checked out."""
        return self.call("git", "rev-parse", "HEAD").strip()

    def run(self, job: Job) -> str:
        """Runs a job's script as a runner's shell does; its trace."""
        return self.call("bash", "-c", in_one_shell(job.script), **job.variables)

    def job(self, name: str, ref: Ref, **predefined: str) -> Job:
        """A job with what GitLab tells it."""
        return self.project.job(
            name,
            ref,
            CI_PROJECT_DIR=str(self.path),
            CI_PROJECT_ID=str(PROJECT),
            CI_API_V4_URL=self.variables["GITLAB_BASE_URL"].rstrip("/"),
            REVIEW_TOKEN=self.variables["SANDBOX_GITLAB_ADMINISTRATOR_TOKEN"],
            CI_COMMIT_SHA=self.head(),
            **predefined,
        )

    def gitlab(self, method: str, path: str, **data: Any) -> Any:
        """An answer of the sandbox's GitLab."""
        token = {"PRIVATE-TOKEN": self.variables["SANDBOX_GITLAB_ADMINISTRATOR_TOKEN"]}
        url = f"{self.variables['GITLAB_BASE_URL'].rstrip('/')}/{path}"
        answer = requests.request(method, url, headers=token, json=data or None, timeout=30)
        answer.raise_for_status()
        return answer.json()


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    # A short path: a Unix socket's has room for about a hundred characters.
    with TemporaryDirectory(prefix="glr-") as folder:
        made = Checkout(Path(folder).resolve())
        try:
            made.open()
            yield made
        finally:
            if (made.path / ".venv").exists():
                made.call(".venv/bin/python", "-m", "sandbox", "down")


def test_a_change_is_previewed_applied_and_watched(checkout: Checkout) -> None:
    opened = requests.post(
        f"{checkout.variables['SANDBOX_CONTROL_URL']}/merge_requests", json={"project": PROJECT}, timeout=30
    ).json()["iid"]
    base = checkout.head()

    def comments() -> list[str]:
        checkout.run(
            checkout.job(
                "preview",
                Ref("change", merge_request=True),
                CI_MERGE_REQUEST_IID=str(opened),
                CI_MERGE_REQUEST_DIFF_BASE_SHA=base,
            )
        )
        found = checkout.gitlab("GET", f"projects/{PROJECT}/merge_requests/{opened}/notes")
        return [note["body"] for note in found]

    # A push and another one: one comment, on that team's stack alone.
    first = checkout.commit("[docker]", "[docker, large]")
    (body,) = comments()
    assert first[:12] in body
    assert f"| `{STACK}` | 21 |" in body
    assert "payments-prod" not in body
    second = checkout.commit("large]", "larger]")
    (body,) = comments()
    assert second[:12] in body
    assert "larger" in body

    # It is merged: only that stack is updated.
    stacks = checkout.job("stacks", Ref(), CI_COMMIT_BEFORE_SHA=base)
    assert f"dev: up {STACK}\n" in checkout.run(stacks)
    child = yaml.safe_load((checkout.path / "up.gitlab-ci.yml").read_text())
    assert [name for name in child if name.startswith("up ")] == [f"up {STACK}"]
    update = replace(stacks, script=[*stacks.script[:-1], *child[f"up {STACK}"]["script"]])
    assert "Job succeeded" in checkout.run(update)

    # At night: nothing, then what somebody did, then nothing again.
    def issues() -> list[tuple[str, bool]]:
        checkout.run(checkout.job("drift", Ref(source="schedule")))
        found = checkout.gitlab("GET", f"projects/{PROJECT}/issues")
        return [(issue["state"], "- `maximumTimeout`: `3600` → `7200`" in issue["description"]) for issue in found]

    assert issues() == []
    (runner,) = checkout.gitlab("GET", f"projects/{PROJECT}/runners")
    checkout.gitlab("PUT", f"runners/{runner['id']}", maximum_timeout=7200)
    assert issues() == [("opened", True)]
    checkout.gitlab("PUT", f"runners/{runner['id']}", maximum_timeout=3600)
    assert issues() == [("closed", False)]
