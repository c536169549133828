"""The pipelines of stacks: GitLab's as gitlab-ci-local makes them, GitHub's as actionlint reads them."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.packages import cache_directory
from scripts.pipeline import child_pipeline
from tests.ci.pipeline import ROOT, ProjectFolder, Ref

WORKFLOWS = ROOT / ".github" / "workflows"
# The Go module of actionlint: reads expressions, contexts, inputs and actions of GitHub's workflows.
ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
INPUTS = {"image": "python:3.13.5-bookworm", "runner-tag": "pulumi"}


def project_of(folder: Path, content: dict[str, Any]) -> ProjectFolder:
    """This project's files for CI, and a .gitlab-ci.yml."""
    (folder / "ci").mkdir(parents=True)
    for file in (*ROOT.glob("ci/pulumi*.gitlab-ci.yml"), *ROOT.glob("requirements*.txt")):
        shutil.copy(file, folder / file.relative_to(ROOT))
    (folder / ".gitlab-ci.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    return ProjectFolder.of(folder)


def including(**inputs: str) -> dict[str, Any]:
    return {"include": [{"local": "ci/pulumi.gitlab-ci.yml", "inputs": {"runner-tag": "pulumi", **inputs}}]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ProjectFolder:
    return project_of(tmp_path_factory.mktemp("pulumi") / "project", including())


@pytest.mark.parametrize(
    ("ref", "jobs"),
    [
        (Ref("feature", merge_request=True), ["preview"]),
        (Ref("feature", merge_request=True, fork=True), []),
        (Ref(), ["stacks", "up"]),
        (Ref(source="web"), ["stacks", "up"]),
        (Ref(source="schedule"), ["drift"]),
        (Ref(source="parent_pipeline"), []),
        (Ref("feature"), []),
        (Ref("feature", source="web"), []),
        (Ref(tag="v1"), []),
    ],
    ids=[
        "merge request",
        "of a fork",
        "default branch",
        "started",
        "schedule",
        "child",
        "branch",
        "branch started",
        "tag",
    ],
)
def test_each_pipeline_has_its_jobs(project: ProjectFolder, ref: Ref, jobs: list[str]) -> None:
    assert project.jobs_for(ref) == jobs


def test_every_job_runs_where_the_inputs_say(tmp_path: Path) -> None:
    pipeline = project_of(tmp_path / "project", including(image="python:99", sandbox="--sandbox")).expanded()
    for name, command in {
        "preview": "-m review --policies",
        "stacks": "-m scripts.pipeline",
        "drift": "-m review.drift",
    }.items():
        job = pipeline[name]
        assert (job["image"]["name"], job["tags"]) == ("python:99", ["pulumi"])
        assert f"{command} --sandbox" in job["script"][0]
        assert job["before_script"][-1] == "make setup"
        # What a change touches is told by commits.
        assert job["variables"]["GIT_DEPTH"] == "0"
    assert '--environments "dev prod" --approve "prod other" --image "python:99" --runner-tag "pulumi"' in " ".join(
        pipeline["stacks"]["script"][0].split()
    )


def test_the_cache_lies_in_the_projects_folder_and_holds_no_credentials(project: ProjectFolder) -> None:
    job = project.expanded()["preview"]
    home = job["variables"]["PULUMI_HOME"].removeprefix("$CI_PROJECT_DIR/")
    shared = job["variables"]["XDG_CACHE_HOME"].removeprefix("$CI_PROJECT_DIR/")
    (cache,) = job["cache"]
    assert set(cache["paths"]) == {".venv/", f"{shared}/gitlab-runners/pulumi/", f"{home}/plugins/"}
    # Pulumi's credentials.json is right in its home.
    assert not any(f"{home}/".startswith(path) for path in cache["paths"])


def test_the_child_pipeline_is_one_that_gitlab_runs(tmp_path: Path) -> None:
    stacks = {"web-prod": "prod", "app-dev": "dev", "web-dev": "dev", "old": "other"}
    made = child_pipeline(stacks, ["dev", "prod"], ["prod", "other"], INPUTS)
    project = project_of(tmp_path / "project", made)
    assert [(job["stage"], job["name"], job["when"]) for job in project.table(Ref(source="parent_pipeline"))] == [
        ("dev", "up app-dev", "on_success"),
        ("dev", "up web-dev", "on_success"),
        ("prod", "up web-prod", "manual"),
        ("other", "up old", "manual"),
    ]
    jobs = [job for name, job in project.expanded().items() if name.startswith("up ")]
    assert len({job["resource_group"] for job in jobs}) == len(stacks)
    assert all(job["before_script"][-1] == "make setup" for job in jobs)


def test_nothing_to_update_is_a_pipeline_too(tmp_path: Path) -> None:
    project = project_of(tmp_path / "project", child_pipeline({}, ["dev"], [], INPUTS))
    assert project.jobs_for(Ref(source="parent_pipeline")) == ["nothing to update"]


@pytest.fixture(scope="session")
def actionlint() -> Path:
    """The program, built once for this machine; skips where it cannot be."""
    if shutil.which("go") is None:
        pytest.skip("needs Go, for actionlint")
    folder = cache_directory() / "actionlint" / ACTIONLINT.rpartition("@")[2]
    if not (folder / "actionlint").exists():
        done = subprocess.run(
            ["go", "install", ACTIONLINT],
            env={**os.environ, "GOBIN": str(folder), "GOFLAGS": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"Go cannot build actionlint: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "actionlint"


def test_githubs_workflows_are_sound(actionlint: Path) -> None:
    # With the workflow in the documentation, which calls the others.
    text = (ROOT / "docs" / "how-to" / "run-in-ci.md").read_text()
    (caller,) = (part for part in text.split("```yaml\n") if "uses: ./.github/workflows/up.yml" in part)
    sources: list[str | Path] = [*WORKFLOWS.glob("*.yml")]
    done = subprocess.run([actionlint, *sources], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        [actionlint, "-stdin-filename", WORKFLOWS / "stacks.yml", "-"],
        cwd=ROOT,
        input=caller.partition("```")[0],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_githubs_workflows_run_only_when_another_calls_them() -> None:
    workflows = [yaml.safe_load(file.read_text()) for file in WORKFLOWS.glob("*.yml")]
    # YAML 1.1 reads `on` as true.
    assert [list(workflow[True]) for workflow in workflows] == [["workflow_call"]] * 3


def test_a_stack_is_updated_by_one_run_at_a_time_on_github() -> None:
    job = yaml.safe_load((WORKFLOWS / "up.yml").read_text())["jobs"]["up"]
    assert job["concurrency"] == {"group": "stack-${{ matrix.stack }}", "cancel-in-progress": False}
    assert job["environment"] == "${{ inputs.environment }}"
