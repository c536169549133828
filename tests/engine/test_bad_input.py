"""Whatever is wrong with a stack is said in one line, before anything is created.

One of each kind: the lines themselves are in tests/unit/test_settings.py, and in tests/sandbox/test_lookups.py and
test_quotas.py.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = pytest.mark.docker
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def fresh(fresh: Project, sandbox: Sandbox) -> Iterator[Project]:
    yield fresh
    assert sandbox.inventory() == NOTHING


def one_line(project: Project) -> str:
    """The only error of an update without a preview before it."""
    failed = project.try_up()
    assert failed.status != 0
    assert "Traceback" not in failed.output
    (error,) = set(failed.errors)
    return error


def on_host(**values: Any) -> Change:
    return lambda config: config["host"].update(values)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (on_host(flavour="m1.small"), "gitlab-runners:host.flavour: unknown key; did you mean flavor?"),
        (on_host(flavor="m1.smal"), "flavor m1.smal: does not exist in this cloud; did you mean m1.small"),
        (
            on_host(count=11),
            "OpenStack quota: no room for sandbox-1, sandbox-2, sandbox-3 and 8 more (instances: 11 needed",
        ),
        (lambda config: config["runners"]["app"].update(project=999), "GitLab: there is no project 999"),
    ],
)
def test_a_wrong_stack_file(fresh: Project, change: Change, line: str) -> None:
    fresh.configure(change)
    assert line in one_line(fresh)


def test_the_preview_says_it_too(fresh: Project) -> None:
    fresh.configure(on_host(flavor="m1.smal"))
    assert "flavor m1.smal: does not exist in this cloud; did you mean m1.small" in fresh.failing_preview().output


def test_a_docker_engine_that_does_not_answer(fresh: Project) -> None:
    fresh.configure(
        lambda config: config.update(host={"kind": "docker", "url": "unix:///nowhere/docker.sock", "readyTimeout": 5})
    )
    assert "Docker at unix:///nowhere/docker.sock did not answer within 5 s" in one_line(fresh)


def test_no_token(fresh: Project) -> None:
    fresh.environment.pop("GITLAB_TOKEN")
    assert "GitLab: no token; set it with `pulumi config set --secret gitlab:token`" in one_line(fresh)


def test_no_cloud(fresh: Project) -> None:
    fresh.configure(lambda config: config.pop("openstack:cloud"))
    for name in ("OS_CLOUD", "OS_CLIENT_CONFIG_FILE"):
        fresh.environment.pop(name)
    assert "OpenStack: no usable credentials" in one_line(fresh)
