"""The images that the sandbox's runners use: that of GitLab Runner, and one for jobs.

The real gitlab/gitlab-runner is used wherever it can be pulled, and so is a public busybox for jobs. Elsewhere both are
made here, from nothing but this folder, the Go module proxy and Debian's packages: a stand-in for GitLab Runner that
says so in its name, its labels and its log, and a job image of busybox.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.engine import Engine
from sandbox.packages import PackageError, cache_directory, unpacked_busybox

Log = Callable[[str], None]

#: The GitLab Runner that is used, or stood in for.
RUNNER_VERSION = "19.4.1"
RUNNER_IMAGE = f"gitlab/gitlab-runner:v{RUNNER_VERSION}"
JOB_IMAGE = "busybox:1.37.0"

STAND_IN_RUNNER = "gitlab-runners-sandbox/runner-stand-in"
STAND_IN_JOB = "gitlab-runners-sandbox/job"

REGISTRY_TIMEOUT_S = 10.0  # for the registry to know the image
PULL_TIMEOUT_S = 900.0  # for the image to arrive, about 300 MB

_SOURCES = Path(__file__).parent / "runner"
_GO_NEEDED = "Go 1.22 or newer"

# Images are made the same to the last bit every time, so that a sandbox that is started anew has the same image IDs.
_EPOCH = "1970-01-01T00:00:00Z"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageError(RuntimeError):
    """An image can neither be pulled nor made; the message says in one line what to do."""


@dataclass(frozen=True)
class Images:
    """Names of images that are present in the engine."""

    runner: str
    job: str

    @property
    def is_real(self) -> bool:
        """Whether the runner is GitLab Runner itself."""
        return self.runner == RUNNER_IMAGE


def ensure_images(engine: Engine, log: Log) -> Images:
    """Bring the images into the engine; idempotent, and quick when they are there.

    Raises:
        ImageError: the real image cannot be pulled and the stand-in cannot be made.
    """
    docker = DockerCommand(engine)
    if docker.has(RUNNER_IMAGE) and docker.has(JOB_IMAGE):
        return Images(RUNNER_IMAGE, JOB_IMAGE)
    made = stand_ins(docker.architecture())
    if all(docker.has(image.name) for image in made):
        return Images(*(image.name for image in made))
    # An engine in a namespace is one that the sandbox has started, without a way to the world.
    if engine.namespace is None and docker.pull(RUNNER_IMAGE, log) and docker.pull(JOB_IMAGE, log):
        return Images(RUNNER_IMAGE, JOB_IMAGE)
    log(f"{RUNNER_IMAGE} cannot be pulled: a stand-in for GitLab Runner takes its place")
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
class StandIn:
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
                    files = {"bin/busybox": unpacked_busybox(log)}
                except PackageError as error:
                    raise ImageError(f"no job image can be pulled, and none made: {error}") from error
                if self.with_runner:
                    log("building the stand-in for GitLab Runner, once for this machine")
                    files["usr/bin/gitlab-runner"] = _build(work, self.architecture)
                draft = work / "image.tar"
                write_image(draft, self.name, self.architecture, self.configuration, _layer(files))
                draft.rename(archive)
        return archive


def stand_ins(architecture: str) -> tuple[StandIn, StandIn]:
    """The stand-ins for GitLab Runner and for an image for jobs, for an architecture in Go's words."""
    labels = {
        "org.opencontainers.image.title": "stand-in",
        "org.opencontainers.image.description": "Made for the sandbox; not published by GitLab.",
    }
    runner = {
        "Entrypoint": ["/usr/bin/gitlab-runner"],
        "Cmd": ["run", "--user=gitlab-runner", "--working-directory=/home/gitlab-runner"],
        "Env": [_PATH],
        "StopSignal": "SIGQUIT",
        # As in the real image.
        "Volumes": {"/etc/gitlab-runner": {}, "/home/gitlab-runner": {}},
        "Labels": labels | {"org.opencontainers.image.title": f"stand-in for GitLab Runner {RUNNER_VERSION}"},
    }
    job = {"Cmd": ["sh"], "Env": [_PATH], "Labels": labels}
    return (
        StandIn(
            STAND_IN_RUNNER,
            f"{RUNNER_VERSION}-{_fingerprint(runner, _sources())}",
            architecture,
            runner,
            with_runner=True,
        ),
        StandIn(STAND_IN_JOB, _fingerprint(job, []), architecture, job, with_runner=False),
    )


