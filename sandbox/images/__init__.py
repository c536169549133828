"""The images that the sandbox's runners use: that of GitLab Runner, and one for jobs.

The image gitlab/gitlab-runner is used wherever it can be pulled, and so is a public busybox for jobs. Elsewhere both
are made here, from nothing but this folder, the Go module proxy and Debian's packages: an image of GitLab Runner that
is built from its module and has its helper in it, and a job image of busybox.
"""

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.engine import Engine
from sandbox.images import gitlab_runner
from sandbox.images.archive import PATH, root_file_system, write_image
from sandbox.packages import PackageError, cache_directory, unpacked_busybox, unpacked_git

Log = Callable[[str], None]

RUNNER_IMAGE = "gitlab/gitlab-runner:v19.4.1"
JOB_IMAGE = "busybox:1.37.0"

MADE_RUNNER = "gitlab-runners-sandbox/gitlab-runner"
MADE_JOB = "gitlab-runners-sandbox/job"

REGISTRY_TIMEOUT_S = 10.0  # for the registry to know the image
PULL_TIMEOUT_S = 900.0  # for the image to arrive, about 300 MB

# Where GitLab Runner looks for its helper's image before it pulls one, and what it starts in it.
_HELPERS = "usr/lib/gitlab-runner/helper-images"
_HELPER_ARCHITECTURE = {"amd64": "x86_64"}
_RUN_ARGUMENTS = b'#!/bin/sh\nexec "$@"\n'
# GitLab's image begins with a script that ends in gitlab-runner. What is built here runs no plugins, and installs none.
_ENTRYPOINT = b"""\
#!/bin/sh
[ "$1 $2" = "fleeting install" ] || exec gitlab-runner "$@"
echo "no plugin is installed: autoscaling is left out of this GitLab Runner"
"""
_HELPER_SCRIPTS = {
    "usr/bin/dumb-init": _RUN_ARGUMENTS,
    "entrypoint": _RUN_ARGUMENTS,
    "usr/bin/gitlab-runner-build": b"#!/bin/sh\numask 0000\nexec sh\n",
}


class ImageError(RuntimeError):
    """An image can neither be pulled nor made; the message says in one line what to do."""


@dataclass(frozen=True)
class Images:
    """Names of images that are present in the engine."""

    runner: str
    job: str


def ensure_images(engine: Engine, log: Log) -> Images:
    """Bring the images into the engine; idempotent, and quick when they are there.

    Raises:
        ImageError: an image can neither be pulled nor made.
    """
    docker = DockerCommand(engine)
    if docker.has(RUNNER_IMAGE) and docker.has(JOB_IMAGE):
        return Images(RUNNER_IMAGE, JOB_IMAGE)
    made = made_images(docker.architecture())
    if all(docker.has(image.name) for image in made):
        return Images(*(image.name for image in made))
    # An engine in a namespace is one that the sandbox has started, without a way to the world.
    if engine.namespace is None and docker.pull(RUNNER_IMAGE, log) and docker.pull(JOB_IMAGE, log):
        return Images(RUNNER_IMAGE, JOB_IMAGE)
    log(f"{RUNNER_IMAGE} cannot be pulled: an image of GitLab Runner {gitlab_runner.VERSION} is made in its place")
    for image in made:
        if not docker.has(image.name):
            docker.load(image.archive(log))
    return Images(*(image.name for image in made))


class DockerCommand:
    """The docker command line, as far as it is needed here."""

    def __init__(self, engine: Engine) -> None:
        path = os.pathsep.join(filter(None, (engine.tools, os.environ.get("PATH", os.defpath))))
        self._environment = os.environ | {"DOCKER_HOST": engine.docker_host, "PATH": path}
        self._environment.pop("DOCKER_CONTEXT", None)

    def has(self, image: str) -> bool:
        """Whether the engine has an image of this name."""
        return self._run("image", "inspect", "--format", "{{.Id}}", image).returncode == 0

    def architecture(self) -> str:
        """The engine's, in Go's words: amd64, arm64."""
        answer = self._run("version", "--format", "{{.Server.Arch}}")
        if answer.returncode:
            raise ImageError(f"the Docker Engine does not answer: {answer.stderr.decode().strip()}")
        return answer.stdout.decode().strip()

    def pull(self, image: str, log: Log) -> bool:
        """Pull an image; False when its registry does not answer soon, does not have it, or breaks off."""
        command = ["docker", "pull", image]
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as pull:
            timer = threading.Timer(REGISTRY_TIMEOUT_S, pull.kill)
            timer.start()
            # The first line comes when the registry knows the image.
            found = bool(pull.stdout and pull.stdout.readline())
            timer.cancel()
            if found:
                log(f"pulling {image}")
                timer = threading.Timer(PULL_TIMEOUT_S, pull.kill)
                timer.start()
                pull.communicate()
                timer.cancel()
        return pull.returncode == 0

    def load(self, archive: Path) -> None:
        """Load an image archive."""
        answer = self._run("load", "--quiet", "--input", str(archive))
        if answer.returncode:
            raise ImageError(f"docker load failed: {answer.stderr.decode().strip()}")

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["docker", *arguments], env=self._environment, capture_output=True, check=False)


