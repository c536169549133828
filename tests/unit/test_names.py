"""Only names by the rule are stacks: no other ever becomes a part of a command, a job or a path."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from review import drift
from review.__main__ import main as review
from review.stacks import Stacks, stacks_at
from scripts import pipeline
from scripts.console import Failure
from scripts.pipeline import child_pipeline, chosen
from scripts.stack import require_name
from settings import SettingsError, layers
from settings.layers import misnamed, owner_of, stacks
from tests.names import HOSTILE

ROOT = Path(__file__).parents[2]
INPUTS = {"image": "python:3", "runner-tag": "pulumi"}
RULE = "use lower-case letters, digits and hyphens"
TARGETS = ("up", "preview", "preview-comment", "refresh", "down", "config", "new-stack", "setup", "bench", "help")
# What `make` takes, by the way in which it is given.
VARIABLES = ("STACK", "PYTHON", "OFFICIAL", "PLUGINS", "YES", "POLICY", "TEAM", "ENV", "PROJECT", "SECRETS_PROVIDER")
MORE_VARIABLES = ("DRY_RUN", "SMALL", "VENV", "ON_ALL_CORES", "ON_STACK", "POLICIES", "TEXTS", "FLAGS")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A Git repository with a stack, without the program."""
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "Pulumi.app-dev.yaml").write_text("config: {}")
    return tmp_path


def commit(folder: Path) -> str:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message=all")
    return git("rev-parse", "HEAD").strip()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_with_another_name_is_no_stack_and_is_told_in_one_line(checkout: Path, name: str) -> None:
    folder = checkout / "stacks"
    (folder / f"Pulumi.{name}.yaml").write_text("config: {}")
    assert stacks(folder) == ["app-dev"]
    (line,) = misnamed(folder)
    assert RULE in line
    assert line.isprintable()
    with pytest.raises(SettingsError, match=RULE):
        Stacks(checkout).require_names()
    with pytest.raises(Failure, match=RULE):
        chosen(checkout, None, sandbox=True)
    # One that is in the history alone is no reason to stop.
    with stacks_at(checkout, commit(checkout)) as before:
        assert before.names() == ["app-dev"]


def test_a_name_that_is_no_text_is_told_too(checkout: Path) -> None:
    (checkout / "stacks" / os.fsdecode(b"Pulumi.\xff.yaml")).write_text("config: {}")
    (line,) = misnamed(checkout / "stacks")
    assert line.isprintable()
    with stacks_at(checkout, commit(checkout)) as before:
        assert before.names() == ["app-dev"]


@pytest.mark.parametrize("kind", ["team", "environment"])
def test_teams_and_environments_have_such_names_too(checkout: Path, kind: str) -> None:
    folder = checkout / "stacks"
    for file in ("teams/a.yaml", "environments/-b.yaml", "teams/a-.yaml", "environments/b.yaml"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("config: {}")
    assert any(line.startswith(f"stacks: {kind} ") for line in misnamed(folder))
    assert owner_of("a--b", folder) is None
    owner = owner_of("a-b", folder)
    assert owner is not None
    assert (owner.team, owner.environment) == ("a", "b")


@pytest.mark.parametrize("name", HOSTILE)
def test_no_such_name_becomes_a_job(name: str) -> None:
    for stacks_, environments, approved in (
        ({name: "dev"}, ["dev"], []),
        ({"app-dev": name}, ["dev", name], []),
        ({"app-dev": "dev"}, ["dev"], [name]),
    ):
        with pytest.raises(Failure, match=RULE):
            child_pipeline(stacks_, environments, approved, INPUTS)


@pytest.mark.parametrize("name", [*HOSTILE, "../app-dev", "/app-dev", "a/b/c/app-dev", "$(x)/app-dev", "app-dev/"])
def test_no_such_name_is_taken_by_a_command(name: str, tmp_path: Path) -> None:
    with pytest.raises(Failure):
        require_name(name)
    with pytest.raises(Failure):
        review([f"--stack={name}", "--no-post", f"--output={tmp_path / 'x'}"])
    with pytest.raises(Failure):
        drift.main([f"--stack={name}", "--no-post", f"--output={tmp_path / 'x'}"])


@pytest.mark.parametrize("name", ["app-dev", "acme/app-dev", "acme/gitlab-runners/app-dev", "Acme_1/x.y/a"])
def test_a_stack_of_an_organization_is_taken(name: str) -> None:
    require_name(name)


def test_review_drift_and_pipeline_stop_for_a_file_that_is_no_stack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layers, "misnamed", lambda *_: [f"stacks: stack A: {RULE}"])
    for command in (
        lambda: review(["--stack=sandbox", "--no-post", f"--output={tmp_path / 'x'}"]),
        lambda: drift.main(["--no-post", f"--output={tmp_path / 'x'}"]),
        lambda: pipeline.main(["github", "--environment=dev"]),
    ):
        with pytest.raises(Failure, match=RULE):
            command()


