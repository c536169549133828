"""The teams' stacks that are shipped as examples: all can be previewed, and two of them live in one cloud."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.stack import sandbox_stack
from tests.engine.harness import NOTHING, OWN_LABEL, Project, Sandbox

pytestmark = pytest.mark.docker
TEAMS = ("payments", "storefront")


@pytest.fixture
def team_stack(sandbox: Sandbox, tmp_path: Path) -> Iterator[Callable[[str], Project]]:
    """A project for a shipped stack by its name."""
    yield lambda name: Project(sandbox, tmp_path / name, like=sandbox_stack(sandbox.state, name))
    if sandbox.inventory() != NOTHING:
        sandbox.clear()


def at_once(*calls: Callable[[], object]) -> list[object]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda call: call(), calls))


@pytest.mark.acceptance
def test_the_shipped_stacks_of_prod_have_a_preview(team_stack: Callable[[str], Project]) -> None:
    projects = [team_stack(f"{team}-prod") for team in TEAMS]
    plans = at_once(*(project.preview for project in projects))
    for project, plan in zip(projects, plans, strict=True):
        assert isinstance(plan, dict)
        assert plan[f"Instance {project.stack}-1"] == "create"
        assert set(plan.values()) == {"create"}


@pytest.mark.acceptance
def test_those_of_dev_share_a_cloud_an_engine_and_nothing_else(
    team_stack: Callable[[str], Project], sandbox: Sandbox
) -> None:
    payments, storefront = (team_stack(f"{team}-dev") for team in TEAMS)
    for project in (payments, storefront):
        # Only the environment's layer says which cloud it is.
        project.environment.pop("OS_CLOUD")
        assert "openstack:cloud" not in project.config
    at_once(payments.up, storefront.up)
    assert at_once(payments.preview, storefront.preview) == [{}, {}]
    cloud = sandbox.openstack
    for team in TEAMS:
        named = {"team": team, "environment": "dev"}
        server = cloud.compute.find_server(f"{team}-dev-1")
        assert server is not None
        assert named.items() <= cloud.compute.get_server(server).metadata.items()
        tags = {f"{key}={value}" for key, value in named.items()}
        (port,) = cloud.network.ports(device_id=server.id)
        (address,) = cloud.network.ips(port_id=port.id)
        group = cloud.network.find_security_group(f"{team}-dev")
        assert group is not None
        for thing in (port, address, group):
            assert tags <= set(thing.tags)
        for container in sandbox.managers():
            if container.labels[OWN_LABEL] == f"{team}-dev":
                assert container.labels["gitlab-runners.team"] == team
                assert container.labels["gitlab-runners.environment"] == "dev"
    assert {manager.labels[OWN_LABEL] for manager in sandbox.managers()} == {"payments-dev", "storefront-dev"}
    payments.destroy()
    assert [server.name for server in cloud.compute.servers()] == ["storefront-dev-1"]
    assert [manager.labels[OWN_LABEL] for manager in sandbox.managers()] == ["storefront-dev"]
    storefront.destroy()
    assert sandbox.inventory() == NOTHING


def test_a_runner_of_another_teams_project_is_refused(team_stack: Callable[[str], Project]) -> None:
    project = team_stack("payments-dev")
    project.configure(lambda config: config["runners"]["app"].update(project=101))
    (error,) = set(project.failing_preview().errors)
    assert "gitlab-runners:runners.app.project: 101: is not a project of this team, which has 100" in error
    assert "stacks/teams/payments.yaml, line 4 says what the team payments has" in error
