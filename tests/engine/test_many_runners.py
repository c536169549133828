"""More runners than the SDK has threads for registrations."""

import pytest

from tests.engine.harness import Project, Sandbox

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]


def test_their_hooks_wait_for_none_of_them(fresh: Project, sandbox: Sandbox) -> None:
    # The SDK has four threads for each operation at a time.
    fresh.environment["PULUMI_PARALLEL"] = "1"
    fresh.configure(lambda config: config.update(runners={f"r{n}": config["runners"]["app"] for n in range(6)}))
    fresh.up()
    assert len(sandbox.managers()) == 6
