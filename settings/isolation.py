"""What a job must never get of its host: folders, capabilities."""

import posixpath
from collections.abc import Sequence

# Who may write one of these, or read the secrets in them, has the host; so has who gets a folder that holds one.
_NEVER = (
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/proc",
    "/root",
    "/run",
    "/sys",
    "/var/lib/cloud",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/run",
    "/var/spool",
)
# Programs of the host, and what it trusts: no secret, but not to be changed by a job.
_READ_ONLY = (
    "/bin",
    "/etc/ca-certificates",
    "/etc/docker/certs.d",
    "/etc/localtime",
    "/etc/ssl/certs",
    "/lib",
    "/lib64",
    "/opt",
    "/sbin",
    "/usr",
)
# Sockets by which a container engine takes orders.
_ENGINES = {"buildkitd.sock", "containerd.sock", "crio.sock", "docker.sock", "podman.sock"}
# Capabilities with which a container can leave its confinement (capabilities(7)).
_TAKEOVER = {
    "ALL",
    "BPF",
    "DAC_READ_SEARCH",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "PERFMON",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_RAWIO",
}


def volume_mistake(volume: str) -> str | None:
    """What is wrong with a volume of a job (`source:target[:mode]`, or a path in the container), or None.

    Only the text is looked at: where a link on the host leads is not known.
    """
    source, _, rest = volume.partition(":")
    if not rest or not source.startswith("/"):
        return None
    _, _, mode = rest.partition(":")
    # POSIX leaves a path that starts with two slashes alone.
    path = "/" + posixpath.normpath(source).lstrip("/")
    name = posixpath.basename(path)
    if name in _ENGINES:
        return f"must not give {name} to jobs: it is root on the host; use builds: dind"
    if _inside(path, _READ_ONLY):
        return None if "ro" in mode.split(",") else f"must not let jobs write {path} of the host; add :ro"
    if _inside(path, _NEVER):
        return f"must not give {path} of the host to jobs: it holds the host's secrets or devices; use another folder"
    if any(_inside(inner, (path,)) for inner in (*_NEVER, *_READ_ONLY)):
        return f"must not give {path} of the host to jobs: the host's own folders are in it; use another folder"
    return None


def capability_mistake(capabilities: Sequence[str]) -> str | None:
    """What is wrong with giving these capabilities to jobs, or None."""
    for capability in capabilities:
        if capability.upper().removeprefix("CAP_") in _TAKEOVER:
            return f"must not have {capability}, with which a job can take over the host; use builds: dind"
    return None


def _inside(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
