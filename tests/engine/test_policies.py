"""The policy pack, asked by the real engine."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from guard_rails.rules import RULES

from review.assessment import StackReview
from review.comment import Report, render
from review.previews import preview
from scripts.stack import sandbox_stack
from tests.engine.harness import NOTHING, ROOT, Project, Sandbox

pytestmark = pytest.mark.docker
PACK = ROOT / "policy"

# Any program may be held against the pack. In a preview of this one user_data is known.
PROGRAM = """\
import pulumi_openstack as openstack

for name, data in {"good": "#cloud-config\\n", "bad": "#cloud-config\\n# glpat-%s\\n" % ("x" * 20)}.items():
    openstack.compute.Instance(name, name=name, flavor_id="1", user_data=data)
"""


@pytest.fixture
def stack(sandbox: Sandbox, tmp_path: Path) -> Iterator[Callable[[str], Project]]:
    yield lambda name: Project(sandbox, tmp_path / name, like=sandbox_stack(sandbox.state, name))
    assert sandbox.inventory() == NOTHING


def asked(configuration: Path) -> list[str]:
    return [f"--policy-pack={PACK}", f"--policy-pack-config={configuration}"]


@pytest.mark.acceptance
def test_a_stack_that_keeps_to_all_policies(stack: Callable[[str], Project], sandbox: Sandbox) -> None:
    project = stack("payments-prod")
    image = sandbox.openstack.image.find_image("debian-13")
    assert image is not None
    project.configure(lambda config: config["host"].update(image=image.id))
    plan, error = preview(project.as_stack(), ["preview", *asked(PACK / "prod.json")])
    assert error is None
    assert plan.violations == []
    # The host key, and so user_data, is not made yet, and the preview says so.
    assert "only the update can ask the policy no-secret-in-user-data" in plan.warnings


@pytest.mark.acceptance
def test_a_stack_that_breaks_them(stack: Callable[[str], Project], tmp_path: Path) -> None:
    project = stack("sandbox")
    levels = tmp_path / "levels.json"
    own = {"host-cap": {"maximum": 1}, "image-allowed": {"images": ["ours"]}, "plugin-allowed": {"plugins": ["ours"]}}
    levels.write_text(json.dumps(json.loads((PACK / "prod.json").read_text()) | own))

    def break_all(config: dict[str, Any]) -> None:
        config["host"].update(sshFrom=["80.0.0.0/8"], flavor="m1.large", count=2)
        config["runners"]["app"].update(image="debian:13-slim", locked=False)
        shared = config["runners"]["team"]
        del shared["group"]
        shared.update(instance=True)
        config["runners"]["large"] = {
            "project": 100,
            "tags": ["large"],
            "executor": "autoscaler",
            "autoscaler": {"plugin": "ghcr.io/anybody/plugin:1.0.0", "maxInstances": 500, "flavor": "m1.large"},
        }
        config["manager"].update(version="latest")

    project.configure(break_all)
    review = StackReview(project.stack, *preview(project.as_stack(), ["preview", *asked(levels)]))
    advisory = {"job-image-pinned", "boot-image-by-id"}
    # The user_data of a new machine is not known yet: see the test below.
    assert {(found.policy, found.is_mandatory) for found in review.plan.violations} == {
        (rule.name, rule.name not in advisory) for rule in RULES if rule.name != "no-secret-in-user-data"
    }
    assert review.failure is not None
    assert review.failure.startswith("policy ")
    made = render(Report([review]), 10**6)
    # What is wrong, what to do, and only what it concerns.
    assert (
        "- **refused** by policy `host-cap`: `this is machine 2 of the stack, and 1 is the most. Lower host.count` "
        "(`sandbox-2`)"
    ) in made
    assert "`port 2222 is open to 80.0.0.0/8, which is wider than /16. Name in host.sshFrom" in made
    # Workers are no resources of the stack: what they may be is seen all the same.
    for line in (
        "flavor m1.large is none of m1.small, m1.medium. Choose one of these for host.flavor, and",
        "there may be 2 hosts and 1000 workers at once, and 12 machines are the most",
        "plugin ghcr.io/anybody/plugin:1.0.0 is none of ours",
    ):
        assert line in made
    flavors = [name for found in review.plan.violations if found.policy == "flavor-allowed" for name in found.resources]
    assert any("sandbox-large" in name for name in flavors)


@pytest.mark.acceptance
def test_an_update_stops_before_a_machine_that_is_refused(stack: Callable[[str], Project], sandbox: Sandbox) -> None:
    project = stack("sandbox")
    result = project.try_up(f"--policy-pack={PACK}")
    assert result.status != 0
    assert "the machine's metadata lacks team, environment" in result.output
    made = sandbox.inventory()
    assert made["security groups"] == 1
    assert made["servers"] == 0
    project.destroy()


def test_a_secret_in_user_data_and_a_level_of_the_configuration(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "__main__.py").write_text(PROGRAM)
    runtime = {"name": "python", "options": {"virtualenv": str(ROOT / ".venv")}}
    (tmp_path / "Pulumi.yaml").write_text(json.dumps({"name": "other", "runtime": runtime}))
    configuration = tmp_path / "levels.json"
    configuration.write_text(json.dumps({"machine-tagged": "advisory"}))
    environment = {**sandbox.environment, "PULUMI_BACKEND_URL": tmp_path.as_uri(), "OS_CLOUD": "sandbox"}

    def pulumi(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["pulumi", *arguments, "--non-interactive"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert pulumi("stack", "init", "dev").returncode == 0
    result = pulumi("preview", "--stack=dev", *asked(configuration))
    assert result.returncode != 0
    assert set(re.findall(r"\[(advisory|mandatory)\] +(\S+) +\(", result.stdout)) == {
        ("mandatory", "no-secret-in-user-data"),
        ("advisory", "machine-tagged"),
    }
    assert "(openstack:compute:Instance: bad)" in result.stdout
    assert result.stdout.count("user_data holds a token of GitLab") == 1
