"""The image of the cloud's machines: Debian 13 with cloud-init, an SSH server and Docker.

Its kernel is booted directly: there is no boot loader to be installed, nor to be waited for.

Archives of container images can be laid in it: Docker loads them when a machine boots for the first time, and
``cloud-init status --wait`` waits for that.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.console import Failure

from . import namespaces
from .artefacts import digest
from .rootfs import bootstrap

SUITE = "trixie"
PACKAGES = (
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "kmod",
    "systemd-sysv",
    "udev",
    "dbus",
    "cloud-init",
    "openssh-server",
    "sudo",
    "netbase",
    "net-tools",  # how cloud-init's configuration for ifupdown sets the default route
    "libnss-myhostname",  # a machine knows its own name without a resolver
    "ifupdown",
    "iproute2",
    "iptables",
    "iputils-ping",
    "linux-sysctl-defaults",  # lets users ping
    "ca-certificates",
    "e2fsprogs",  # cloud-init complains without resize2fs
    "procps",
    "openssl",
    "docker.io",
    "docker-cli",
)
# The processor is emulated: to guard against its speculation would only cost time.
KERNEL_COMMAND_LINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off"
DISK_MIB = 3000

_ARCHIVES = "opt/images"
_FILES = {
    "etc/fstab": "/dev/vda / ext4 rw,noatime 0 0\n",
    "etc/hostname": "localhost\n",
    "etc/resolv.conf": "",  # mmdebstrap leaves that of this machine
    "etc/cloud/cloud.cfg.d/90-ground.cfg": "datasource_list: [ConfigDrive, None]\nlocale: false\n",
    "var/lib/cloud/scripts/per-instance/load-images": (
        f"#!/bin/sh\nset -eu\nfor archive in /{_ARCHIVES}/*.tar; do\n"
        '    if [ -e "$archive" ]; then docker load --quiet --input "$archive"; fi\ndone\n'
    ),
}
# They would only take time from a machine that lives for minutes and is emulated.
_UNWANTED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-timesyncd.service",
)
_UNWANTED_FILES = ("etc/ssh/ssh_host_*", "var/lib/apt/lists/*", "var/cache/apt/*.bin")


@dataclass(frozen=True)
class MachineImage:
    """The files of the image."""

    kernel: str
    initrd: str
    disk: str


def root_version() -> str:
    """Changes with what make_root makes."""
    return digest(SUITE, PACKAGES, _FILES, _UNWANTED_UNITS, _UNWANTED_FILES)


def disk_version(archives: Sequence[Path]) -> str:
    """Changes with what make_disk makes."""
    return digest(root_version(), DISK_MIB, [archive.name for archive in archives], *archives)


def make_root(directory: Path) -> None:
    """Fills the directory with ``root``, the machine's files, and with its ``vmlinuz`` and ``initrd``."""
    root = directory / "root"
    bootstrap(root, SUITE, PACKAGES, ())
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        next((root / "boot").glob(pattern)).rename(directory / name)
    for pattern in _UNWANTED_FILES:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for unit in _UNWANTED_UNITS:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    for name, text in _FILES.items():
        path = root / name
        path.unlink(missing_ok=True)  # it may be a link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if text.startswith("#!"):
            path.chmod(0o755)


def make_disk(directory: Path, openstack: Path, machine: Path, archives: Sequence[Path]) -> None:
    """Fills the directory with ``disk.qcow2``.

    openstack: the root file system that has the tools for it.
    machine:   what make_root made.
    archives:  container images in the form of ``docker save``.
    """
    laid = directory / "upper" / _ARCHIVES
    laid.mkdir(parents=True)
    (directory / "work").mkdir()
    for archive in archives:
        shutil.copy(archive, laid)
    if namespaces.run(["sh", "-euc", _MAKE_DISK, "sh", str(openstack), str(machine / "root"), str(directory)]):
        raise Failure("the disk of the machine image could not be made")
    for scaffold in ("upper", "work"):
        shutil.rmtree(directory / scaffold)


# mke2fs and qemu-img of the cloud's root file system find the machine's files at /mnt and write to /srv.
_MAKE_DISK = f"""\
mount -t proc proc "$1/proc"
mount -t overlay -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" overlay "$1/mnt"
mount --bind "$3" "$1/srv"
truncate --size={DISK_MIB}M "$3/disk.raw"
chroot "$1" mke2fs -q -t ext4 -d /mnt /srv/disk.raw
chroot "$1" qemu-img convert -O qcow2 /srv/disk.raw /srv/disk.qcow2
rm "$3/disk.raw"
"""
