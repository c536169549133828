"""Earlier releases as test data, see tests/releases/README.md. `python -m tests.engine.releases VERSION` adds one."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

from scripts.stack import Stack, public_key
from scripts.toolchain import VENV
from tests.engine.harness import ROOT, Project, Sandbox

FOLDER = ROOT / "tests" / "releases"
# All that Pulumi runs, and the layers of stacks.
PROGRAM = (
    *("__main__.py", "Pulumi.yaml", "requirements.txt"),
    *("clients", "components", "renderers", "settings", "stacks"),
)


@dataclass(frozen=True)
class Release:
    """A release's folder."""

    folder: Path

    def stacks(self) -> list[str]:
        """The names of its stacks."""
        return sorted(
            file.name.removeprefix("Pulumi.").removesuffix(".yaml") for file in self.folder.glob("stacks/*.yaml")
        )

    def state_file(self, stack: str) -> Path:
        """The state that a stack had when this release had brought it up, secrets encrypted, as it was exported."""
        return self.folder / "states" / f"{stack}.json"

    def project(self, sandbox: Sandbox, stack: str, folder: Path) -> Project:
        """One of its stacks in a sandbox, still without resources, run by the release's own program."""
        program = folder / "program"
        with tarfile.open(self.folder / "program.tar.gz") as archive:
            archive.extractall(program, filter="data")
        (program / ".venv").symlink_to(VENV)
        file = folder / "stack.yaml"
        file.write_text(
            Template((self.folder / "stacks" / f"Pulumi.{stack}.yaml").read_text()).substitute(_of(sandbox))
        )
        return Project(sandbox, folder / "project", like=Stack(stack, sandbox.environment, file), program=program)


def releases() -> list[Release]:
    """All that are kept, the oldest first."""
    found = [file.parent for file in FOLDER.glob("*/program.tar.gz")]
    return [Release(folder) for folder in sorted(found, key=lambda each: [int(part) for part in each.name.split(".")])]


def _of(sandbox: Sandbox) -> Mapping[str, str]:
    """What the stack files leave to the machine that they are run on."""
    image, _, version = sandbox.environment["SANDBOX_RUNNER_IMAGE"].rpartition(":")
    identity = sandbox.state / "id_ed25519"
    own = {"RUNNER_IMAGE": image, "RUNNER_VERSION": version, "IDENTITY_FILE": str(identity)}
    return {**sandbox.environment, **own, "PUBLIC_KEY": public_key(identity)}


def _portable(state: dict[str, Any], sandbox: Sandbox) -> str:
    """A state without the paths of the machine that it was made on, which tell nobody else anything."""
    state["deployment"]["manifest"].pop("plugins", None)
    for resource in state["deployment"]["resources"]:
        resource.pop("sourcePosition", None)
        resource.pop("stackTrace", None)
    return json.dumps(state, indent=1).replace(str(sandbox.state), "/sandbox") + "\n"


def add(version: str) -> None:
    """Makes the folder of a release from the last commit and the stack files of the release before it.

    Stack files that are there already stay as they are.
    """
    added, *before = Release(FOLDER / version), *reversed(releases())
    stacks = added.folder / "stacks"
    if not stacks.exists():
        latest = next(release for release in before if release.folder != added.folder)
        stacks.mkdir(parents=True)
        for file in latest.folder.glob("stacks/*.yaml"):
            (stacks / file.name).write_text(file.read_text())
    archive = ["git", "archive", f"--output={added.folder / 'program.tar.gz'}", "HEAD", *PROGRAM]
    subprocess.run(archive, cwd=ROOT, check=True)
    with TemporaryDirectory(prefix="glr-") as folder:
        sandbox = Sandbox(Path(folder) / "sandbox")
        try:
            for stack in added.stacks():
                project = added.project(sandbox, stack, Path(folder) / stack)
                project.up()
                file = added.state_file(stack)
                file.parent.mkdir(exist_ok=True)
                file.write_text(_portable(project.export(), sandbox))
                project.destroy()
        finally:
            sandbox.close()


if __name__ == "__main__":
    add(*sys.argv[1:])
