"""The providers that can be built here, compared with the facts that are kept of the official plugins' schemas."""

import os
import shutil
import subprocess

import pytest

from scripts.toolchain import ROOT


@pytest.mark.acceptance
@pytest.mark.skipif(shutil.which("go") is None, reason="Go is missing")
@pytest.mark.parametrize("provider", ["docker", "openstack"])
def test_it_has_the_properties_of_the_official_plugin(provider: str) -> None:
    result = subprocess.run(
        ["go", "test", "-tags", "no_compose", f"./{provider}"],
        cwd=ROOT / "scripts" / "plugins",
        env={**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
