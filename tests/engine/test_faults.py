"""A fault at any API call of `up`: the error is clear, and the next `up` converges without an orphan."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = pytest.mark.docker

WHOLE = NOTHING | {
    "servers": 1,
    "key pairs": 1,
    "ports": 1,
    "floating IPs": 1,
    "disks": 1,
    "object containers": 1,
    "EC2 credentials": 1,
    "security groups": 1,
    "security group rules": 3,
    "runners": 1,
    "containers": 2,
    "volumes": 1,
}
# `up` of one runner makes about eighty calls, of which some twenty change something. (A lost answer to a call that only
# reads is a call that failed.) The further ones are for calls that wait: a slow machine makes more of them.
CALLS = range(1, 101)
CHANGES = range(1, 26)
# `make acceptance` tries all of them; FAULTS_EVERY=3 every third one, which is what CI has the time for.
STEP = int(os.environ.get("FAULTS_EVERY", "1"))
CHANGING = "POST|PUT|PATCH|DELETE"
SPREAD = (20, 50)
# Calls whose lost answer would leave something behind for good: those that no name finds again, and some that one does.
# `make acceptance` loses the answer to every one that changes something.
CREATIONS = {
    "security group": "/network/v2.0/security-groups$",
    "port": "/network/v2.0/ports$",
    "disk": "/volume/.*/volumes$",
    "EC2 credential": "/OS-EC2$",
    "server": "/compute/.*/servers$",
    "floating IP": "/network/v2.0/floatingips$",
    "runner": "/api/v4/user/runners$",
    "container": "/containers/create$",
}


@dataclass
class Trial:
    """A stack that is brought up with a fault, and then without where that one failed."""

    project: Project
    sandbox: Sandbox

    def run(self, **fault: object) -> None:
        """Adds the fault, runs `up` with it, checks the error, runs `up` again, and checks what there is.

        Where the first one is good for all that it made (who asked tried again), or nothing was made, there is nothing
        for a second one to mend: a new stack's `up`, and one after an `up`, are what other tests are about.
        """
        self.sandbox.control("POST", "faults", fault)
        failed = self.project.try_up()
        self.sandbox.control("DELETE", "faults")
        assert "Traceback" not in failed.output, failed.output
        output = failed.output
        if failed.status != 0:
            assert failed.errors, output
            if not self._has_begun():
                return
            output += self.project.up().output
        assert self.sandbox.inventory() == WHOLE, output
        assert len(self.sandbox.managers()) == 1

    def _has_begun(self) -> bool:
        """Whether anything is in a cloud or in the state."""
        resources = self.project.export()["deployment"].get("resources", [])
        declared = [resource["urn"] for resource in resources if not resource["type"].startswith("pulumi:")]
        return bool(declared) or self.sandbox.inventory() != NOTHING


@pytest.fixture
def trial(sandbox: Sandbox, fresh: Project) -> Iterator[Trial]:
    fresh.configure(lambda config: config["host"].update(dockerVolume={"size": 20}))
    fresh.configure(lambda config: config.update(cache={"kind": "openstack"}))
    sandbox.control("DELETE", "requests")
    yield Trial(fresh, sandbox)
    sandbox.control("DELETE", "faults")
    sandbox.clear()
    assert sandbox.inventory() == NOTHING


@pytest.mark.acceptance
def test_no_call_is_left_out(trial: Trial) -> None:
    trial.project.up()
    calls = trial.sandbox.requests()
    changes = [call for call in calls if call["method"] in CHANGING.split("|")]
    # A read that is made again and again waits for something.
    reads = {call["path"] for call in calls if call not in changes}
    assert max(SPREAD) < len(changes) + len(reads) <= max(CALLS)
    assert len(changes) <= max(CHANGES)


@pytest.mark.parametrize("path", CREATIONS.values(), ids=CREATIONS.keys())
def test_a_lost_answer_to_a_creation_leaves_no_orphan(trial: Trial, path: str) -> None:
    trial.run(do="lose", method="PUT" if path.startswith("/object-store") else "POST", path=path)


@pytest.mark.parametrize("call", SPREAD)
def test_a_call_fails(trial: Trial, call: int) -> None:
    trial.run(do="status", status=503, n=call)


@pytest.mark.acceptance
@pytest.mark.parametrize("call", CALLS[::STEP])
def test_any_call_fails(trial: Trial, call: int) -> None:
    trial.run(do="status", status=503, n=call)


@pytest.mark.acceptance
@pytest.mark.parametrize("call", CHANGES[::STEP])
def test_the_answer_to_any_change_is_lost(trial: Trial, call: int) -> None:
    trial.run(do="lose", n=call, method=CHANGING)
