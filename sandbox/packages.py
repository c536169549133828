"""Docker Engine from Debian's packages, unpacked into the user's cache: nothing is installed on the machine.

Debian 13's docker.io is used also on Debian 12, whose own (20.10) knows neither ``default-network-opts`` nor how to run
privileged containers where a capability is missing from the bounding set. What it needs besides (runc, iptables) comes
from the machine's own release, since those packages are built against its C library.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

ENGINE_SUITE = "trixie"
ENGINE_PACKAGES = ("docker.io", "containerd", "docker-cli")
MACHINE_PACKAGES = (
    "runc",
    "tini",
    "iptables",
    "libip4tc2",
    "libip6tc2",
    "libxtables12",
    "libmnl0",
    "libnfnetlink0",
    "libnetfilter-conntrack3",
    "libnftnl11",
)
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class PackageError(RuntimeError):
    """The packages cannot be had; the message is for a person."""


def machine_release() -> str | None:
    """Code name of the Debian release this machine runs (os-release(5)), None where it is not Debian."""
    release = platform.freedesktop_os_release()
    return release.get("VERSION_CODENAME") if release.get("ID") == "debian" else None


def cache_directory() -> Path:
    """Where what is built once is kept (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gitlab-runners"


def unpacked_engine(log: Callable[[str], None]) -> Path:
    """The root under which usr/sbin/dockerd and all it needs lie; downloaded when the cache has none.

    Raises PackageError on a machine that is not Debian or whose mirror does not have the packages.
    """
    release = required_release()
    packages = [f"{name}/{ENGINE_SUITE}" for name in ENGINE_PACKAGES]
    packages += [f"{name}/{release}" for name in MACHINE_PACKAGES]
    return unpacked("docker", f"{ENGINE_SUITE}-on-{release}", packages, "Docker Engine", log)


def unpacked_busybox(log: Callable[[str], None]) -> Path:
    """A statically linked busybox; downloaded when the cache has none.

    Raises PackageError as unpacked_engine does.
    """
    release = required_release()
    root = unpacked("busybox", release, [f"busybox-static/{release}"], "busybox", log)
    return next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())


def unpacked_git(log: Callable[[str], None]) -> Path:
    """The root under which git and the libraries that it loads lie; as unpacked_busybox."""
    release = required_release()
    packages = [f"{name}/{release}" for name in ("git", "libc6", "libpcre2-8-0", "zlib1g")]
    return unpacked("git", release, packages, "git", log)


def required_release() -> str:
    """As `machine_release`, but raises PackageError where there is none."""
    release = machine_release()
    if release is None:
        raise PackageError("this machine does not run Debian")
    return release


def unpacked(thing: str, version: str, packages: list[str], title: str, log: Callable[[str], None]) -> Path:
    """The root of these packages (name/suite) in the cache."""
    recipe = hashlib.sha256(repr(packages).encode()).hexdigest()[:8]
    root = cache_directory() / thing / f"{version}-{platform.machine()}-{recipe}"
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f"{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.is_dir():  # another sandbox may have been faster
            log(f"downloading {title} from Debian's packages, once for this machine")
            _unpack(root, packages)
    return root


def _unpack(root: Path, wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as work:
        apt = _private_apt(Path(work), required_release())
        downloads = Path(work) / "downloads"
        draft = Path(work) / "root"
        downloads.mkdir()
        draft.mkdir()
        _run(["apt-get", "update", "--quiet"], apt, downloads)
        _run(["apt-get", "download", "--quiet", *wanted], apt, downloads)
        packages = sorted(downloads.glob("*.deb"))
        for package in packages:
            _run(["dpkg", "-x", str(package), str(draft)], apt, downloads)
        for unused in ("usr/share", "etc", "var"):
            shutil.rmtree(draft / unused, ignore_errors=True)
        (draft / "packages").write_text("".join(f"{package.stem}\n" for package in packages))
        draft.rename(root)


def _private_apt(work: Path, release: str) -> Path:
    """An apt configuration of our own, atop the machine's (its proxy and the like still hold)."""
    signed_by = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    suites = dict.fromkeys((ENGINE_SUITE, release))
    (work / "sources.list").write_text("".join(f"deb {signed_by}{mirror(release)} {suite} main\n" for suite in suites))
    (work / "status").touch()
    configuration = work / "apt.conf"
    configuration.write_text(
        f'Dir::State "{work}/state";\n'
        f'Dir::State::status "{work}/status";\n'
        f'Dir::Cache "{work}/cache";\n'
        f'Dir::Etc::sourcelist "{work}/sources.list";\n'
        'Dir::Etc::sourceparts "-";\n'
        'Dir::Etc::preferencesparts "-";\n'
        'APT::Sandbox::User "root";\n'  # the user _apt cannot write into root's cache
        'Acquire::Languages "none";\n'
        'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";\n'
    )
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (work / directory).mkdir(parents=True)
    return configuration


_MIRROR_QUERY = ("--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")


def mirror(release: str) -> str:
    """The mirror this machine's own apt uses for its release."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--no-release-info", *_MIRROR_QUERY],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in targets.stdout.splitlines():
        suite, component, uri = line.split(" ", 2)
        if (suite, component) in {(release, "main"), ("stable", "main")}:
            return uri.strip()
    raise PackageError(f"apt on this machine has no mirror for Debian {release} main (apt-get indextargets)")


def _run(command: list[str], configuration: Path, directory: Path) -> None:
    environment = os.environ | {"APT_CONFIG": str(configuration), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip().splitlines()
        raise PackageError(f"{' '.join(command[:2])} failed: {complaint[-1] if complaint else done.returncode}")
