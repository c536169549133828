"""config.toml of one runner manager."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import tomli_w

# Docker-in-Docker writes client certificates below this folder, where docker:cli looks for them (docker image docs).
_DIND_CERTIFICATES = "/certs"
# Docker-in-Docker images by their usual names; the only services that may be privileged.
_DIND_SERVICES = ("docker:*dind*", "docker.io/docker:*dind*", "docker.io/library/docker:*dind*")
# Docker's default seccomp profile and AppArmor's docker-default let no container make namespaces or mount in them.
_NAMESPACES = ("seccomp:unconfined", "apparmor:unconfined")
# Where managers and their helpers look for further CAs.
_CA_FILE = "/etc/gitlab-runner/certs/ca.crt"
# Programs in Go, dockerd too, trust every certificate in this folder (crypto/x509).
GO_CA_FILE = "/etc/ssl/certs/gitlab-runners.crt"
# The name of Docker Hub in Docker's configuration file (docker login).
_DOCKER_HUB = "https://index.docker.io/v1/"
_NO_NEW_PRIVILEGES = ("no-new-privileges:true",)

PullPolicy = Literal["always", "if-not-present", "never"]


@dataclass(frozen=True)
class Dind:
    """Docker-in-Docker for image builds."""

    daemon_json: str | None
    """Path on the host of the service's daemon.json; None leaves the service's own."""


@dataclass(frozen=True)
class Limits:
    """What a container may use; None is no limit."""

    memory: str | None = None
    """Bytes, with Docker's units: 512m, 2g."""
    cpus: str | None = None
    """Number of processors: 1.5."""


@dataclass(frozen=True)
class RegistryLogin:
    """Who images are pulled as."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Cache:
    """A distributed cache, on S3."""

    server: str
    """Host and perhaps port of the S3 API."""
    bucket: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)
    insecure: bool = False
    """HTTP instead of HTTPS."""
    path: str = ""
    shared: bool = False


@dataclass(frozen=True)
class ConfigToml:
    """What a manager's config.toml depends on."""

    name: str
    url: str
    """GitLab's URL as the manager and its jobs reach it."""
    token: str
    """Authentication token (glrt-…)."""
    concurrent: int
    check_interval: int
    """Seconds."""
    log_level: str
    log_format: str
    limit: int
    image: str
    runner_id: int | None = None
    docker_host: str | None = None
    """URL of the engine, as the manager sees it; None leaves unix:///var/run/docker.sock."""
    pull_policies: Sequence[PullPolicy] = ()
    allowed_images: Sequence[str] = ()
    """Patterns; no pattern allows every image. So with the two below."""
    allowed_services: Sequence[str] = ()
    allowed_pull_policies: Sequence[PullPolicy] = ()
    services_limit: int | None = None
    job_limits: Limits = Limits()
    service_limits: Limits = Limits()
    no_new_privileges: bool = True
    rootless: bool = False
    """Job containers may make user and mount namespaces, for image builds without privileges."""
    volumes: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    registry_logins: Mapping[str, RegistryLogin] = field(default_factory=dict)
    """By registry, as images name it; `docker.io` is Docker Hub."""
    mtu: int | None = None
    """MTU of the network made for each job, in bytes; None leaves Docker's own."""
    ipv6: bool = False
    """Whether that network has IPv6, which the engine must have too."""
    dind: Dind | None = None
    ca_file: str | None = None
    """Path on the host of further CAs (PEM), which the manager sees at /etc/gitlab-runner/certs/ca.crt."""
    listen_address: str | None = None
    """Where the manager serves metrics; None serves none."""
    cache: Cache | None = None
    """None keeps caches on the host."""
    autoscaler: Mapping[str, Any] | None = None
    """The table [runners.autoscaler]; None runs jobs on the manager's own engine."""
    advanced: Mapping[str, Any] = field(default_factory=dict)
    """Further keys below [[runners]]; none that is written here already."""
    advanced_global: Mapping[str, Any] = field(default_factory=dict)
    """Further keys outside of [[runners]], in the same way."""


