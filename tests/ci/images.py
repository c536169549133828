"""Stand-ins for the images that the templates name, for where no image registry can be reached.

Docker's official images (docker:VERSION-dind and docker:VERSION-cli) and Buildah's are made here of Debian's packages,
unpacked onto busybox: the same programs in the same versions, with entrypoints that do what the official ones do as
far as the templates depend on it. Their labels say that they are stand-ins. An archive is kept in the cache under a
name that changes with all that goes into it.
"""

import fcntl
import hashlib
import io
import platform
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox import images as sandbox_images
from sandbox import packages as debian
from sandbox.engine import Engine
from sandbox.images import archive as image_archive

Log = Callable[[str], None]
Entry = tuple[tarfile.TarInfo, bytes]

DOCKER_VERSION = "26.1.5"
BUILDAH_VERSION = "1.39.3"
DIND_IMAGE = f"docker:{DOCKER_VERSION}-dind"
CLI_IMAGE = f"docker:{DOCKER_VERSION}-cli"
BUILDAH_IMAGE = f"quay.io/buildah/stable:v{BUILDAH_VERSION}"

_SCRIPTS = Path(__file__).parent / "stand_ins"
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MERGED = ("bin", "lib", "lib64", "sbin")  # links into /usr, as Debian has them
_USERS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nbuild:x:1000:1000::/home/build:/bin/sh\n",
    "etc/group": "root:x:0:\nbuild:x:1000:\n",
}
# Large, and nothing here needs it: conversions of character sets, older shims, tools for tests.
_UNUSED = (
    "usr/lib/*/gconv",
    "usr/bin/ctr",
    "usr/bin/containerd-shim",
    "usr/bin/containerd-shim-runc-v1",
    "*/buildah/*",
)


