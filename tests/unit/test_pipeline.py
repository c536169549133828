"""Which stacks a pipeline updates, in which order, and what waits for a person."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import pipeline
from scripts.console import Failure
from scripts.pipeline import child_pipeline, chosen, environment_of, main

INPUTS = {"image": "python:3", "runner-tag": "pulumi"}
STACKS = {"app-dev": "dev", "app-prod": "prod", "web-dev": "dev", "old": "other"}


def jobs_of(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: job for name, job in made.items() if name not in ("include", "stages")}


def test_each_stack_has_a_job_in_the_stage_of_its_environment() -> None:
    made = child_pipeline(STACKS, ["dev", "prod"], ["prod", "other"], INPUTS)
    assert made["stages"] == ["dev", "prod", "other"]
    assert made["include"] == [{"local": "ci/pulumi-job.gitlab-ci.yml", "inputs": INPUTS}]
    jobs = jobs_of(made)
    assert {name: job["stage"] for name, job in jobs.items()} == {
        f"up {stack}": environment for stack, environment in STACKS.items()
    }
    assert jobs["up app-dev"] == {
        "extends": ".pulumi",
        "stage": "dev",
        "environment": {"name": "dev/app-dev"},
        "resource_group": "stack/app-dev",
        "script": ["make up STACK=app-dev YES=1 POLICY=1"],
    }


def test_what_is_to_be_approved_waits_and_lets_what_follows_wait() -> None:
    jobs = jobs_of(child_pipeline(STACKS, ["dev", "prod"], ["prod", "other"], INPUTS))
    by_hand = {name for name, job in jobs.items() if job.get("when") == "manual"}
    assert by_hand == {"up app-prod", "up old"}
    # Else GitLab goes on without them.
    assert all(jobs[name]["allow_failure"] is False for name in by_hand)


def test_a_push_that_touches_no_stack_has_a_job_all_the_same() -> None:
    (job,) = jobs_of(child_pipeline({}, ["dev"], [], INPUTS)).values()
    assert (job["stage"], job["tags"]) == ("dev", ["pulumi"])


def test_an_environment_without_a_turn_is_refused() -> None:
    with pytest.raises(Failure, match=r"app-prod: its environment prod is not among .* `environments`"):
        child_pipeline(STACKS, ["dev"], [], INPUTS)
    with pytest.raises(Failure, match="input `approve`: production is not among dev, prod, other"):
        child_pipeline(STACKS, ["dev", "prod"], ["production"], INPUTS)


def test_environments_are_those_of_the_layers() -> None:
    assert [environment_of(stack) for stack in ("payments-dev", "storefront-prod", "sandbox")] == [
        "dev",
        "prod",
        "other",
    ]


def test_a_push_takes_what_it_touches_and_anything_else_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "is_tried_out", lambda stack: stack == "try")

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(path: str, content: str) -> str:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
        git("add", "--all")
        git("commit", "--quiet", "--message=change")
        return git("rev-parse", "HEAD")

    def pushed(base: str | None, *, sandbox: bool = False) -> list[str]:
        return chosen(tmp_path, base, sandbox=sandbox)

    git("init", "--quiet")
    for stack in ("app-dev", "gone-dev", "try"):
        first = commit(f"stacks/Pulumi.{stack}.yaml", "config: {}")
    second = commit("stacks/Pulumi.app-dev.yaml", "config: {gitlab-runners:protect: true}")
    assert pushed(first) == ["app-dev"]
    assert pushed(second) == []
    for everything in (None, "0" * 40):
        assert pushed(everything) == ["app-dev", "gone-dev"]
        assert pushed(everything, sandbox=True) == ["app-dev", "gone-dev", "try"]
    git("rm", "--quiet", "stacks/Pulumi.gone-dev.yaml")
    commit("docs.md", "harmless")
    assert pushed(second) == []
    assert "gone-dev: its file is removed" in capsys.readouterr().err
    last = commit("__main__.py", "the program")
    assert pushed(second) == ["app-dev"]
    # A forced push takes back what the commit before it has brought.
    git("reset", "--quiet", "--hard", second)
    assert pushed(last) == ["app-dev", "gone-dev"]


def test_the_command_writes_what_gitlab_runs_and_prints_what_github_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def stacks(_: Path, base: str | None, *, sandbox: bool) -> list[str]:
        asked.append((base, sandbox))
        return ["payments-dev", "payments-prod", "sandbox"]

    monkeypatch.setattr(pipeline, "chosen", stacks)
    monkeypatch.setenv("CI_PIPELINE_SOURCE", "push")
    monkeypatch.setenv("CI_COMMIT_BEFORE_SHA", "abc")
    file = tmp_path / "up.yml"
    options = ["--environments=dev prod", "--approve=prod other", "--image=python:3", "--runner-tag=pulumi"]
    main(["--sandbox", "gitlab", *options, f"--output={file}"])
    assert list(jobs_of(yaml.safe_load(file.read_text()))) == ["up payments-dev", "up payments-prod", "up sandbox"]
    assert capsys.readouterr().out.splitlines() == [
        "dev: up payments-dev",
        "prod: up payments-prod, when a person starts it",
        "other: up sandbox, when a person starts it",
    ]
    monkeypatch.setenv("CI_PIPELINE_SOURCE", "web")
    main(["gitlab", *options, f"--output={file}"])
    capsys.readouterr()
    monkeypatch.delenv("CI_PIPELINE_SOURCE")
    monkeypatch.setenv("GITHUB_EVENT_NAME", "push")
    monkeypatch.setenv("PUSHED_AFTER", "def")
    main(["github", "--environment=prod"])
    assert json.loads(capsys.readouterr().out) == ["payments-prod"]
    assert asked == [("abc", True), (None, False), ("def", False)]
