"""What GitLab makes of a .gitlab-ci.yml: which jobs a pipeline has, and what a runner is given for each.

gitlab-ci-local (npm, in the version that package-lock.json pins) reads include, extends, !reference and rules.
"""

import csv
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tests.npm import installed

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "ci" / "docker-build.gitlab-ci.yml"
EXAMPLE = ROOT / "ci" / "examples" / "two-images"
_PINS = Path(__file__).parent / "gitlab-ci-local"

REGISTRY = "registry.example.com"
DEFAULT_BRANCH = "main"


@dataclass(frozen=True)
class Ref:
    """What a pipeline is for."""

    branch: str = DEFAULT_BRANCH
    tag: str = ""
    merge_request: bool = False
    fork: bool = False
    """A merge request from a fork."""
    open_merge_request: bool = False
    """A branch pipeline of a branch that has a merge request."""
    source: str = "push"
    """What started it, where that was no merge request."""

    @property
    def variables(self) -> dict[str, str]:
        """Those of GitLab's predefined variables that tell pipelines apart; one that is not set is not there."""
        variables = {"CI_PIPELINE_SOURCE": "merge_request_event" if self.merge_request else self.source}
        if self.tag:
            variables["CI_COMMIT_TAG"] = self.tag
        elif not self.merge_request:
            variables["CI_COMMIT_BRANCH"] = self.branch
        if self.merge_request:
            variables |= {"CI_MERGE_REQUEST_PROJECT_ID": "100", "CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "100"}
        if self.fork:
            variables["CI_MERGE_REQUEST_SOURCE_PROJECT_ID"] = "101"
        if self.open_merge_request:
            variables["CI_OPEN_MERGE_REQUESTS"] = "group/project!1"
        return variables


@dataclass(frozen=True)
class Job:
    """A job as a runner gets it."""

    image: str
    services: list[dict[str, str]]
    variables: dict[str, str]
    script: list[str]

    def with_variables(self, **variables: str) -> "Job":
        """The same job with other variables, as those of the project's settings would be."""
        return replace(self, variables=self.variables | variables)


@dataclass(frozen=True)
class ProjectFolder:
    """A Git repository with a .gitlab-ci.yml and the template where the example includes it from."""

    path: Path

    @classmethod
    def make(cls, path: Path, jobs: Mapping[str, Any] | None = None) -> "ProjectFolder":
        """A repository with the example's files; `jobs` takes the place of the example's .gitlab-ci.yml."""
        shutil.copytree(EXAMPLE, path)
        (path / "ci").mkdir()
        shutil.copy(TEMPLATE, path / "ci")
        if jobs is not None:
            content = {"include": [{"local": f"ci/{TEMPLATE.name}"}], "stages": ["build"], **jobs}
            (path / ".gitlab-ci.yml").write_text(yaml.safe_dump(content, sort_keys=False))
        return cls.of(path)

    @classmethod
    def of(cls, path: Path) -> "ProjectFolder":
        """A repository of all that is in a folder."""
        for command in (
            ["init", "--quiet", f"--initial-branch={DEFAULT_BRANCH}"],
            ["add", "--all"],
            ["-c", "user.name=Test", "-c", "user.email=test@example.com", "commit", "--quiet", "--message=All"],
            ["remote", "add", "origin", "git@gitlab.example.com:group/project.git"],
            ["update-ref", f"refs/remotes/origin/{DEFAULT_BRANCH}", "HEAD"],
            ["remote", "set-head", "origin", DEFAULT_BRANCH],
        ):
            subprocess.run(["git", *command], cwd=path, check=True, capture_output=True)
        return cls(path)

    def jobs_for(self, ref: Ref) -> list[str]:
        """The jobs that a pipeline has by their rules, and that nobody has to start."""
        return [job["name"] for job in self.table(ref) if job["when"] == "on_success"]

    def table(self, ref: Ref) -> list[dict[str, str]]:
        """The jobs that a pipeline has, in their order: name, stage, when."""
        unset = [f"--unset-variable={name}" for name in ("CI_COMMIT_BRANCH",) if name not in ref.variables]
        text = _gitlab(
            self.path, "--list-csv", *unset, *(f"--variable={name}={value}" for name, value in ref.variables.items())
        )
        # Before it stands what it says about variables.
        return list(csv.DictReader(text[text.index("name;") :].splitlines(), delimiter=";"))

    def expanded(self) -> dict[str, Any]:
        """The pipeline with what it includes and extends."""
        content: dict[str, Any] = yaml.safe_load(_gitlab(self.path, "--preview"))
        return content

    def job(self, name: str, ref: Ref | None = None, **predefined: str) -> Job:
        """A job with its variables expanded; `predefined` in addition to what all jobs get."""
        expanded = self.expanded()[name]
        variables = {
            "CI_DEFAULT_BRANCH": DEFAULT_BRANCH,
            "CI_COMMIT_SHORT_SHA": "0123abcd",
            "CI_REGISTRY": REGISTRY,
            "CI_REGISTRY_IMAGE": f"{REGISTRY}/group/project",
            **(ref or Ref()).variables,
            **predefined,
        }
        for key, value in expanded["variables"].items():
            variables[key] = expand(str(value), variables)
        services = [
            {key: expand(value, variables) for key, value in service.items()}
            for service in expanded.get("services", ())
        ]
        image = expand(expanded["image"]["name"], variables)
        return Job(image, services, variables, expanded.get("before_script", []) + expanded["script"])


@functools.cache
def _gitlab(project: Path, *arguments: str) -> str:
    """What gitlab-ci-local prints about a project, which must not change any more."""
    environment = os.environ | {"NO_COLOR": "1", "GCL_IGNORE_PREDEFINED_VARS": "CI_PIPELINE_SOURCE"}
    command = [str(gitlab_ci_local()), *arguments]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expand(text: str, variables: Mapping[str, str]) -> str:
    """$NAME and ${NAME} in a text, as GitLab and its runner put their values there; what is not set is empty."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: variables.get(match[1] or match[2], ""), text)


def in_one_shell(script: Sequence[str]) -> str:
    """A job's script as GitLab Runner hands it to a shell: all lines in one, which ends at the first that fails."""
    lines = "\n".join(["set -o errexit", *script]).replace("'", "'\\''")
    return f": | eval '{lines}'\n"


def gitlab_ci_local() -> Path:
    """gitlab-ci-local; skips the test where npm cannot install it."""
    return installed(_PINS) / "node_modules" / ".bin" / "gitlab-ci-local"
