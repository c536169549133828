"""What only an environment says in a stack with layers: where credentials go, and how the hosts are reached.

The files of a team and of a stack are written by people who may not decide that. They set none of these keys, unless
the environment's file (or the project's defaults) lists it in `allow`.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from settings.errors import NAMESPACE
from settings.model import Ssh
from settings.yaml_file import Value

ALLOW = "allow"
"""The key at the top of an environment's file that lists what teams and stacks may set besides."""
SHARED_PROVIDER_KEYS = (
    *(
        f"openstack:{key}"
        for key in (
            "authUrl",
            "cacertFile",
            "cloud",
            "defaultDomain",
            "domainId",
            "domainName",
            "insecure",
            "projectDomainId",
            "projectDomainName",
            "region",
            "tenantId",
            "tenantName",
            "userDomainId",
            "userDomainName",
        )
    ),
    *(f"gitlab:{key}" for key in ("baseUrl", "cacertFile", "insecure")),
)
"""What an environment decides about the connection to its cloud and its GitLab; who logs in is each stack's own."""
_SECRETS = (
    "gitlab:token",
    "openstack:applicationCredentialSecret",
    "openstack:password",
    "openstack:token",
)
_LOGINS = (
    "openstack:applicationCredentialId",
    "openstack:applicationCredentialName",
    "openstack:userId",
    "openstack:userName",
)
CREDENTIALS = (*_SECRETS, *_LOGINS)
"""Who logs in: a stack's own file may set these, encrypted."""
_FURTHER_PROVIDER_KEYS = (
    *(
        f"openstack:{key}"
        for key in (
            "allowReauth",
            "cert",
            "delayedAuth",
            "disableNoCacheHeader",
            "enableLogging",
            "endpointOverrides",
            "endpointType",
            "key",
            "maxRetries",
            "swauth",
            "systemScope",
        )
    ),
    *(f"gitlab:{key}" for key in ("clientCert", "clientKey", "headers", "retries")),
)
NOT_TAKEN = tuple(f"gitlab:{key}" for key in ("configFile", "context", "earlyAuthCheck", "enableAutoCiSupport"))
"""What the gitlab provider knows besides, and the program does not hand on."""
PROVIDER_KEYS = (*SHARED_PROVIDER_KEYS, *CREDENTIALS, *_FURTHER_PROVIDER_KEYS)
"""All that the program takes of the providers' configuration."""
_HOST = f"{NAMESPACE}:host"
_SSH_OF_STACKS = ("user", "port")
_SSH = tuple(field.alias or name for name, field in Ssh.model_fields.items())
RESERVED = (
    f"{NAMESPACE}:gitlabUrl",
    *(f"{_HOST}.{key}" for key in ("kind", "url", "hostKey", "certPath")),
    *(f"{_HOST}.ssh.{key}" for key in _SSH if key not in _SSH_OF_STACKS),
)
"""The program's own keys that only an environment sets; a dot leads into a map."""
ALLOWABLE = (*RESERVED, *SHARED_PROVIDER_KEYS, *_LOGINS, *_FURTHER_PROVIDER_KEYS, "environment")
_PATHS = frozenset(
    {
        f"{_HOST}.certPath",
        f"{_HOST}.ssh.identityFile",
        "gitlab:cacertFile",
        "gitlab:clientCert",
        "gitlab:clientKey",
        "openstack:cacertFile",
        "openstack:cert",
        "openstack:key",
    }
)


def allowed_by(document: Value, errors: list[str]) -> frozenset[str]:
    """The keys that an environment's file lets teams and stacks set; mistakes are added to `errors`."""
    said = document.content.get(ALLOW)
    if said is None:
        return frozenset()
    if not isinstance(said.content, list):
        errors.append(f"{said.origin}: {ALLOW}: must be a list of keys, like [{RESERVED[0]}]")
        return frozenset()
    for index, each in enumerate(said.content):
        where = f"{each.origin}: {ALLOW}[{index}]: {each.plain}"
        if each.plain in _SECRETS:
            errors.append(f"{where}: needs no leave: each stack encrypts its own, with `pulumi config set --secret`")
        elif each.plain not in ALLOWABLE:
            errors.append(f"{where}: is no key that can be allowed{suggestion(str(each.plain), ALLOWABLE)}")
    return frozenset(key for key in said.plain if key in ALLOWABLE)


def reserved(name: str, value: Value) -> Iterator[tuple[str, Value]]:
    """What is the environment's among the things that a file says of one of the program's keys, by its name.

    Something else in the place of a map that holds such keys is listed too: it would take back what they say.
    """
    if name in RESERVED:
        yield name, value
    elif any(key.startswith(f"{name}.") for key in RESERVED):
        if isinstance(value.content, dict):
            for key, inner in value.content.items():
                yield from reserved(f"{name}.{key}", inner)
        else:
            yield name, value


def leads_outside(name: str, value: Value, project: Path) -> bool:
    """Whether the value of a key is the path of a file that does not lie in the project's folder."""
    if name not in _PATHS or value.content is None:
        return False
    # Who opens the file may know more than paths: ssh replaces ~, % and ${…}.
    path = str(value.content)
    return path.startswith("~") or bool({"%", "$"} & set(path)) or not _inside(project / path, project)


def configuration(namespace: str, own: Mapping[str, Any], shared: Mapping[str, str] | None) -> dict[str, str]:
    """A provider's configuration without its namespace, of what a stack's own says and what its layers have come to.

    With layers, which are not None, what they may share is from them alone.
    """
    theirs = set(SHARED_PROVIDER_KEYS) if shared is not None else set()
    kept = {key: str(value) for key, value in own.items() if value is not None and f"{namespace}:{key}" not in theirs}
    return kept | dict(shared or {})


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def suggestion(key: str, known: tuple[str, ...]) -> str:
    """The end of a message about a key that is not known: which one may be meant, if one is near."""
    close = get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