def _fingerprint(configuration: Mapping[str, Any], sources: list[Path]) -> str:
    """Changes with the image's configuration, this module and what the program in it is built from."""
    digest = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode())
    for path in [Path(__file__), *sources]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _sources() -> list[Path]:
    paths = [*_SOURCES.glob("*.go"), _SOURCES / "go.mod", _SOURCES / "go.sum"]
    return sorted(path for path in paths if not path.name.endswith("_test.go"))


def _build(directory: Path, architecture: str) -> Path:
    """Compile the stand-in, with the modules that go.sum pins, into `directory`."""
    go = shutil.which("go")
    if go is None:
        raise ImageError(f"{RUNNER_IMAGE} cannot be pulled, and its stand-in cannot be built: install {_GO_NEEDED}")
    program = directory / "gitlab-runner"
    flags = ["-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", f"-s -w -X main.version={RUNNER_VERSION}"]
    environment = os.environ | {"CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": architecture}
    command = [go, "build", *flags, "-o", str(program), "."]
    built = subprocess.run(command, cwd=_SOURCES, env=environment, capture_output=True, text=True, check=False)
    if built.returncode:
        complaint = built.stderr.strip().splitlines()[-1:]
        raise ImageError(f"the stand-in for GitLab Runner cannot be built ({_GO_NEEDED}?): {''.join(complaint)}")
    return program


_PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_GROUP = "root:x:0:\nnogroup:x:65534:\n"


def _layer(files: Mapping[str, Path]) -> bytes:
    """A root file system of these programs (path in the image: file), a shell and the usual directories."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as layer:

        def add(name: str, kind: bytes, mode: int, content: bytes = b"", target: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), target
            layer.addfile(entry, io.BytesIO(content))

        for directory in ("bin", "etc", "etc/gitlab-runner", "home", "home/gitlab-runner", "root", "usr", "usr/bin"):
            add(directory, tarfile.DIRTYPE, 0o755)
        for directory in ("tmp", "var", "var/tmp"):
            add(directory, tarfile.DIRTYPE, 0o755 if directory == "var" else 0o1777)
        add("etc/passwd", tarfile.REGTYPE, 0o644, _PASSWD.encode())
        add("etc/group", tarfile.REGTYPE, 0o644, _GROUP.encode())
        for name, path in files.items():
            add(name, tarfile.REGTYPE, 0o755, path.read_bytes())
        for command in busybox_commands(files["bin/busybox"]):
            add(f"bin/{command}", tarfile.SYMTYPE, 0o777, target="busybox")
    return buffer.getvalue()


def busybox_commands(busybox: Path) -> list[str]:
    listed = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True)
    return sorted(set(listed.stdout.split()) - {"busybox"})


def write_image(archive: Path, name: str, architecture: str, configuration: Mapping[str, Any], layer: bytes) -> None:
    """An image archive of one layer (Docker Image Specification 1.2, "Combined Image JSON + Filesystem Changeset")."""
    layer_digest = hashlib.sha256(layer).hexdigest()
    image = {
        "architecture": architecture,
        "os": "linux",
        "created": _EPOCH,
        "config": configuration,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created": _EPOCH, "created_by": "gitlab-runners sandbox"}],
    }
    image_json = json.dumps(image, sort_keys=True).encode()
    image_file = f"{hashlib.sha256(image_json).hexdigest()}.json"
    layer_file = f"{layer_digest}/layer.tar"
    manifest = [{"Config": image_file, "RepoTags": [name], "Layers": [layer_file]}]
    with tarfile.open(archive, "w") as out:
        for path, content in (
            (image_file, image_json),
            (layer_file, layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            out.addfile(entry, io.BytesIO(content))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
