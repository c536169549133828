"""Keys of config.toml for which the stack file has no setting: `advanced`, checked against GitLab Runner's own keys."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, ValidationError
from pydantic.json_schema import WithJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError

from settings.isolation import (
    capability_mistake,
    label_mistake,
    log_folder_mistake,
    oom_score_mistake,
    runtime_mistake,
    sysctl_mistake,
    ulimit_mistake,
)

ERROR_TYPE = "advanced"
_KEYS_FILE = Path(__file__).with_name("runner_keys.tsv")
# A runner's keys stand below [[runners]], which the file writes like this.
_RUNNER_PREFIX = "runners[]."
_ENGINE = "is set by the program: jobs run on the engine of their host"
_LIMIT = "must not be set: it takes away what keeps jobs apart from the host"
_DEVICE = "must not be set: it gives jobs devices of the host"
_EXECUTOR = "belongs to another executor; jobs run with docker"

# What the program sets itself, and what would undo its confinement of jobs, with what to do instead.
REFUSED_OF_RUNNERS = {
    "name": "is set by the program, from the runner's name",
    "url": "is set by gitlabUrl",
    "id": "is set by the program: GitLab gives it",
    "tls-ca-file": "is set by the host's caCertificates",
    "token": "is set by the program: GitLab gives it",
    "token_obtained_at": "is kept by GitLab Runner",
    "token_expires_at": "is kept by GitLab Runner",
    "autoscaler": "is set by autoscaler",
    "executor": "is set by executor",
    "limit": "is set by limit",
    "environment": "is set by environment",
    "feature_flags.FF_NETWORK_PER_BUILD": "is set by the program: the MTU of jobs depends on it",
    "feature_flags.FF_DISABLE_AUTOMATIC_TOKEN_ROTATION": "is set by the program: the token belongs to the stack",
    "cache.s3.AccessKey": "is set by the stack's cache.accessKey",
    "cache.s3.AuthenticationType": "is set by the stack's cache",
    "cache.s3.BucketLocation": "is set by the stack's cache.region",
    "cache.s3.BucketName": "is set by the stack's cache.bucket",
    "cache.s3.Insecure": "is set by the stack's cache.insecure",
    "cache.s3.SecretKey": "is set by the stack's cache.secretKey",
    "cache.s3.ServerAddress": "is set by the stack's cache.server",
    "docker.allowed_images": "is set by allowedImages",
    "docker.allowed_privileged_images": "is set by builds: no job container is privileged",
    "docker.allowed_privileged_services": "is set by builds",
    "docker.allowed_pull_policies": "is set by allowedPullPolicies",
    "docker.allowed_services": "is set by allowedServices",
    "docker.cache_dir": "is set by volumes",
    "docker.cpus": "is set by jobLimits.cpus",
    "docker.gpus": _DEVICE,
    "docker.service_gpus": _DEVICE,
    "docker.isolation": "must not be set: only Windows has it",
    "docker.links": "must not be set: it tells jobs of other containers; use services",
    "docker.oom_kill_disable": "must not be set: a job without memory left would stop the host; use jobLimits.memory",
    "docker.volume_driver": "must not be set: it can give jobs folders of the host; use volumes",
    "docker.device_cgroup_rules": _DEVICE,
    "docker.devices": _DEVICE,
    "docker.enable_ipv6": "is set by the host's ipv6",
    "docker.host": _ENGINE,
    "docker.image": "is set by image",
    "docker.ipcmode": _LIMIT,
    "docker.memory": "is set by jobLimits.memory",
    "docker.network_mode": "must not be set: each job has a network of its own, never the host's",
    "docker.network_mtu": "is set by the host's mtu",
    "docker.pid_mode": _LIMIT,
    "docker.privileged": "is set by builds: no job container is privileged; use builds: dind",
    "docker.pull_policy": "is set by pullPolicies",
    "docker.security_opt": "is set by builds and noNewPrivileges",
    "docker.service_cpus": "is set by serviceLimits.cpus",
    "docker.service_memory": "is set by serviceLimits.memory",
    "docker.services_devices": _DEVICE,
    "docker.services_limit": "is set by servicesLimit",
    "docker.services_privileged": "is set by builds; use builds: dind",
    "docker.services_security_opt": _LIMIT,
    "docker.tls_cert_path": _ENGINE,
    "docker.tls_verify": _ENGINE,
    "docker.userns_mode": _LIMIT,
    "docker.volume_driver_ops": "must not be set: it can give jobs folders of the host; use volumes",
    "docker.volumes": "is set by volumes",
    "docker.volumes_from": "must not be set: the manager's container holds docker.sock; use volumes",
    **dict.fromkeys(("custom", "instance", "kubernetes", "machine", "parallels", "ssh", "virtualbox"), _EXECUTOR),
}
# What jobs may be given of [runners.docker]. A key that is neither here nor above is new in GitLab Runner, and closed
# until somebody has looked at it.
FREE_OF_DOCKER = {
    f"docker.{key}"
    for key in (
        "allowed_users",
        "cap_add",
        "cap_drop",
        "cgroup_parent",
        "container_labels",
        "cpu_shares",
        "cpuset_cpus",
        "cpuset_mems",
        "disable_cache",
        "disable_entrypoint_overwrite",
        "dns",
        "dns_search",
        "extra_hosts",
        "group_add",
        "helper_image",
        "helper_image_flavor",
        "hostname",
        "log_options",
        "mac_address",
        "memory_reservation",
        "memory_swap",
        "oom_score_adjust",
        "runtime",
        "service_cgroup_parent",
        "service_cpu_shares",
        "service_cpuset_cpus",
        "service_memory_reservation",
        "service_memory_swap",
        "service_slot_cgroup_template",
        "services",
        "services[].alias",
        "services[].command",
        "services[].entrypoint",
        "services[].environment",
        "services[].name",
        "services_tmpfs",
        "shm_size",
        "sysctls",
        "tmpfs",
        "ulimit",
        "user",
        "volume_keep",
        "wait_for_services_timeout",
    )
}
_REFUSED_OF_MANAGERS = {
    "check_interval": "is set by manager.checkInterval",
    "concurrent": "is set by manager.concurrent",
    "log_format": "is set by manager.logFormat",
    "log_level": "is set by manager.logLevel",
    "machine": _EXECUTOR,
    "runners": "is set by runners",
}
# Those that GitLab Runner knows (its schema of config.toml).
_SHELLS = ("bash", "sh", "cmd", "pwsh", "powershell")


def _shell_mistake(shell: str) -> str | None:
    return None if shell in _SHELLS else f"must be {', '.join(_SHELLS[:-1])} or {_SHELLS[-1]}"


# What is wrong with a value of the right type, by key.
_VALUES: Mapping[str, Callable[[Any], str | None]] = {
    "docker.cap_add": capability_mistake,
    "docker.container_labels": label_mistake,
    "docker.oom_score_adjust": oom_score_mistake,
    "docker.runtime": runtime_mistake,
    "docker.sysctls": sysctl_mistake,
    "docker.ulimit": ulimit_mistake,
    "experimental.usage_logger.log_dir": log_folder_mistake,
    "experimental.usage_logger.logrotate.log_dir": log_folder_mistake,
    "shell": _shell_mistake,
}

_DURATION = r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$"
_TEXT = {"type": "string"}
# A place in the stack file below `advanced`, and what is wrong there.
_Location = tuple[str | int, ...]
_Mistake = tuple[_Location, str]


class _Type(NamedTuple):
    """What a value must be: its check, its name for people, its JSON Schema; that of tables follows from their keys."""

    fits: Callable[[Any], bool]
    expected: str
    schema: dict[str, Any]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _map_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(fits(item) for item in value.values())


_TYPES = {
    "string": _Type(_is_text, "text", _TEXT),
    "secret": _Type(
        _is_text,
        "text",
        {"anyOf": [_TEXT, {"type": "object", "properties": {"secure": _TEXT}, "required": ["secure"]}]},
    ),
    "time": _Type(_is_text, "a time", _TEXT),
    "integer": _Type(lambda value: type(value) is int, "a whole number", {"type": "integer"}),
    "boolean": _Type(lambda value: isinstance(value, bool), "true or false", {"type": "boolean"}),
    "duration": _Type(
        lambda value: isinstance(value, str) and re.fullmatch(_DURATION, value) is not None,
        "a duration like 30s or 1h30m",
        {"type": "string", "pattern": _DURATION},
    ),
    "strings": _Type(_is_texts, "a list of texts", {"type": "array", "items": _TEXT}),
    "table": _Type(lambda value: isinstance(value, dict), "a table: keys with values", {}),
    "tables": _Type(
        lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value), "a list of tables", {}
    ),
    "numbers": _Type(
        lambda value: isinstance(value, list) and all(type(item) in {int, float} for item in value),
        "a list of numbers",
        {"type": "array", "items": {"type": "number"}},
    ),
    "map of string": _Type(_map_of(_is_text), "a map of texts", {"type": "object", "additionalProperties": _TEXT}),
    "map of strings": _Type(
        _map_of(_is_texts),
        "a map of lists of texts",
        {"type": "object", "additionalProperties": {"type": "array", "items": _TEXT}},
    ),
    "map of boolean": _Type(
        _map_of(lambda value: isinstance(value, bool)),
        "a map of true or false",
        {"type": "object", "additionalProperties": {"type": "boolean"}},
    ),
}


def known_keys() -> dict[str, str]:
    """Keys of config.toml, with the types of their values."""
    lines = _KEYS_FILE.read_text().splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


class Section:
    """A table of config.toml: `[[runners]]`, or what stands outside of it."""

    def __init__(self, prefix: str, refused: Mapping[str, str]) -> None:
        self._keys = {
            key.removeprefix(prefix): kind
            for key, kind in known_keys().items()
            if key.startswith(_RUNNER_PREFIX) == (prefix == _RUNNER_PREFIX)
        }
        closed = (key for key in self._keys if key.startswith("docker.") and key not in FREE_OF_DOCKER)
        self._refused = dict.fromkeys(closed, _LIMIT) | dict(refused)
        # What may be suggested: not what is refused.
        self._free = [key for key in self._keys if "[]" not in key and key not in self._refused]

    def checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """What was given; raises pydantic's ValidationError with one error for each mistake."""
        errors = [
            InitErrorDetails(
                type=PydanticCustomError(ERROR_TYPE, "{message}", {"message": message}), loc=location, input=None
            )
            for location, message in self._mistakes(given)
        ]
        if errors:
            raise ValidationError.from_exception_data(ERROR_TYPE, errors)
        return given

    def schema(self, path: str = "") -> dict[str, Any]:
        """JSON Schema of the table at `path`, which ends with a dot where it is not empty."""
        keys = [key.removeprefix(path) for key in self._keys if key.startswith(path) and key not in self._refused]
        properties = {key: self._schema_of(path + key) for key in keys if "." not in key and not key.endswith("[]")}
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def is_secret(self, location: Sequence[str | int]) -> bool:
        """Whether the value at a location below the table is a secret: a password, a key of a cache."""
        key = ""
        for part in location:
            key += "[]" if isinstance(part, int) else f"{'.' if key else ''}{part}"
        return self._keys.get(key) == "secret"

    def _schema_of(self, key: str) -> dict[str, Any]:
        kind = self._keys[key]
        if kind == "table":
            return self.schema(f"{key}.")
        if kind == "tables":
            return {"type": "array", "items": self.schema(f"{key}[].")}
        return _TYPES[kind].schema | ({"enum": list(_SHELLS)} if key == "shell" else {})

    def _mistakes(self, given: Mapping[str, Any], path: str = "", location: _Location = ()) -> Iterator[_Mistake]:
        """What is wrong below `path`, which ends with a dot where it is not empty."""
        for name, value in given.items():
            key, here = f"{path}{name}", (*location, name)
            mistake = self._mistake_in_name(name, key)
            if mistake is None:
                yield from self._mistakes_in_value(key, value, here)
            else:
                yield here, mistake

    def _mistake_in_name(self, name: str, key: str) -> str | None:
        if "." in name:
            return "must be written as tables: docker: {shm_size: …}, not docker.shm_size"
        if key in self._refused:
            return self._refused[key]
        if key not in self._keys:
            return f"GitLab Runner has no key {key.replace('[]', '')} in config.toml{self._suggestion(key)}"
        return None

    def _mistakes_in_value(self, key: str, value: Any, location: _Location) -> Iterator[_Mistake]:
        kind = self._keys[key]
        if not _TYPES[kind].fits(value):
            yield location, f"must be {_TYPES[kind].expected}"
        elif kind == "table":
            yield from self._mistakes(value, f"{key}.", location)
        elif kind == "tables":
            for index, item in enumerate(value):
                yield from self._mistakes(item, f"{key}[].", (*location, index))
        elif key in _VALUES and (mistake := _VALUES[key](value)) is not None:
            yield location, mistake
        elif isinstance(value, dict):
            for name in value:
                if f"{key}.{name}" in self._refused:
                    yield (*location, name), self._refused[f"{key}.{name}"]

    def _suggestion(self, key: str) -> str:
        matches = get_close_matches(key, self._free, n=1)
        return f"; did you mean {matches[0]}?" if matches else ""


OF_RUNNERS = Section(_RUNNER_PREFIX, REFUSED_OF_RUNNERS)
OF_MANAGERS = Section("", _REFUSED_OF_MANAGERS)

RunnerKeys = Annotated[dict[str, Any], AfterValidator(OF_RUNNERS.checked), WithJsonSchema(OF_RUNNERS.schema())]
ManagerKeys = Annotated[dict[str, Any], AfterValidator(OF_MANAGERS.checked), WithJsonSchema(OF_MANAGERS.schema())]
