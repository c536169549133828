"""GitLab's pipelines of a change to one team's file, which gitlab-ci-local runs against the embedded sandbox."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import requests
import yaml

from sandbox.packages import PackageError, cache_directory, required_release, unpacked
from scripts.stack import FOREIGN_VARIABLES
from tests.ci.pipeline import ROOT, ProjectFolder, Ref, gitlab_ci_local

pytestmark = [pytest.mark.acceptance, pytest.mark.docker]
PROJECT = 100
STACK = "payments-dev"
ARTIFACTS = ("preview.md", "up.gitlab-ci.yml", "drift.md")
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
        ProjectFolder.of(folder)
        # The jobs' cache is in the project's folder: what this machine has brought already is there from the start.
        (folder / ".cache").mkdir()
        cache_directory().mkdir(parents=True, exist_ok=True)
        (folder / ".cache" / "gitlab-runners").symlink_to(cache_directory())
        self.environment = {name: value for name, value in os.environ.items() if not FOREIGN_VARIABLES.match(name)}
        self.environment |= {
            "XDG_CACHE_HOME": str(folder / ".cache"),
            "PULUMI_HOME": str(folder / ".cache" / "pulumi-home"),
            **rsync(),
        }

    def open(self) -> None:
        """Starts the sandbox."""
        self.call("make", "sandbox-up")
        words = shlex.split((self.path / ".sandbox" / "env").read_text(), comments=True)
        self.variables = dict(word.split("=", 1) for word in words if word != "export")
        cloud = yaml.safe_load(Path(self.variables["OS_CLIENT_CONFIG_FILE"]).read_text())["clouds"]["sandbox"]
        # GitLab's tokens by what they begin with: that of a runner is made only later.
        self.secrets = re.compile(f"gl(pat|rt)-|{re.escape(cloud['auth']['password'])}")

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

    def pipeline(self, ref: Ref, *jobs: str, file: str = ".gitlab-ci.yml", **predefined: str) -> str:
        """Runs a pipeline, or some of its jobs; their traces."""
        variables = {
            "CI_PROJECT_DIR": str(self.path),
            "CI_PROJECT_ID": str(PROJECT),
            "CI_API_V4_URL": self.variables["GITLAB_BASE_URL"].rstrip("/"),
            "REVIEW_TOKEN": self.variables["SANDBOX_GITLAB_ADMINISTRATOR_TOKEN"],
            **ref.variables,
            **predefined,
        }
        # Images cannot be pulled everywhere: this machine has what they have.
        command = [str(gitlab_ci_local()), *jobs, f"--file={file}", "--force-shell-executor"]
        trace = self.call(*command, *(f"--variable={name}={value}" for name, value in variables.items()))
        told = trace + "".join(file.read_text() for file in map(self.path.joinpath, ARTIFACTS) if file.exists())
        assert not self.secrets.search(told)
        return trace

    def gitlab(self, method: str, path: str, **data: Any) -> Any:
        """An answer of the sandbox's GitLab."""
        token = {"PRIVATE-TOKEN": self.variables["SANDBOX_GITLAB_ADMINISTRATOR_TOKEN"]}
        url = f"{self.variables['GITLAB_BASE_URL'].rstrip('/')}/{path}"
        answer = requests.request(method, url, headers=token, json=data or None, timeout=30)
        answer.raise_for_status()
        return answer.json()


def rsync() -> dict[str, str]:
    """Variables that put rsync, with which gitlab-ci-local copies files, on the PATH; skips where it cannot be had."""
    if shutil.which("rsync"):
        return {}
    try:
        release = required_release()
        root = unpacked("rsync", release, [f"{name}/{release}" for name in ("rsync", "libpopt0")], "rsync", print)
    except PackageError as error:
        pytest.skip(str(error))
    (libraries,) = {file.parent for file in root.glob("usr/lib/*/libpopt.so.0")}
    return {"PATH": f"{root / 'usr/bin'}{os.pathsep}{os.environ['PATH']}", "LD_LIBRARY_PATH": str(libraries)}


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
        merge_request = Ref("change", merge_request=True)
        checkout.pipeline(merge_request, CI_MERGE_REQUEST_IID=str(opened), CI_MERGE_REQUEST_DIFF_BASE_SHA=base)
        found = checkout.gitlab("GET", f"projects/{PROJECT}/merge_requests/{opened}/notes")
        return [note["body"] for note in found]

    # A push and another one: one comment, on that team's stack alone.
    first = checkout.commit("[docker]", "[docker, large]")
    (body,) = comments()
    # Ids, keys and the image are this machine's.
    text = re.sub("(`(?:imageId|keyPair|publicKey|name)`): .*", r"\1: …", body.replace(first[:12], "COMMIT"))
    assert text == (Path(__file__).parent / "comment.md").read_text()
    second = checkout.commit("large]", "larger]")
    (body,) = comments()
    assert second[:12] in body
    assert "larger" in body

    # It is merged: only that stack is updated.
    assert f"dev: up {STACK}\n" in checkout.pipeline(Ref(), "stacks", CI_COMMIT_BEFORE_SHA=base)
    # gitlab-ci-local would give the job `up`'s child pipeline none of these variables.
    trace = checkout.pipeline(Ref(source="parent_pipeline"), file="up.gitlab-ci.yml")
    assert f"PASS  up {STACK}\n" in trace
    assert trace.count(" PASS ") == 1
    assert "Job succeeded" in trace

    # At night: nothing, then what somebody did, then nothing again.
    def issues() -> list[tuple[str, bool]]:
        checkout.pipeline(Ref(source="schedule"))
        found = checkout.gitlab("GET", f"projects/{PROJECT}/issues")
        return [(issue["state"], "- `maximumTimeout`: `3600` → `7200`" in issue["description"]) for issue in found]

    assert issues() == []
    (runner,) = checkout.gitlab("GET", f"projects/{PROJECT}/runners")
    checkout.gitlab("PUT", f"runners/{runner['id']}", maximum_timeout=7200)
    assert issues() == [("opened", True)]
    checkout.gitlab("PUT", f"runners/{runner['id']}", maximum_timeout=3600)
    assert issues() == [("closed", False)]