@dataclass(frozen=True)
class _StandIn:
    """`packages` besides busybox; `scripts` go to /usr/local/bin; `texts` are files (path: content)."""

    name: str
    packages: tuple[str, ...]
    configuration: Mapping[str, Any]
    scripts: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    def archive(self, log: Log) -> Path:
        """The image as a file for `docker load`."""
        folder = debian.cache_directory() / "images"
        folder.mkdir(parents=True, exist_ok=True)
        plain_name = self.name.replace("/", "-").replace(":", "-")
        archive = folder / f"stand-in-{plain_name}-{self._fingerprint()}-{_ARCHITECTURE}.tar"
        with archive.with_name(f"{archive.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not archive.exists():  # another run may have been faster
                wanted = [f"{name}/{debian.ENGINE_SUITE}" for name in ("busybox-static", "libc6", *self.packages)]
                root = debian.unpacked("images", f"root-{plain_name}", wanted, f"what is in {self.name}", log)
                log(f"making a stand-in for {self.name}, once for this machine")
                with tempfile.TemporaryDirectory(dir=folder, prefix=".draft-") as work:
                    draft = Path(work) / "image.tar"
                    layer = self._layer(root)
                    image_archive.write_image(draft, self.name, _ARCHITECTURE, self._labelled(), layer)
                    draft.rename(archive)
        return archive

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(Path(__file__).read_bytes())
        for script in self.scripts:
            digest.update((_SCRIPTS / script).read_bytes())
        return digest.hexdigest()[:12]

    def _labelled(self) -> dict[str, Any]:
        labels = {
            "org.opencontainers.image.title": f"stand-in for {self.name}",
            "org.opencontainers.image.description": "Made of Debian's packages for tests; not the official image.",
        }
        return {**self.configuration, "Labels": labels}

    def _layer(self, root: Path) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as layer:
            for entry, content in self._entries(root):
                layer.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    def _entries(self, root: Path) -> Iterator[Entry]:
        for name in _MERGED:
            yield _link(name, f"usr/{name}")
        present = set()
        for path in sorted((root / "usr").rglob("*")):
            relative = path.relative_to(root)
            if any(part.match(pattern) for part in (relative, *relative.parents) for pattern in _UNUSED):
                continue
            present.add(path.name)
            mode = path.lstat().st_mode & 0o7777
            if path.is_symlink():
                yield _link(str(relative), str(path.readlink()))
            elif path.is_dir():
                yield _directory(str(relative), mode)
            else:
                yield _file(str(relative), path.read_bytes(), mode)
        for command in image_archive.busybox_commands(root / "usr/bin/busybox"):
            if command not in present:
                yield _link(f"usr/bin/{command}", "busybox")
        for script in self.scripts:
            yield _file(f"usr/local/bin/{script}", (_SCRIPTS / script).read_bytes(), 0o755)
        for name, text in {**_USERS, **self.texts}.items():
            yield _file(name, text.encode(), 0o644)
        for name in ("tmp", "var/tmp"):
            yield _directory(name, 0o1777)
        for name in ("root", "run", "home/build", "usr/local/sbin"):
            yield _directory(name, 0o755)
        yield _link("var/run", "/run")


def _file(name: str, content: bytes, mode: int) -> Entry:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    return entry, content


def _directory(name: str, mode: int) -> Entry:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    return entry, b""


def _link(name: str, target: str) -> Entry:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = tarfile.SYMTYPE, 0o777, target
    return entry, b""


_DIND = _StandIn(
    DIND_IMAGE,
    (
        "docker.io",
        "containerd",
        "runc",
        "docker-cli",
        "iptables",
        "openssl",
        "libcap2",
        "libip4tc2",
        "libip6tc2",
        "libmnl0",
        "libnftnl11",
        "libseccomp2",
        "libssl3t64",
        "libsystemd0",
        "libxtables12",
        "libzstd1",
        "zlib1g",
    ),
    {
        "Entrypoint": ["dockerd-entrypoint.sh"],
        "Env": [_PATH, f"DOCKER_VERSION={DOCKER_VERSION}", "DOCKER_TLS_CERTDIR=/certs"],
        "ExposedPorts": {"2375/tcp": {}, "2376/tcp": {}},
        "Volumes": {"/var/lib/docker": {}},
    },
    scripts=("dockerd-entrypoint.sh", "docker-entrypoint.sh"),
    texts={"etc/ssl/openssl.cnf": "[req]\ndistinguished_name = name\n[name]\n"},
)
_CLI = _StandIn(
    CLI_IMAGE,
    ("docker-cli", "docker-buildx"),
    {
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["sh"],
        "Env": [_PATH, f"DOCKER_VERSION={DOCKER_VERSION}", "DOCKER_TLS_CERTDIR=/certs"],
    },
    scripts=("docker-entrypoint.sh",),
)
_BUILDAH = _StandIn(
    BUILDAH_IMAGE,
    (
        "buildah",
        "uidmap",
        "crun",
        "libacl1",
        "libassuan9",
        "libattr1",
        "libaudit1",
        "libbsd0",
        "libbz2-1.0",
        "libcap-ng0",
        "libcap2",
        "libcrypt1",
        "libgpg-error0",
        "libgpgme11t64",
        "libmd0",
        "libpam0g",
        "libpcre2-8-0",
        "libseccomp2",
        "libselinux1",
        "libsemanage2",
        "libsepol2",
        "libsqlite3-0",
        "libsubid5",
        "libsystemd0",
        "libyajl2",
        "netavark",
    ),
    # As in the official image: it runs as root and has a user `build` with ranges of ids.
    {"Cmd": ["sh"], "Env": [_PATH, "BUILDAH_ISOLATION=chroot"], "Volumes": {"/var/lib/containers": {}}},
    texts={
        "etc/containers/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}\n',
        "etc/subuid": "build:1:999\nbuild:1001:64535\n",
        "etc/subgid": "build:1:999\nbuild:1001:64535\n",
    },
)


def dind_archive(log: Log) -> Path:
    """Archive of the stand-in for docker:dind (DIND_IMAGE), for `docker load`.

    Raises sandbox.packages.PackageError where Debian's packages cannot be had.
    """
    return _DIND.archive(log)


def cli_archive(log: Log) -> Path:
    """Archive of the stand-in for docker:cli (CLI_IMAGE), as dind_archive."""
    return _CLI.archive(log)


def buildah_archive(log: Log) -> Path:
    """Archive of the stand-in for Buildah's image (BUILDAH_IMAGE), as dind_archive."""
    return _BUILDAH.archive(log)


def ensure(engine: Engine, log: Log) -> None:
    """Brings the images into an engine: the official ones where they can be pulled, else the stand-ins.

    Raises sandbox.images.ImageError or sandbox.packages.PackageError when there are neither.
    """
    docker = sandbox_images.DockerCommand(engine)
    for image in (_DIND, _CLI, _BUILDAH):
        # An engine in a namespace is one that the sandbox has started, without a way to the world.
        if not docker.has(image.name) and not (engine.namespace is None and docker.pull(image.name, log)):
            docker.load(image.archive(log))
