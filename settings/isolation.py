"""What a job may get of its host: folders, volumes, capabilities, kernel settings. What is not listed is refused."""

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence

JOB_VOLUME_PREFIX = "jobs."
"""How the names of volumes for jobs start. Nothing else on a host is called so: stacks, hosts and runners, and so the
volumes of managers and of the registry cache, have no dot in their names (DNS labels), nor have projects of Docker
Compose; the caches that GitLab Runner makes start with `runner-`."""
# What Docker allows behind it (moby, volume/names: RestrictedNameChars).
_JOB_VOLUME = re.compile(re.escape(JOB_VOLUME_PREFIX) + r"[a-zA-Z0-9_.-]+")
# Programs of the host, and what it trusts: no secret, but not to be changed by a job.
_READ_ONLY = (
    "/bin",
    "/etc/ca-certificates",
    "/etc/docker/certs.d",
    "/etc/localtime",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
    "/etc/timezone",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/sbin",
    "/usr",
)
# A folder right in one of these is for jobs. None below it: a job that writes the one could put a link in the place of
# the other, which the engine would follow on the host. /srv and /mnt are the operator's own by the Filesystem Hierarchy
# Standard.
_FOLDERS_FOR_JOBS = ("/mnt", "/srv")
_FOLDER_FOR_JOBS = "/cache"
_HOST_PATH = re.compile(r"/[A-Za-z0-9 ._@+/-]*")
# Sockets by which a container engine takes orders.
_ENGINES = {"buildkitd.sock", "containerd.sock", "crio.sock", "docker.sock", "podman.sock"}
# Of GitLab Runner's modes (executors/docker/internal/volumes/parser). With the propagation of mounts a container could
# mount on the host.
_MODES = ("ro", "rw", "z")
# Docker's own (moby, daemon/pkg/oci/caps/defaults.go): a job has them anyway.
_DEFAULT_CAPABILITIES = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)
# What they allow ends at the container (capabilities(7)): memory that is locked counts for it like any other, and of
# processes it sees its own alone, for debuggers and sanitizers.
_MORE_CAPABILITIES = ("IPC_LOCK", "SYS_PTRACE")
# What runs a container, each of which keeps it apart at least as well as runc. Others may give it devices.
_RUNTIMES = ("crun", "kata", "kata-runtime", "runc", "runsc")
# Limits of a process that cost others nothing but what jobLimits bounds; `nice` and `rtprio` would let a job take the
# processors from the host's own programs (setrlimit(2)).
_ULIMITS = (
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nofile",
    "nproc",
    "rss",
    "sigpending",
    "stack",
)
# Those of the container's own namespaces (Docker's reference, `docker run --sysctl`).
_SYSCTL = re.compile(r"net\..+|fs\.mqueue\..+|kernel\.(msg(max|mnb|mni)|sem|shm(all|max|mni|_rmid_forced))")
# By these the program, GitLab Runner and the clean-up know what is whose.
_LABELS = ("com.gitlab.gitlab-runner", "gitlab-runners.")
_LOG_FOLDER = "/var/log"
# Below 0, the host's own programs would have to go before a job does (proc_pid_oom_score_adj(5)).
_OOM_SCORES = range(1001)


def volume_mistake(volume: str) -> str | None:
    """What is wrong with a volume of a job (`source:target[:mode]`, or a path in the container), or None.

    Only the text is looked at: where a link on the host leads is not known.
    """
    # A mode only follows a source, and nothing follows a mode.
    *sources, target = (parts := volume.split(":", 2))[:2]
    modes = [mode for part in parts[2:] for mode in part.split(",")]
    if not target.startswith("/") or not target.strip("/"):
        return "must be a path in the container, or like /srv/cache:/cache:ro: a source, a path and perhaps a mode"
    if not set(modes).issubset(_MODES):
        return f"has a mode that is none of {_listed(_MODES)}"
    if not sources:
        return None
    (source,) = sources
    return _mistake_in_path(source, modes) if source.startswith("/") else _mistake_in_name(source)


