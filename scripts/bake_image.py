"""`python -m scripts.bake_image`: a cloud image with Docker and with images in its Docker, so that a machine's first
boot has nothing to install and nothing to pull.

The image is not booted. Its file system is mounted, packages are installed in it, and the engine that is then in it
runs on it for as long as it takes to pull or load what it is to hold: it lies there in that engine's own form, whatever
its version and storage driver. All of this happens in namespaces of its own, for images of this machine's architecture.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.console import Failure, Step, failures_in_one_line, last_line

_GIB = 1024**3
_QCOW2 = b"QFI\xfb"  # https://www.qemu.org/docs/master/interop/qcow2.html, "Header"
_BOOT_SIGNATURE = b"\x55\xaa"  # ends the first sector of every disk that has partitions, also those of a GPT
_SECTOR = 512
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--")


@dataclass(frozen=True)
class Contents:
    """What an image is to hold besides what it has.

    pull:     names of container images that its engine pulls.
    archives: files with container images, as `docker save` writes them.
    packages: names of Debian packages, beside docker.io where the image has no Docker.
    """

    pull: Sequence[str] = ()
    archives: Sequence[Path] = ()
    packages: Sequence[str] = ()


@dataclass(frozen=True)
class FileSystem:
    """Where a file system lies on its disk, in bytes; `partition` is its number, None without a partition table."""

    offset: int
    size: int
    partition: int | None = None


def bake(source: Path, target: Path, contents: Contents, size_gib: int | None = None) -> None:
    """Writes to `target` the disk image `source` with these contents.

    source:   qcow2 or raw, of Debian or Ubuntu.
    target:   qcow2 where its name ends so, else raw; it is there when it is complete.
    size_gib: size of the new disk, whose file system (ext4) grows with it; as it is when absent.

    Raises Failure.
    """
    if os.geteuid() != 0:
        raise Failure("only root can mount the image's file system")
    to_qcow2, from_qcow2 = target.suffix == ".qcow2", _starts_with(source, _QCOW2)
    _require("unshare", "losetup", "mount", "chroot", *(["qemu-img"] if to_qcow2 or from_qcow2 else []))
    if size_gib is not None:
        _require("e2fsck", "resize2fs")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".bake-") as folder:
        disk = Path(folder) / "disk.raw"
        copy = ["qemu-img", "convert", "-O", "raw"] if from_qcow2 else ["cp", "--sparse=always"]
        _run(*copy, str(source), str(disk))
        if size_gib is not None:
            _grow(disk, size_gib)
        _fill(Path(folder), disk, contents, grow=size_gib is not None)
        if to_qcow2:
            raw, disk = disk, disk.with_name("disk.qcow2")
            _run("qemu-img", "convert", "-O", "qcow2", str(raw), str(disk))
        disk.rename(target)


def _fill(folder: Path, disk: Path, contents: Contents, *, grow: bool) -> None:
    where = file_system(disk)
    (folder / "root").mkdir()
    log = folder / "log"
    arguments = [str(folder / "root"), str(disk), str(where.offset), str(where.size)]
    environment = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")} | _ENVIRONMENT
    environment |= {
        "GROW": "yes" if grow else "",
        "PACKAGES": " ".join(contents.packages),
        "PULL": " ".join(contents.pull),
        "ARCHIVES": shlex.join(str(archive.resolve()) for archive in contents.archives),
        "LOG": str(folder / "daemons.log"),
    }
    with log.open("w") as output:
        done = subprocess.run(
            [*_NAMESPACES, "sh", "-euc", _FILL, "sh", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise Failure(f"the image could not be filled: {last_line(log.read_text(errors='replace'))}")


# As the first process of its namespaces: when it ends, the daemons and the mounts do.
_FILL = """\
root=$1
device=$(losetup --find --show --offset "$3" --sizelimit "$4" "$2")
trap 'losetup --detach "$device"' EXIT
if [ "$GROW" ]; then
  e2fsck -f -p "$device" || [ $? -eq 1 ]  # it has mended something
  resize2fs "$device"
