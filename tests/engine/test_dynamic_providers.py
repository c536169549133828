"""What the state holds of the providers that are the program itself: neither how it is written nor by whom matters."""

import base64
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.dynamic import provider
from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = pytest.mark.docker


def stored_providers(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each dynamic resource's kind and provider: that of its inputs, and that of its outputs."""
    for resource in state["deployment"]["resources"]:
        kind = resource["type"].removeprefix("pulumi-python:dynamic/")
        for properties in (resource.get("inputs", {}), resource.get("outputs", {})):
            if "__provider" in properties and kind != resource["type"]:
                yield kind, properties["__provider"]


def test_however_a_provider_is_stored_nothing_changes_and_all_can_go(
    fresh: Project, sandbox: Sandbox, tmp_path: Path
) -> None:
    fresh.up()
    (server,) = sandbox.openstack.compute.servers()
    state = fresh.export("--show-secrets")
    kinds = set()
    for kind, stored in stored_providers(state):
        in_another_protocol = pickle.dumps(provider(kind), protocol=2)
        stored["plaintext"] = json.dumps(base64.b64encode(in_another_protocol).decode())
        kinds.add(kind)
    assert kinds >= {"ssh:HostKey", "docker:Drain"}
    changed = tmp_path / "state.json"
    changed.write_text(json.dumps(state))
    assert fresh.run("stack", "import", "--stack=sandbox", f"--file={changed}").status == 0
    assert fresh.preview() == {}
    fresh.configure(lambda config: config["host"]["sshFrom"].append("198.51.100.0/24"))
    fresh.up()
    assert [each.id for each in sandbox.openstack.compute.servers()] == [server.id]
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"
    fresh.destroy()
    assert sandbox.inventory() == NOTHING
