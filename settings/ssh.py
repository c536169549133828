"""What a stack file may tell `ssh`: options that only tune a connection, and names that are nothing but names.

`ssh` takes many options that start programs, read files, forward an agent or loosen the check of the host's key. They
are the operator's alone, in ~/.ssh/config, which `ssh` reads here as everywhere.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches

_NUMBER = r"[0-9]{1,6}"
_SWITCH = "yes|no"
_TIME = r"([0-9]{1,6}[smhdw]?)+"
_ALGORITHMS = r"[+^-]?[A-Za-z0-9@.*?!_-]+(,[A-Za-z0-9@.*?!_-]+)*"
OPTIONS: Mapping[str, str] = {
    "AddressFamily": "any|inet|inet6",
    "BindAddress": r"[A-Za-z0-9][A-Za-z0-9.:-]*",
    "BindInterface": r"[A-Za-z0-9][A-Za-z0-9._-]*",
    "Ciphers": _ALGORITHMS,
    "Compression": _SWITCH,
    "ConnectTimeout": _TIME,
    "ConnectionAttempts": _NUMBER,
    "HostKeyAlgorithms": _ALGORITHMS,
    "IPQoS": r"[a-z0-9]+( [a-z0-9]+)?",
    "IdentitiesOnly": _SWITCH,
    "KexAlgorithms": _ALGORITHMS,
    "LogLevel": "QUIET|FATAL|ERROR|INFO|VERBOSE|DEBUG[123]?",
    "MACs": _ALGORITHMS,
    "PubkeyAcceptedAlgorithms": _ALGORITHMS,
    "RekeyLimit": rf"(default|[0-9]+[KMG]?)( (none|{_TIME}))?",
    "RequiredRSASize": _NUMBER,
    "ServerAliveCountMax": _NUMBER,
    "ServerAliveInterval": _TIME,
    "TCPKeepAlive": _SWITCH,
}
"""Options of ssh_config(5) that a stack may set, each with the form of its values."""
_NAMES = {name.lower(): name for name in OPTIONS}
_HOST_KEY = "is set by the program, which always checks the host key"
_SHARED = "is set by the program, whose clients share one connection"
# What to use instead of some of the options that are refused.
_INSTEAD = {
    "batchmode": "is set by the program, which has nobody to ask",
    "controlmaster": _SHARED,
    "controlpath": _SHARED,
    "controlpersist": _SHARED,
    "globalknownhostsfile": _HOST_KEY,
    "hostname": "is told by the cloud or by host.url",
    "identityfile": "use identityFile",
    "knownhostscommand": _HOST_KEY,
    "port": "use port",
    "proxycommand": "use jumpHost, or ProxyCommand in your own ~/.ssh/config",
    "proxyjump": "use jumpHost",
    "stricthostkeychecking": _HOST_KEY,
    "user": "use user",
    "userknownhostsfile": _HOST_KEY,
}
_USER = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_HOST = r"([A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
_JUMP = rf"({_USER}@)?{_HOST}(:[0-9]{{1,5}})?"


def usual_options(given: Mapping[str, str]) -> dict[str, str]:
    """The options by their usual names, however they were written. Raises ValueError with all that is wrong."""
    found: dict[str, str] = {}
    mistakes = []
    for option, value in given.items():
        name = _NAMES.get(option.lower())
        if name is None:
            mistakes.append(f"options.{option} {_refusal(option)}")
        elif name in found:
            mistakes.append(f"options.{option} is there twice")
        elif not re.fullmatch(OPTIONS[name], value):
            mistakes.append(f"options.{option} has a value that {name} does not take here")
        else:
            found[name] = value
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return found


def _refusal(option: str) -> str:
    if option.lower() in _INSTEAD:
        instead = _INSTEAD[option.lower()]
        return instead if instead.startswith("is ") else f"is refused; {instead}"
    close = get_close_matches(option.lower(), _NAMES, n=1, cutoff=0.8)
    near = f"did you mean {_NAMES[close[0]]}? " if close else ""
    return f"is refused; {near}A stack may set {', '.join(OPTIONS)}; all else belongs into your own ~/.ssh/config"


def user(value: str) -> str:
    """A login name that `ssh` takes for nothing else."""
    if re.fullmatch(_USER, value):
        return value
    raise ValueError("must be a login name of letters, digits, dots, hyphens and underscores")


def jump_host(value: str) -> str:
    """[user@]host[:port], or several with commas in between."""
    if all(re.fullmatch(_JUMP, each) for each in value.split(",")):
        return value
    raise ValueError("must be [user@]host[:port], with a comma before a further one")


def identity_file(value: str) -> str:
    """The path of a file; `ssh` itself would replace more than a leading ~."""
    if re.fullmatch(r"(~\w*/)?[\w./@+,:=-]+", value) and not value.startswith("-"):
        return value
    raise ValueError("must be the path of a file, without blanks and other characters that a shell or ssh replaces")


def is_url(value: str) -> bool:
    """Whether it is ssh://[user@]host[:port] and perhaps the path of a socket, with no name that is more than that."""
    return re.fullmatch(rf"ssh://{_JUMP}(/[A-Za-z0-9._/-]*)?", value) is not None
