"""What a cloud writes in its own way is declared in that way, so that nothing is ever replaced for a spelling."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]

NETWORKS = {"127.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"}
# As versions before had it, which declared what the stack file says.
WRITTEN = {"192.0.2.7/32": "192.0.2.7", "2001:db8::/32": "2001:DB8::/32"}


@pytest.fixture
def fresh(fresh: Project, sandbox: Sandbox) -> Iterator[Project]:
    yield fresh
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


def let_in(sandbox: Sandbox) -> dict[str, str]:
    """Ids of the rules that let SSH in, by their networks as the cloud writes them."""
    rules = sandbox.openstack.network.security_group_rules(direction="ingress", protocol="tcp")
    return {str(rule.remote_ip_prefix): str(rule.id) for rule in rules if rule.remote_ip_prefix}


def as_before(project: Project) -> dict[str, Any]:
    """The state as versions before had it."""
    state = project.export()
    for resource in state["deployment"]["resources"]:
        for network, text in WRITTEN.items():
            if resource["urn"].endswith(f"-ssh-{network}"):
                resource["urn"] = resource["urn"].removesuffix(network) + text
                resource["inputs"]["remoteIpPrefix"] = text
    found: dict[str, Any] = json.loads(
        json.dumps(state).replace("ssh-192.0.2.7/32", "ssh-192.0.2.7").replace("ssh-2001:db8::/32", "ssh-2001:DB8::/32")
    )
    return found


def test_networks_and_ids_in_every_spelling_change_nothing_later(fresh: Project, sandbox: Sandbox) -> None:
    image = sandbox.openstack.image.find_image("debian-13", ignore_missing=False)
    network = sandbox.openstack.network.find_network("runners", ignore_missing=False)
    fresh.configure(
        lambda config: config["host"].update(
            sshFrom=["127.0.0.0/8", "192.0.2.7", "2001:DB8::/32", "192.0.2.7/32"],
            image=image.id.upper(),
            network=network.id.replace("-", ""),
        )
    )
    fresh.up()
    rules = let_in(sandbox)
    assert set(rules) == NETWORKS
    assert fresh.preview() == {}
    assert fresh.refresh() == {}
    assert fresh.preview() == {}
    # The rules of a version before stay, and their names become today's.
    file = fresh.folder / "state.json"
    file.write_text(json.dumps(as_before(fresh)))
    assert fresh.run("stack", "import", f"--stack={fresh.stack}", f"--file={file}").status == 0
    assert any(resource["urn"].endswith("-ssh-192.0.2.7") for resource in fresh.export()["deployment"]["resources"])
    assert fresh.preview() == {}
    fresh.up()
    assert let_in(sandbox) == rules
    assert fresh.preview() == {}
