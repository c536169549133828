"""What the real engine prints is read as the preview comment needs it."""

import pytest

from review.assessment import NAMES, Jobs, StackReview
from review.comment import Report, render
from review.previews import preview
from review.stacks import Stacks
from tests.engine.harness import ROOT, Project

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]
PASSWORD = "not-for-a-comment"


def test_previews_of_the_engine_are_read(project: Project) -> None:
    variable = "gitlab-runners:runners.app.environment.PASSWORD"
    stored = project.run("config", "set", "--stack=sandbox", "--secret", "--path", variable, PASSWORD, config=True)
    assert stored.status == 0
    settings = Stacks(ROOT).settings("sandbox")
    review = StackReview("sandbox", *preview(project.as_stack()), before=None, after=settings)
    assert review.failure is None
    assert list(review.counts.values()) == [27, 0, 0, 0]
    assert review.jobs == (Jobs.NOTHING, "")
    assert [warning.subject for warning in review.warnings] == ["team: dind"]
    assert {change.type for change in review.plan.changes} <= NAMES.keys()
    made = render(Report([review]), 10**6)
    assert PASSWORD not in made
    assert "- **created** registration in GitLab `sandbox-app`" in made
    project.configure(lambda config: config["host"].update(flavor="m1.smal"))
    failed = StackReview("sandbox", *preview(project.as_stack()))
    assert failed.failure is not None
    assert failed.failure.startswith("flavor m1.smal: does not exist in this cloud; did you mean m1.small")
    project.environment["PULUMI_CONFIG_PASSPHRASE"] = "wrong"
    assert StackReview("sandbox", *preview(project.as_stack())).failure == (
        "getting stack configuration: get stack secrets manager: incorrect passphrase"
    )
    project.environment["PULUMI_CONFIG_PASSPHRASE"] = "sandbox"
