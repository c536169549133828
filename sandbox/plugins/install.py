"""Puts the stand-ins where the engine looks for plugins, and takes them away again.

They are installed as `pulumi plugin install --file` installs any plugin, under the version of the Python SDK that asks
for them, so the engine says nothing about them. Each is a small shell script that starts this checkout's code with
this Python. An official plugin of the same version is never overwritten.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from shlex import quote

PLUGINS = ("docker", "gitlab", "openstack")
MARK = "# Stand-in for the official Pulumi plugin"
CHECKOUT = Path(__file__).resolve().parents[2]


def script(name: str) -> str:
    """The executable `pulumi-resource-NAME`. -P keeps the engine's working directory out of the module path."""
    return (
        f"#!/bin/sh\n{MARK} {name!r}, made by {__name__}.\n"
        f'PYTHONPATH={quote(str(CHECKOUT))} exec {quote(sys.executable)} -P -m {__package__}.{name} "$@"\n'
    )


def versions() -> dict[str, str]:
    """The versions that the engine asks for: those of the installed Python SDKs."""
    return {name: metadata.version(f"pulumi-{name}") for name in PLUGINS}


def executable(home: Path, name: str, version: str) -> Path:
    """Where the engine looks for a plugin of that version."""
    return home / "plugins" / f"resource-{name}-v{version}" / f"pulumi-resource-{name}"


def is_stand_in(path: Path) -> bool:
    """Whether an installed plugin is one of ours, from this or another checkout."""
    with path.open("rb") as file:
        return MARK.encode() in file.read(len(MARK) + 100)


def install(pulumi: Path, home: Path, plugins: Mapping[str, str]) -> dict[str, str]:
    """Install the stand-ins for `plugins` (name -> version) into the Pulumi home `home` with the CLI `pulumi`.

    Returns for each plugin what is there now: `installed` (just now), `present` (a stand-in, as it should be) or
    `official` (left as it is). Raises `subprocess.CalledProcessError` when the CLI fails.
    """
    outcome = {}
    for name, version in plugins.items():
        target = executable(home, name, version)
        if target.exists() and not is_stand_in(target):
            outcome[name] = "official"
        elif target.exists() and target.read_text() == script(name):
            outcome[name] = "present"
        else:
            _install(pulumi, home, name, version)
            outcome[name] = "installed"
    return outcome


def remove(home: Path) -> list[str]:
    """Take the stand-ins out of `home`, so that the engine can fetch the official plugins; names what was removed."""
    removed = []
    for target in sorted(home.glob("plugins/resource-*/pulumi-resource-*")):
        if is_stand_in(target):
            target.unlink()
            target.parent.rmdir()
            removed.append(target.name.removeprefix("pulumi-resource-"))
    return removed


def _install(pulumi: Path, home: Path, name: str, version: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"pulumi-resource-{name}"
        file.write_text(script(name))
        file.chmod(0o755)
        subprocess.run(
            [pulumi, "plugin", "install", "resource", name, version, "--file", file, "--reinstall"],
            check=True,
            env={**os.environ, "PULUMI_HOME": str(home), "PULUMI_SKIP_UPDATE_CHECK": "true"},
            capture_output=True,
            text=True,
        )
