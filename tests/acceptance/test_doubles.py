"""The doubles are honest: what the sandbox's OpenStack is held to, the real one keeps too."""

import os
import subprocess
import sys

from tests.acceptance.ground_stack import Ground
from tests.engine.harness import ROOT


def test_the_contract_of_the_sandboxs_openstack_holds_on_the_real_one(ground: Ground) -> None:
    environment = os.environ | {
        "CONTRACT_CLOUD": "ground-admin",
        # Nothing boots from it, so it does not take the processor from the tests after this one.
        "CONTRACT_IMAGE": "empty",
        "CONTRACT_FLAVOR": "m1.small",
        "CONTRACT_NETWORK": "runners",
        "CONTRACT_EXTERNAL_NETWORK": "public",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/sandbox/test_openstack_contract.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout
    assert not any(ground.openstack_inventory().values())