fi
mount "$device" "$root"
# Takes effect when nothing is mounted from it any more.
losetup --detach "$device"
trap - EXIT
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
resolver=$(chroot "$root" readlink --canonicalize-missing /etc/resolv.conf)
case $resolver in
  /run/*) install -D --mode=644 /etc/resolv.conf "$root$resolver" ;;
  *) touch "$root$resolver"; mount --bind /etc/resolv.conf "$root$resolver" ;;
esac

if ! chroot "$root" sh -c 'command -v dockerd'; then PACKAGES="docker.io $PACKAGES"; fi
if [ -n "${PACKAGES% }" ]; then
  # No daemon is started (invoke-rc.d(8)).
  printf '#!/bin/sh\\nexit 101\\n' >"$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
  chroot "$root" apt-get --quiet update
  chroot "$root" apt-get --quiet --yes install $PACKAGES
  chroot "$root" apt-get clean
  rm -rf "$root/usr/sbin/policy-rc.d" "$root"/var/lib/apt/lists/*
fi

daemons=
chroot "$root" containerd >"$LOG" 2>&1 & daemons=$!
# It makes no network, and no rules in this machine's firewall.
chroot "$root" dockerd --containerd /run/containerd/containerd.sock \\
  --bridge none --iptables=false --ip6tables=false >>"$LOG" 2>&1 & daemons="$! $daemons"
until chroot "$root" docker version; do
  for daemon in $daemons; do
    kill -0 "$daemon" || { tail -n 1 "$LOG"; exit 1; }
  done
  sleep 0.2
done
for name in $PULL; do chroot "$root" docker pull --quiet "$name"; done
eval "set -- $ARCHIVES"
for archive; do chroot "$root" docker load --quiet <"$archive"; done
for daemon in $daemons; do kill "$daemon"; wait "$daemon" || true; done
# What each machine makes for itself.
rm -rf "$root/var/lib/docker/engine-id" "$root/var/lib/docker/network"

fstrim "$root" || true
umount --recursive "$root"
"""


def file_system(disk: Path) -> FileSystem:
    """The largest partition of a raw disk, or all of it where it has no partitions."""
    if not _has_partitions(disk):
        return FileSystem(0, disk.stat().st_size)
    _require("sfdisk")
    return largest_partition(_run("sfdisk", "--json", str(disk)))


def largest_partition(listed: str) -> FileSystem:
    """What `sfdisk --json` prints, as the place of the largest partition."""
    table = json.loads(listed)["partitiontable"]
    unit = table.get("sectorsize", _SECTOR)
    found = max(table["partitions"], key=lambda partition: int(partition["size"]))
    digits = found["node"].removeprefix(table["device"])
    number = int("".join(character for character in digits if character.isdigit()))
    return FileSystem(found["start"] * unit, found["size"] * unit, number)


def _grow(disk: Path, size_gib: int) -> None:
    if size_gib * _GIB < disk.stat().st_size:
        raise Failure(f"the image is larger than {size_gib} GiB already")
    os.truncate(disk, size_gib * _GIB)
    where = file_system(disk)
    if where.partition is not None:
        # sfdisk(8): the start stays, the size becomes all that is free behind it.
        _run("sfdisk", "--no-reread", f"--partno={where.partition}", str(disk), input=", +\n")


def _has_partitions(disk: Path) -> bool:
    with disk.open("rb") as file:
        return file.read(_SECTOR).endswith(_BOOT_SIGNATURE)


def _starts_with(file: Path, magic: bytes) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(magic)) == magic
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from error


def _require(*tools: str) -> None:
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        raise Failure(f"not installed: {', '.join(missing)} (Debian: apt install qemu-utils fdisk)")


def _run(*command: str, input: str | None = None) -> str:
    done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"{' '.join(command)}: {last_line(done.stderr)}")
    return done.stdout


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bake_image", description="A cloud image with Docker, and with images in its Docker."
    )
    parser.add_argument("source", type=Path, help="cloud image of Debian or Ubuntu, qcow2 or raw; it stays as it is")
    parser.add_argument("target", type=Path, help="the image to write; qcow2 where its name ends so, else raw")
    parser.add_argument("--pull", action="append", default=[], metavar="IMAGE", help="container image to pull")
    parser.add_argument("--archive", action="append", default=[], type=Path, help="file of `docker save` to load")
    parser.add_argument("--package", action="append", default=[], help="Debian package, beside Docker's own")
    parser.add_argument("--size", type=int, metavar="GIB", help="size of the new disk; default: as it is")
    arguments = parser.parse_args()
    if missing := [str(path) for path in arguments.archive if not path.is_file()]:
        raise Failure(f"no such file: {', '.join(missing)}")
    step = Step("image")
    step.doing(f"writing {arguments.target}")
    contents = Contents(arguments.pull, arguments.archive, arguments.package)
    bake(arguments.source, arguments.target, contents, arguments.size)
    step.done(f"{arguments.target} is ready")


if __name__ == "__main__":
    with failures_in_one_line():
        main()
