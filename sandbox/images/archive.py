"""Image archives for `docker load`, and the root file systems in them, the same to the last bit every time."""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_EPOCH = "1970-01-01T00:00:00Z"
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_GROUP = "root:x:0:\nnogroup:x:65534:\n"


def root_file_system(busybox: Path, programs: Mapping[str, bytes]) -> bytes:
    """A tar file of busybox's commands, the usual directories and these programs (path in the image: content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as layer:

        def add(name: str, kind: bytes, mode: int, content: bytes = b"", target: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), target
            layer.addfile(entry, io.BytesIO(content))

        directories = {"bin", "etc", "home", "root", "usr", "usr/bin", "var"}
        for name in programs:
            directories |= {str(parent) for parent in Path(name).parents} - {"."}
        for directory in sorted(directories):
            add(directory, tarfile.DIRTYPE, 0o755)
        for directory in ("tmp", "var/tmp"):
            add(directory, tarfile.DIRTYPE, 0o1777)
        add("etc/passwd", tarfile.REGTYPE, 0o644, _PASSWD.encode())
        add("etc/group", tarfile.REGTYPE, 0o644, _GROUP.encode())
        add("bin/busybox", tarfile.REGTYPE, 0o755, busybox.read_bytes())
        for name, content in programs.items():
            add(name, tarfile.REGTYPE, 0o755, content)
        for command in busybox_commands(busybox):
            add(f"bin/{command}", tarfile.SYMTYPE, 0o777, target="busybox")
    return buffer.getvalue()


def busybox_commands(busybox: Path) -> list[str]:
    """What a busybox can be called by, itself aside."""
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
