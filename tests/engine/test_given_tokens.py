"""Runners with tokens of their own, which the stack did not get from GitLab itself."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.harness import Project, Sandbox

pytestmark = pytest.mark.docker


@pytest.fixture
def token(sandbox: Sandbox) -> Iterator[str]:
    """That of a runner that somebody made, and that expires."""
    administration = sandbox.gitlab.settings.get()
    administration.project_runner_token_expiration_interval = 10 * 24 * 60 * 60
    administration.save()
    new = {"runner_type": "project_type", "project_id": 100, "tag_list": "docker"}
    made: Any = sandbox.gitlab.http_post("/user/runners", post_data=new)
    yield str(made["token"])
    administration.project_runner_token_expiration_interval = None
    administration.save()


@pytest.fixture
def project(fresh: Project, token: str) -> Project:
    fresh.environment.pop("GITLAB_TOKEN")
    fresh.configure(lambda config: config.update(runners={"app": {"token": token}}))
    return fresh


def said(project: Project) -> tuple[int, str]:
    """How a preview ends, and what it prints."""
    result = project.run("preview", f"--stack={project.stack}", config=True)
    return result.status, result.output


def test_a_preview_warns_before_one_expires(project: Project, token: str) -> None:
    status, output = said(project)
    assert status == 0
    assert "gitlab-runners:runners.app: its token expires on " in output
    assert token not in output
    project.configure(lambda config: config["runners"]["app"].update(expiryWarningDays=9))
    assert "its token expires" not in said(project)[1]


def test_one_that_gitlab_refuses_ends_it(project: Project) -> None:
    project.configure(lambda config: config["runners"]["app"].update(token="glrt-t3_nobodys"))
    result = project.failing_preview()
    (error,) = set(result.errors)
    assert error.startswith("error: runners.app.token: GitLab at ")
    assert error.endswith(": 403 Forbidden: it has expired, or there is no such runner")
    assert "nobodys" not in result.output


@pytest.mark.acceptance
def test_a_gitlab_that_only_the_machines_reach_is_a_warning(project: Project, token: str) -> None:
    project.environment.pop("GITLAB_BASE_URL")
    project.configure(lambda config: config.update(gitlabUrl="http://127.0.0.1:9"))
    status, output = said(project)
    assert status == 0
    assert "cannot tell when the tokens of app expire: GitLab at http://127.0.0.1:9 cannot be reached" in output
    assert token not in output
