"""Registries of images beside the sandbox's engine, where they need no TLS: Debian's docker-registry."""

import io
import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from docker import DockerClient

from sandbox.engine import Engine
from sandbox.packages import required_release, unpacked
from tests.engine.harness import Sandbox, wait_until

# Like the official image, but for the helper that makes a configuration file into `registry serve`.
_CHANGES = ['ENTRYPOINT ["/usr/bin/docker-registry", "serve"]', "VOLUME /var/lib/registry"]


@contextmanager
def registry(engine: Engine, folder: Path, address: str, **more: Any) -> Iterator[None]:
    """A registry on an address of the engine's loopback interface, with all of it in a folder.

    `more` are further keys of its configuration.
    """
    configuration = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
        **more,
    }
    (folder / "config.yml").write_text(yaml.safe_dump(configuration))
    command = [*engine.enter(), str(_program()), "serve", str(folder / "config.yml")]
    # nsenter waits for it: both go with their group.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def move_job_image(sandbox: Sandbox, reference: str, **login: str) -> None:
    """Pushes the image of jobs under another name (with a tag), which then only the registry has."""
    repository, _, tag = reference.rpartition(":")
    sandbox.docker.images.get(sandbox.environment["SANDBOX_JOB_IMAGE"]).tag(repository, tag)

    def pushed() -> bool:
        lines = sandbox.docker.images.push(repository, tag, auth_config=login or None, stream=True, decode=True)
        return not [line for line in lines if "error" in line]

    wait_until(pushed, "the registry")
    sandbox.docker.images.remove(reference)


def make_registry_image(client: DockerClient, name: str) -> None:
    """Gives the engine an image of a registry."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in ("etc", "tmp", "usr", "usr/bin", "var", "var/lib", "var/lib/registry"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(_program(), "usr/bin/docker-registry")
        needed = subprocess.run(["ldd", _program()], check=True, capture_output=True, text=True).stdout
        for library in re.findall(r"(/\S+) \(0x", needed):
            tar.add(Path(library).resolve(), library)
    repository, _, tag = name.rpartition(":")
    client.api.import_image_from_data(archive.getvalue(), repository, tag, changes=_CHANGES)


def _program() -> Path:
    release = required_release()
    root = unpacked("docker-registry", release, [f"docker-registry/{release}"], "docker-registry", print)
    return root / "usr/bin/docker-registry"