def config_toml(manager: ConfigToml) -> str:
    """Text of config.toml; keys as in GitLab Runner's "Advanced configuration"."""
    environment = dict(manager.environment)
    docker = _docker(manager)
    if manager.dind is not None:
        environment.setdefault("DOCKER_TLS_CERTDIR", _DIND_CERTIFICATES)
    if manager.registry_logins:
        environment["DOCKER_AUTH_CONFIG"] = _docker_auth_config(manager.registry_logins)
    runner: dict[str, Any] = {
        "name": manager.name,
        "url": manager.url,
        "token": manager.token,
        "executor": "docker" if manager.autoscaler is None else "docker-autoscaler",
        "limit": manager.limit,
        "environment": [f"{key}={value}" for key, value in sorted(environment.items())],
        # The token belongs to the stack: a manager that rotates it would lock out the others.
        "feature_flags": {"FF_NETWORK_PER_BUILD": True, "FF_DISABLE_AUTOMATIC_TOKEN_ROTATION": True},
        "docker": docker,
    }
    if manager.autoscaler is not None:
        runner["autoscaler"] = manager.autoscaler
    if manager.ca_file is not None:
        runner["tls-ca-file"] = _CA_FILE
    if manager.cache is not None:
        runner["cache"] = _cache(manager.cache)
    if manager.runner_id is not None:
        runner["id"] = manager.runner_id
    configuration: dict[str, Any] = {
        "concurrent": manager.concurrent,
        "check_interval": manager.check_interval,
        "log_level": manager.log_level,
        "log_format": manager.log_format,
        **({"listen_address": manager.listen_address} if manager.listen_address is not None else {}),
        "runners": [_merged(runner, manager.advanced)],
    }
    return tomli_w.dumps(_merged(configuration, manager.advanced_global))


def _docker_auth_config(logins: Mapping[str, RegistryLogin]) -> str:
    """As in GitLab's "Access an image from a private container registry"."""
    auths = {}
    for registry, login in sorted(logins.items()):
        name = _DOCKER_HUB if registry == "docker.io" else registry
        auths[name] = {"auth": b64encode(f"{login.user}:{login.password}".encode()).decode()}
    return json.dumps({"auths": auths})


def _cache(cache: Cache) -> dict[str, Any]:
    s3: dict[str, Any] = {
        "ServerAddress": cache.server,
        "BucketName": cache.bucket,
        "BucketLocation": cache.region,
        "AccessKey": cache.access_key,
        "SecretKey": cache.secret_key,
        "AuthenticationType": "access-key",
        "Insecure": cache.insecure,
    }
    table: dict[str, Any] = {"Type": "s3", "Shared": cache.shared, "s3": s3}
    return table | ({"Path": cache.path} if cache.path else {})


def _docker(manager: ConfigToml) -> dict[str, Any]:
    volumes = list(manager.volumes)
    docker: dict[str, Any] = {"image": manager.image, "privileged": False}
    if manager.rootless:
        docker["security_opt"] = list(_NAMESPACES)
    elif manager.no_new_privileges:
        docker["security_opt"] = list(_NO_NEW_PRIVILEGES)
    optional = {
        "host": manager.docker_host,
        "pull_policy": list(manager.pull_policies),
        "allowed_images": list(manager.allowed_images),
        "allowed_services": list(manager.allowed_services),
        "allowed_pull_policies": list(manager.allowed_pull_policies),
        "services_limit": manager.services_limit,
        "memory": manager.job_limits.memory,
        "cpus": manager.job_limits.cpus,
        "service_memory": manager.service_limits.memory,
        "service_cpus": manager.service_limits.cpus,
        # Only used for the networks that FF_NETWORK_PER_BUILD makes.
        "network_mtu": manager.mtu,
        "enable_ipv6": manager.ipv6 or None,
    }
    docker |= {key: value for key, value in optional.items() if value not in (None, [])}
    if manager.dind is not None:
        docker["services_privileged"] = True
        docker["allowed_privileged_services"] = list(_DIND_SERVICES)
        volumes.append(f"{_DIND_CERTIFICATES}/client")
        if manager.dind.daemon_json is not None:
            # The only way to reach a service's dockerd without a change in the users' .gitlab-ci.yml.
            volumes.append(f"{manager.dind.daemon_json}:/etc/docker/daemon.json:ro")
    if manager.ca_file is not None:
        volumes.append(f"{manager.ca_file}:{_CA_FILE}:ro")
        if manager.dind is not None:
            volumes.append(f"{manager.ca_file}:{GO_CA_FILE}:ro")
    docker["volumes"] = volumes
    return docker


def _merged(ours: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Both, tables within each other too."""
    merged = dict(ours)
    for key, value in more.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged
