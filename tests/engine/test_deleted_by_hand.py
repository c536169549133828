"""Two things that somebody deleted by hand, any pair: `make refresh` and `make up` mend it, `make down` removes all."""

from collections.abc import Callable
from itertools import combinations

import pytest

from scripts.stack import forget_lost
from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = pytest.mark.docker


def server(sandbox: Sandbox) -> None:
    (found,) = sandbox.openstack.compute.servers()
    sandbox.openstack.compute.delete_server(found)
    sandbox.openstack.compute.wait_for_delete(found, interval=0.2)


def floating_ip(sandbox: Sandbox) -> None:
    (found,) = sandbox.openstack.network.ips()
    sandbox.openstack.network.delete_ip(found)


def port(sandbox: Sandbox) -> None:
    (found,) = [each for each in sandbox.openstack.network.ports() if "router" not in (each.device_owner or "")]
    sandbox.openstack.network.delete_port(found)


def key_pair(sandbox: Sandbox) -> None:
    (found,) = sandbox.openstack.compute.keypairs()
    sandbox.openstack.compute.delete_keypair(found)


def rule(sandbox: Sandbox) -> None:
    found = next(
        each for each in sandbox.openstack.network.security_group_rules(direction="ingress") if each.remote_ip_prefix
    )
    sandbox.openstack.network.delete_security_group_rule(found)


def runner(sandbox: Sandbox) -> None:
    (found,) = sandbox.gitlab.runners_all.list(get_all=True)
    sandbox.gitlab.runners.delete(found.id)


Deletion = Callable[[Sandbox], None]
THINGS: dict[str, Deletion] = {each.__name__: each for each in (server, floating_ip, port, key_pair, rule, runner)}
PAIRS = list(combinations(THINGS, 2))
SPREAD = [("server", "floating_ip"), ("floating_ip", "key_pair")]


def refresh(project: Project) -> None:
    """As `make refresh` does it."""
    excluded = [f"--exclude={urn}" for urn in forget_lost(project.as_stack())]
    done = project.run("refresh", f"--stack={project.stack}", "--yes", "--skip-preview", *excluded, config=True)
    assert done.status == 0, done.output


def assert_mended(project: Project, sandbox: Sandbox, pair: tuple[str, str]) -> None:
    project.up()
    before = sandbox.inventory()
    for thing in pair:
        THINGS[thing](sandbox)
    refresh(project)
    project.up()
    assert sandbox.inventory() == before
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
    refresh(project)
    assert project.preview() == {}


@pytest.mark.parametrize("pair", SPREAD, ids="-".join)
def test_a_refresh_and_an_update_mend_it(fresh: Project, sandbox: Sandbox, pair: tuple[str, str]) -> None:
    assert_mended(fresh, sandbox, pair)


@pytest.mark.acceptance
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair not in SPREAD], ids="-".join)
def test_any_pair_is_mended(fresh: Project, sandbox: Sandbox, pair: tuple[str, str]) -> None:
    assert_mended(fresh, sandbox, pair)


def test_without_the_refresh_an_update_says_so_before_anything_happens(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    server(sandbox)
    floating_ip(sandbox)
    assert "run `make refresh STACK=sandbox`, and then this again" in fresh.failing_preview().output


@pytest.mark.acceptance
@pytest.mark.parametrize("refreshed", [False, True], ids=["at once", "after a plain refresh"])
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if "server" in pair], ids="-".join)
def test_a_stack_whose_machine_is_gone_can_be_removed(
    fresh: Project, sandbox: Sandbox, pair: tuple[str, str], refreshed: bool
) -> None:
    fresh.up()
    for thing in pair:
        THINGS[thing](sandbox)
    if refreshed:
        fresh.run("refresh", f"--stack={fresh.stack}", "--yes", "--skip-preview", config=True)
    forget_lost(fresh.as_stack())
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


def test_a_machine_that_cannot_be_drained_keeps_what_it_needs(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    before = sandbox.inventory()
    floating_ip(sandbox)
    command = ("destroy", f"--stack={fresh.stack}", "--yes", "--skip-preview", "--continue-on-error")
    failed = fresh.run(*command, config=True)
    assert "cannot drain" in failed.output
    kept = {
        thing: sandbox.inventory()[thing] for thing in ("servers", "ports", "security groups", "security group rules")
    }
    assert kept == {thing: before[thing] for thing in kept}