def _mistake_in_path(source: str, modes: Sequence[str]) -> str | None:
    # POSIX leaves a path that starts with two slashes alone.
    path = "/" + posixpath.normpath(source).lstrip("/")
    folder, name = posixpath.split(path)
    if name in _ENGINES:
        return f"must not give {name} to jobs: it is root on the host; use builds: dind"
    if any(path == known or path.startswith(f"{known}/") for known in _READ_ONLY):
        return None if modes == ["ro"] else f"must not let jobs write {path} of the host; add :ro, and no other mode"
    if _HOST_PATH.fullmatch(path) and (folder in _FOLDERS_FOR_JOBS or path == _FOLDER_FOR_JOBS):
        return None
    return (
        f"must not give {path} of the host to jobs; use {_FOLDER_FOR_JOBS} or a folder right in "
        f"{_listed(_FOLDERS_FOR_JOBS)}, or a volume with a name: {JOB_VOLUME_PREFIX}cache"
    )


def _mistake_in_name(name: str) -> str | None:
    if _JOB_VOLUME.fullmatch(name):
        return None
    return (
        f"must not give the volume {name} to jobs; the names of theirs start with {JOB_VOLUME_PREFIX} and go on with "
        f"letters, digits, dots, hyphens and underscores: {JOB_VOLUME_PREFIX}cache"
    )


def capability_mistake(capabilities: Sequence[str]) -> str | None:
    """What is wrong with giving these capabilities to jobs, or None."""
    for capability in capabilities:
        if capability.upper().removeprefix("CAP_") not in (*_DEFAULT_CAPABILITIES, *_MORE_CAPABILITIES):
            return (
                f"must not have {capability}: with it a job is not kept to its container; besides Docker's own there "
                f"are {_listed(_MORE_CAPABILITIES)}"
            )
    return None


def runtime_mistake(runtime: str) -> str | None:
    """What is wrong with running jobs by this runtime of the engine, or None."""
    return None if runtime in _RUNTIMES else f"must be {_listed(_RUNTIMES)}: others may give jobs devices of the host"


def ulimit_mistake(limits: Mapping[str, str]) -> str | None:
    """What is wrong with a job's limits, by their names; or None."""
    return _none_but(limits, [name for name in limits if name in _ULIMITS], f"there are {_listed(_ULIMITS)}")


def sysctl_mistake(settings: Mapping[str, str]) -> str | None:
    """What is wrong with a job's kernel settings, by their names; or None."""
    own = [name for name in settings if _SYSCTL.fullmatch(name)]
    return _none_but(settings, own, "only settings of a container's own are possible: net.…, fs.mqueue.… and its IPC's")


def label_mistake(labels: Mapping[str, str]) -> str | None:
    """What is wrong with labels of a job's containers, by their names; or None."""
    free = [name for name in labels if not name.startswith(_LABELS)]
    return _none_but(labels, free, "GitLab Runner's and the program's own labels tell what is whose")


def oom_score_mistake(score: int) -> str | None:
    """What is wrong with a job's rank among what the kernel ends when memory is short, or None."""
    if score in _OOM_SCORES:
        return None
    return f"must be from {_OOM_SCORES[0]} to {_OOM_SCORES[-1]}: the host's own programs come after jobs"


def log_folder_mistake(folder: str) -> str | None:
    """What is wrong with a folder in the manager's container for logs, or None."""
    # The manager also has a folder of its host.
    if posixpath.normpath(folder).startswith(f"{_LOG_FOLDER}/"):
        return None
    return f"must be a folder below {_LOG_FOLDER} of the manager's container"


def _none_but(given: Iterable[str], allowed: Sequence[str], why: str) -> str | None:
    refused = [name for name in given if name not in allowed]
    return f"must not have {', '.join(refused)}; {why}" if refused else None


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