@dataclass(frozen=True)
class MadeImage:
    """An image that is made here and kept in the cache under a name that changes with all that goes into it."""

    repository: str
    tag: str
    architecture: str
    configuration: Mapping[str, Any]
    with_runner: bool

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}"

    def archive(self, log: Log) -> Path:
        """The image as a file for `docker load`."""
        directory = cache_directory() / "images"
        directory.mkdir(parents=True, exist_ok=True)
        archive = directory / f"{self.repository.rpartition('/')[2]}-{self.tag}-{self.architecture}.tar"
        with _locked(archive), contextlib.ExitStack() as stack:
            if not archive.exists():  # another sandbox may have been faster
                work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory, prefix=".draft-")))
                try:
                    busybox = unpacked_busybox(log)
                    programs = self._programs(work, busybox, log) if self.with_runner else {}
                except (PackageError, gitlab_runner.BuildError) as error:
                    raise ImageError(f"{self.repository} can neither be pulled nor made: {error}") from error
                draft = work / "image.tar"
                layer = root_file_system(busybox, programs)
                write_image(draft, self.name, self.architecture, self.configuration, layer)
                draft.rename(archive)
        return archive

    def _programs(self, work: Path, busybox: Path, log: Log) -> dict[str, bytes]:
        log("building GitLab Runner from its Go module, once for this machine")
        built = gitlab_runner.build(work, self.architecture)
        helper = {"usr/bin/gitlab-runner-helper": built.helper.read_bytes(), **_HELPER_SCRIPTS, **_git(log)}
        machine = _HELPER_ARCHITECTURE.get(self.architecture, self.architecture)
        # Docker goes by the content, not by the name; for xz it needs a program that a machine may not have.
        packed = gzip.compress(root_file_system(busybox, helper), compresslevel=1, mtime=0)
        return {
            "entrypoint": _ENTRYPOINT,
            "usr/bin/gitlab-runner": built.runner.read_bytes(),
            f"{_HELPERS}/prebuilt-alpine-{machine}.tar.xz": packed,
        }


def _git(log: Log) -> dict[str, bytes]:
    """Git and its libraries, which the helper calls for every job."""
    root = unpacked_git(log)
    files = {"usr/bin/git": root / "usr/bin/git"}
    for pattern in ("libc.so.6", "libpcre2-8.so.0", "libz.so.1"):
        files[f"usr/lib/{pattern}"] = next(root.rglob(pattern))
    loader = next(path for path in root.rglob("ld-linux-*.so.*") if not path.is_symlink())
    # Where programs look for it depends on the architecture.
    files |= {f"{folder}/{loader.name}": loader for folder in ("lib", "lib64")}
    return {name: path.read_bytes() for name, path in files.items()}


def made_images(architecture: str) -> tuple[MadeImage, MadeImage]:
    """GitLab Runner and an image for jobs, for an architecture in Go's words."""
    labels = {"org.opencontainers.image.description": "Made for the sandbox; not published by GitLab."}
    version = gitlab_runner.VERSION
    runner = {
        "Entrypoint": ["/usr/bin/gitlab-runner"],
        "Cmd": ["run", "--user=gitlab-runner", "--working-directory=/home/gitlab-runner"],
        "Env": [PATH],
        "StopSignal": "SIGQUIT",
        # As in GitLab's image.
        "Volumes": {"/etc/gitlab-runner": {}, "/home/gitlab-runner": {}},
        "Labels": labels | {"org.opencontainers.image.title": f"GitLab Runner {version}, built from its module"},
    }
    job = {"Cmd": ["sh"], "Env": [PATH], "Labels": labels}
    sources = sorted(path for path in gitlab_runner.SOURCES.rglob("*") if path.is_file())
    return (
        MadeImage(MADE_RUNNER, f"{version}-{_fingerprint(runner, sources)}", architecture, runner, with_runner=True),
        MadeImage(MADE_JOB, _fingerprint(job, []), architecture, job, with_runner=False),
    )


def _fingerprint(configuration: Mapping[str, Any], sources: list[Path]) -> str:
    """Changes with the image's configuration, this package and what the programs in it are built from."""
    digest = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode())
    for path in [*sorted(Path(__file__).parent.glob("*.py")), *sources]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
