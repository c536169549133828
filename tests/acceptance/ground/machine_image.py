"""The images of the cloud's machines: Debian 13 with cloud-init, an SSH server and Docker, baked as users bake theirs;
and the same without Docker, for cloud-init to install it.

Their kernel is booted directly: there is no boot loader to be installed, nor to be waited for.
"""

import gzip
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox.images import gitlab_runner
from sandbox.images.archive import write_image
from scripts import bake_image
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
# What cloud-init installs is laid into the images: nobody serves packages to the machines.
REPOSITORY = "var/local/packages"
ENGINE_PACKAGES = ("docker.io", "docker-cli", "containerd", "runc", "tini")
OTHER_PACKAGES = ("unattended-upgrades", "prometheus-node-exporter")
_LAY_IN = (
    f'mkdir "$1/{REPOSITORY}"; chroot "$1" apt-get clean',
    f'chroot "$1" apt-get --quiet --yes --download-only --no-install-recommends install {" ".join(OTHER_PACKAGES)}',
    f'mv "$1"/var/cache/apt/archives/*.deb "$1/{REPOSITORY}"',
    f'chroot "$1" sh -c "cd /{REPOSITORY} && apt-get --quiet download {" ".join(ENGINE_PACKAGES)}"',
    f'cd "$1/{REPOSITORY}"; for package in *.deb; do dpkg-deb --field $package; echo "Filename: $package"; '
    'echo "Size: $(stat --format %s $package)"; echo "SHA256: $(sha256sum $package | cut --delimiter " " --fields 1)"; '
    "echo; done >Packages",
)
# The processor is emulated: to guard against its speculation, or to wipe each page before it is used, would only cost
# time; and so would waiting for all processors with every network that is made or removed (rcu_expedited).
KERNEL_COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off init_on_alloc=0 rcupdate.rcu_expedited=1"
)
DISK_MIB = 3000

_HELPER = f"registry.gitlab.com/gitlab-org/gitlab-runner/gitlab-runner-helper:x86_64-v{gitlab_runner.VERSION}"
_PACKED_HELPER = "usr/lib/gitlab-runner/helper-images/prebuilt-alpine-x86_64.tar.xz"
_FILES = {
    "etc/fstab": "/dev/vda / ext4 rw,noatime 0 0\n",
    "etc/hostname": "localhost\n",
    "etc/resolv.conf": "",  # mmdebstrap leaves that of this machine
    "etc/apt/sources.list": f"deb [trusted=yes] file:/{REPOSITORY} ./\n",
    "etc/cloud/cloud.cfg.d/90-ground.cfg": (
        "datasource_list: [ConfigDrive, None]\nlocale: false\napt: {preserve_sources_list: true}\n"
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
    """The files of the images; `plain_disk` is the one without Docker."""

    kernel: str
    initrd: str
    disk: str
    plain_disk: str


def root_version() -> str:
    """Changes with what make_root makes."""
    return digest(SUITE, PACKAGES, _LAY_IN, _FILES, _UNWANTED_UNITS, _UNWANTED_FILES)


def disk_version(archives: Sequence[Path]) -> str:
    """Changes with what make_disk makes."""
    return digest(
        root_version(),
        DISK_MIB,
        _TAKE_DOCKER_OUT,
        [archive.name for archive in archives],
        *archives,
        _HELPER,
        Path(bake_image.__file__),
    )


def make_root(directory: Path) -> None:
    """Fills the directory with ``root``, the machine's files, and with its ``vmlinuz`` and ``initrd``."""
    root = directory / "root"
    bootstrap(root, (SUITE,), PACKAGES, _LAY_IN)
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


def make_disk(directory: Path, openstack: Path, machine: Path, archives: Sequence[Path]) -> None:
    """Fills the directory with ``disk.qcow2`` and ``plain.qcow2``.

    openstack: the root file system that has the tools for it.
    machine:   what make_root made.
    archives:  container images in the form of ``docker save``.
    """

    def with_tools(script: str) -> None:
        if namespaces.run(["sh", "-euc", script, "sh", str(openstack), str(machine / "root"), str(directory)]):
            raise Failure("the disks of the machine images could not be made")

    system, disk, plain = (directory / f"{name}.raw" for name in ("system", "disk", "plain"))
    with_tools(_MAKE_FILE_SYSTEM)
    helper = directory / "helper.tar"
    _write_helper(helper, runner=archives[0])
    bake_image.bake(system, disk, bake_image.Contents(archives=[*archives, helper]))
    with_tools(_TAKE_DOCKER_OUT)
    with_tools(_PACK)
    for scaffold in (system, disk, plain, helper):
        scaffold.unlink()


def _write_helper(archive: Path, *, runner: Path) -> None:
    """GitLab Runner's helper as an image of its own; the runner's image has it packed, for where it cannot be pulled.

    Docker knows it by the name under which GitLab Runner looks for it (helpers/container/helperimage of its module).
    """
    with tarfile.open(runner) as image:
        layer = next(member for member in image if member.name.endswith("/layer.tar"))
        with tarfile.open(fileobj=image.extractfile(layer)) as files:
            packed = files.extractfile(_PACKED_HELPER)
            assert packed is not None
            content = gzip.decompress(packed.read())
    write_image(archive, _HELPER, "amd64", {"Entrypoint": ["/usr/bin/dumb-init", "/entrypoint"]}, content)


# mke2fs and qemu-img of the cloud's root file system find the machine's files at /mnt and write to /srv.
_MAKE_FILE_SYSTEM = f"""\
mount -t proc proc "$1/proc"
mount --bind "$2" "$1/mnt"
mount --bind "$3" "$1/srv"
truncate --size={DISK_MIB}M "$3/system.raw"
chroot "$1" mke2fs -q -t ext4 -d /mnt /srv/system.raw
"""
# The images in Docker stay, since nobody serves any.
_TAKE_DOCKER_OUT = f"""\
cp --sparse=always "$3/disk.raw" "$3/plain.raw"
mount -o loop "$3/plain.raw" "$1/mnt"
mount -t proc proc "$1/mnt/proc"
mv "$1/mnt/var/lib/docker" "$1/mnt/var/lib/kept"
export DEBIAN_FRONTEND=noninteractive
chroot "$1/mnt" apt-get -qq -o Dpkg::Use-Pty=0 purge {" ".join(ENGINE_PACKAGES)} >/dev/null
mv "$1/mnt/var/lib/kept" "$1/mnt/var/lib/docker"
if chroot "$1/mnt" getent group docker >/dev/null; then chroot "$1/mnt" groupdel docker; fi
fstrim "$1/mnt" || true
umount --recursive "$1/mnt"
"""
_PACK = """\
mount --bind "$3" "$1/srv"
for name in disk plain; do chroot "$1" qemu-img convert -O qcow2 /srv/$name.raw /srv/$name.qcow2; done
"""
