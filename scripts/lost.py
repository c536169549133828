"""Takes out of a stack's state what lies on machines that Nova does not have any more: `python -m scripts.lost STACK`.

It runs in the stack's environment, before Pulumi refreshes or destroys the stack.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from clients import ClientError
from clients.lost import cut_off, lost, servers, without
from clients.openstack import connect
from clients.state import exported
from scripts.console import Failure, failures_in_one_line
from scripts.toolchain import ROOT
from settings import SettingsError
from settings.layers import effective

BACKUPS = ROOT / ".state-backups"


def forget(stack: str, config_file: Path | None) -> list[str]:
    """Says in one line each what is taken out, and where the state is kept as it was. Failure when it cannot be done.

    Returns the URNs of what is on machines that cannot be reached, where a refresh would fail.
    """
    try:
        text = exported(stack)()
        state = json.loads(text)
        resources = state["deployment"].get("resources") or []
        if not servers(resources):
            return []
        cloud = connect(_configuration(stack, config_file))
        gone = lost(cloud, resources)
        unreachable = cut_off(cloud, resources)
        edited, removed = without(state["deployment"], gone)
    except (ClientError, SettingsError) as error:
        raise Failure(str(error)) from None
    if not removed:
        return unreachable
    BACKUPS.mkdir(mode=0o700, exist_ok=True)
    backup = BACKUPS / f"{stack.replace('/', '.')}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    backup.touch(mode=0o600)
    backup.write_text(text)
    with NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(state | {"deployment": edited}, file)
        file.flush()
        _pulumi("stack", "import", f"--stack={stack}", f"--file={file.name}")
    for each in removed:
        type_, name = each["type"].rpartition(":")[2], each["urn"].rpartition("::")[2]
        print(f"{type_} {name}: gone with its machine, and no longer in the state")
    print(f"Nova has no server {', '.join(sorted(gone))}; the state as it was: {backup}")
    return unreachable


def _configuration(stack: str, config_file: Path | None) -> Mapping[str, str]:
    """The openstack provider's configuration, without its namespace."""
    file = [f"--config-file={config_file}"] if config_file else []
    own = json.loads(_pulumi("config", "--json", "--show-secrets", f"--stack={stack}", *file))
    values = {key: str(entry.get("value", "")) for key, entry in own.items()}
    secrets = {key for key, entry in own.items() if entry.get("secret")}
    config = effective(stack.rpartition("/")[2], values, encrypted=secrets).config
    return {key.partition(":")[2]: value for key, value in config.items() if key.startswith("openstack:")}


def _pulumi(*arguments: str) -> Any:
    command = ["pulumi", *arguments, "--non-interactive"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"`pulumi {' '.join(arguments[:2])}` failed: {' '.join(done.stderr.split())}")
    return done.stdout


def main(arguments: Sequence[str]) -> None:
    """Looks at one stack."""
    parser = argparse.ArgumentParser(prog="scripts.lost", description=__doc__)
    parser.add_argument("stack")
    parser.add_argument("--config-file", type=Path)
    parser.add_argument("--unreachable", type=Path, required=True, help="file for the URNs of what cannot be looked at")
    asked = parser.parse_args(arguments)
    asked.unreachable.write_text("\n".join(forget(asked.stack, asked.config_file)))


if __name__ == "__main__":
    with failures_in_one_line():
        main(sys.argv[1:])