@pytest.fixture
def makefile(tmp_path: Path) -> Path:
    """The Makefile in a folder whose programs only note their arguments."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for program in ("python", "ruff", "mypy"):
        (programs / program).write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word" >>noted; done\n')
        (programs / program).chmod(0o755)
    return tmp_path


def made(folder: Path, *arguments: str, **environment: str) -> list[str]:
    """The arguments that programs were started with; nothing else may have come of it."""
    there = {"Makefile", ".venv"}
    python = folder / ".venv" / "bin" / "python"
    settings = {**os.environ, "PYTHON": str(python), **environment}
    subprocess.run(["make", *arguments], cwd=folder, env=settings, capture_output=True, text=True, check=False)
    noted = folder / "noted"
    words = noted.read_text().split("\0") if noted.exists() else []
    noted.unlink(missing_ok=True)
    assert {file.name for file in folder.iterdir()} == there
    return words


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_that_is_given_to_make_runs(makefile: Path, target: str) -> None:
    name = """$(shell touch made)$(touch made)`touch made`";touch made;"';touch made;'"""
    given = {variable: name for variable in (*VARIABLES, *MORE_VARIABLES) if variable != "PYTHON"}
    for options in ([], ["--dry-run"]):
        made(makefile, *options, target, *(f"{variable}={value}" for variable, value in given.items()))
        made(makefile, *options, target, **given)
        made(makefile, *options, target, f"PYTHON={name}")


@pytest.mark.parametrize("name", [*HOSTILE, "$$HOME", "%", "a\\"])
def test_what_is_given_to_make_arrives_as_it_is(makefile: Path, name: str) -> None:
    assert f"--stack={name}" in made(makefile, "up", f"STACK={name}")
    assert f"--stack={name}" in made(makefile, "preview", STACK=name)
    assert name in made(makefile, "config", f"STACK={name}")
    words = made(makefile, "new-stack", f"TEAM={name}", f"ENV={name}", f"PROJECT={name}", f"SECRETS_PROVIDER={name}")
    for option in ("team", "environment", "project", "secrets-provider"):
        assert f"--{option}={name}" in words


def test_flags_of_make_are_still_flags(makefile: Path) -> None:
    assert made(makefile, "up", "STACK=a", "YES=1", "POLICY=1")[-5:] == ["up", "--stack=a", "--yes", "--policies", ""]
    assert "--stack=sandbox" in made(makefile, "up")
    assert made(makefile, "setup", "OFFICIAL=1", "PLUGINS=built") == [
        *("-m", "scripts.bootstrap", "--official", "--plugins=built", "")
    ]


def test_no_workflow_of_github_pastes_an_expression_into_a_command() -> None:
    files = [*(ROOT / ".github").rglob("*.yml")]
    assert files
    for file in files:
        document = yaml.safe_load(file.read_text())
        jobs = [*document.get("jobs", {}).values(), document.get("runs", {})]
        for step in (step for job in jobs for step in job.get("steps", [])):
            assert "${{" not in step.get("run", ""), file


def test_every_input_that_gitlab_pastes_into_a_command_has_a_pattern() -> None:
    spec, content = yaml.safe_load_all((ROOT / "ci" / "pulumi.gitlab-ci.yml").read_text())
    scripts = str([job.get("script") for job in content.values() if isinstance(job, dict)])
    inputs = spec["spec"]["inputs"]
    assert all(f"inputs.{name} ]]" in scripts for name in inputs)
    for rule in (rule for rule in inputs.values() if "options" not in rule):
        assert re.fullmatch(rule["regex"], rule.get("default", "pulumi"))
        for value in ('a"; touch made; "', "$(touch made)", "`touch made`", "a\nb", "a\\"):
            assert not re.fullmatch(rule["regex"], value)
