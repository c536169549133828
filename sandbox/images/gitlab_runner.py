"""GitLab Runner, built from its Go module for where its image cannot be pulled.

It is GitLab's own code, as the module proxy serves it, but for what needs modules that no proxy serves: `run:` steps
and job inputs (step-runner), billing events (labkit), autoscaling (taskscaler), and what nobody needs here: executors
other than docker, and the commands `wrapper` and `proxy-exec`. `runner/left_out` has the types of the missing modules
that the rest is compiled against, `runner/in_place` the files that would need more of them than types. A job that asks
for any of that is refused.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: The development version of 3 September 2026, the newest that the proxy serves.
VERSION = "19.4.0"
_MODULE = "gitlab.com/gitlab-org/gitlab-runner@v1.11.1-0.20260903214710-fc1f1862bd91"
# As in go.sum, which has none for a module that is replaced.
_MODULE_SUM = "h1:bO0AEZUnr/PlWtor5zcLz31UDAJuj7gEALFXrd8vcoY="
_REVISION = "fc1f1862bd91, built from its module"
_WITHOUT = ("commands/wrapper.go", "commands/helpers/proxy_exec.go")
_GO_NEEDED = "Go 1.26.5 or newer"

SOURCES = Path(__file__).parent / "runner"


class BuildError(RuntimeError):
    """The programs cannot be built; the message says in one line what to do."""


@dataclass(frozen=True)
class Programs:
    """The files of GitLab Runner and of its helper."""

    runner: Path
    helper: Path


def build(directory: Path, architecture: str) -> Programs:
    """Builds both, with the modules that go.sum pins, in a directory that is empty; takes a minute or two.

    `architecture` is in Go's words. Raises BuildError.
    """
    workspace = directory / "workspace"
    shutil.copytree(SOURCES, workspace)
    module = workspace / "gitlab-runner"
    shutil.copytree(
        _download(directory), module, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("*_test.go")
    )
    for path in (module, *module.rglob("*/")):
        path.chmod(0o755)  # The module cache is read-only.
    shutil.copytree(workspace / "in_place", module, dirs_exist_ok=True)
    for name in _WITHOUT:
        (module / name).unlink()
    common = "gitlab.com/gitlab-org/gitlab-runner/common"
    stamps = {"NAME": "gitlab-runner", "VERSION": VERSION, "REVISION": _REVISION}
    linker = " ".join(["-s", "-w", *(f"-X '{common}.{key}={value}'" for key, value in stamps.items())])
    flags = ["-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", linker]
    environment = os.environ | {"CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": architecture}
    _go(["build", *flags, "-o", f"{directory}/", "./cmd/..."], workspace, environment)
    return Programs(directory / "gitlab-runner", directory / "gitlab-runner-helper")


def _download(directory: Path) -> Path:
    """The module's folder in Go's module cache."""
    answer = json.loads(_go(["mod", "download", "-json", _MODULE], directory, dict(os.environ)))
    if answer["Sum"] != _MODULE_SUM:
        raise BuildError(f"{_MODULE} is not what it was: its checksum is {answer['Sum']}, not {_MODULE_SUM}")
    return Path(answer["Dir"])


def _go(arguments: list[str], directory: Path, environment: dict[str, str]) -> str:
    go = shutil.which("go")
    if go is None:
        raise BuildError(f"install {_GO_NEEDED}")
    done = subprocess.run([go, *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        complaint = done.stderr.strip().splitlines()[-1:]
        raise BuildError(f"go {arguments[0]} failed ({_GO_NEEDED}?): {''.join(complaint)}")
    return done.stdout
