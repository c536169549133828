"""The Python that the language host starts where it is built here."""

import json
import subprocess
from typing import Any

from scripts.toolchain import ROOT, VENV

LIST = ["-m", "pip", "list", "-v", "--format", "json"]


def listed(python: str) -> list[dict[str, Any]]:
    environment = {"PATH": f"{VENV}/bin:/usr/bin:/bin"}
    output = subprocess.run([python, *LIST], env=environment, check=True, capture_output=True, text=True).stdout
    # pip may have more to say after it.
    found, _ = json.JSONDecoder().raw_decode(output)
    return [{key: each[key].rstrip("/") for key in ("name", "version", "location")} for each in found]


def test_it_tells_the_packages_that_pip_tells() -> None:
    packages = listed(str(ROOT / "scripts" / "language-host" / "python"))
    assert "pulumi-openstack" in {each["name"].replace("_", "-") for each in packages}
    assert sorted(packages, key=str) == sorted(listed("python3"), key=str)
