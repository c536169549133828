"""Root file systems of Debian's packages. mmdebstrap, one Perl script, is unpacked for it: nothing is installed."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sandbox import packages
from scripts.console import Failure, Step

from .artefacts import digest

SUITE = "bookworm"  # whatever this machine runs: its OpenStack (Zed) is the one the configuration is written for
# QEMU 10 emulates a processor 1.4 (a boot) to 3 times (docker version) as fast as the 7.2 of that suite.
QEMU_SUITE = f"{SUITE}-backports"
QEMU = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "qemu-utils", "seabios")
LIBRARIES = (
    "python3-keystone",
    "python3-glance",
    "python3-placement",
    "python3-nova",
    "python3-neutron",
    "python3-pymysql",
    "python3-libvirt",
    "rabbitmq-server",
    "mariadb-server",
    "uwsgi-core",
    "uwsgi-plugin-python3",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
    *(f"{package}/{QEMU_SUITE}" for package in QEMU),
    "genisoimage",
    "e2fsprogs",
    "iproute2",
    "iptables",
)
# Only unpacked: to be installed they ask questions, want a database and bring start scripts. What is needed of them is
# a few programs and paste configurations.
DAEMONS = (
    "glance-common",
    "glance-api",
    "nova-common",
    "nova-api",
    "nova-conductor",
    "nova-scheduler",
    "nova-compute",
    "neutron-common",
    "neutron-server",
)
DAEMONS_ROOT = "/opt/daemons"

_UNPACK_DAEMONS = (
    f'mkdir "$1{DAEMONS_ROOT}"; chroot "$1" sh -ec "cd {DAEMONS_ROOT}; apt-get --quiet download {" ".join(DAEMONS)}; '
    f'for package in *.deb; do dpkg -x \\$package {DAEMONS_ROOT}; rm \\$package; done"'
)
# libvirt looks up the user that it was built to run QEMU as before it reads that it is to be root.
_ADD_USER = 'chroot "$1" useradd --system --no-create-home --shell /usr/sbin/nologin libvirt-qemu'
_OPENSTACK_HOOKS = (_UNPACK_DAEMONS, _ADD_USER)

_OPTIONS = (
    "--variant=minbase",
    "--mode=root",
    '--aptopt=Acquire::Languages "none"',
    '--aptopt=APT::Sandbox::User "root"',  # the user _apt cannot write into root's cache
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)


def openstack_version() -> str:
    """Changes with what make_openstack makes."""
    return digest(SUITE, LIBRARIES, _OPENSTACK_HOOKS, _OPTIONS)


def make_openstack(directory: Path) -> None:
    """Fills the directory with a root file system that has all the daemons of the cloud."""
    bootstrap(directory, (SUITE, QEMU_SUITE), LIBRARIES, _OPENSTACK_HOOKS)


def bootstrap(directory: Path, suites: Sequence[str], wanted: Sequence[str], hooks: Sequence[str]) -> None:
    """Fills the directory with a root file system of these packages (name, or name/suite).

    suites: the one that it is of, and those of which it has some packages.
    hooks:  shell commands for the end, which find the root's path in $1.
    """
    release = packages.machine_release()
    if release is None:
        raise Failure("this machine does not run Debian")
    try:
        tools = packages.unpacked(
            "mmdebstrap", release, [f"mmdebstrap/{release}"], "mmdebstrap", Step("packages").doing
        )
        mirror = packages.mirror(release)
    except packages.PackageError as error:
        raise Failure(str(error)) from error
    programs = tools / "usr/bin"
    log_path = packages.cache_directory() / "ground" / f"mmdebstrap-{suites[0]}.log"
    command = [
        *("perl", str(programs / "mmdebstrap")),
        *_OPTIONS,
        "--format=directory",
        f"--include={','.join(wanted)}",
        *(f"--customize-hook={hook}" for hook in hooks),
        *(suites[0], str(directory), *(f"deb {mirror} {suite} main" for suite in suites)),
    ]
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",  # mmtarfilter
        "TMPDIR": str(directory.parent),
        "LC_ALL": "C.UTF-8",
    }
    with log_path.open("w") as log:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        complaint = [line for line in log_path.read_text(errors="replace").splitlines() if line.startswith("E:")]
        raise Failure(f"mmdebstrap failed: {(complaint or ['?'])[0]} (all of it in {log_path})")
    log_path.unlink()
