"""config.toml of one runner manager."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import tomli_w

# Docker-in-Docker writes client certificates below this folder, where docker:cli looks for them (docker image docs).
_DIND_CERTIFICATES = "/certs"
# Docker-in-Docker images by their usual names; the only services that may be privileged.
_DIND_SERVICES = ("docker:*dind*", "docker.io/docker:*dind*", "docker.io/library/docker:*dind*")


@dataclass(frozen=True)
class Dind:
    """Docker-in-Docker for image builds."""

    daemon_json: str | None
    """Path on the host of the service's daemon.json; None leaves the service's own."""


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
    pull_policies: Sequence[Literal["always", "if-not-present", "never"]] = ()
    volumes: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    mtu: int | None = None
    """MTU of the network made for each job, in bytes; None leaves Docker's own."""
    dind: Dind | None = None


def config_toml(manager: ConfigToml) -> str:
    """Text of config.toml; keys as in GitLab Runner's "Advanced configuration"."""
    environment = dict(manager.environment)
    volumes = list(manager.volumes)
    docker: dict[str, Any] = {"image": manager.image, "privileged": False}
    if manager.pull_policies:
        docker["pull_policy"] = list(manager.pull_policies)
    if manager.mtu is not None:
        # Only used for the networks that FF_NETWORK_PER_BUILD makes.
        docker["network_mtu"] = manager.mtu
    if manager.dind is not None:
        docker["services_privileged"] = True
        docker["allowed_privileged_services"] = list(_DIND_SERVICES)
        environment.setdefault("DOCKER_TLS_CERTDIR", _DIND_CERTIFICATES)
        volumes.append(f"{_DIND_CERTIFICATES}/client")
        if manager.dind.daemon_json is not None:
            # The only way to reach a service's dockerd without a change in the users' .gitlab-ci.yml.
            volumes.append(f"{manager.dind.daemon_json}:/etc/docker/daemon.json:ro")
    docker["volumes"] = volumes
    runner: dict[str, Any] = {
        "name": manager.name,
        "url": manager.url,
        "token": manager.token,
        "executor": "docker",
        "limit": manager.limit,
        "environment": [f"{key}={value}" for key, value in sorted(environment.items())],
        # The token belongs to the stack: a manager that rotates it would lock out the others.
        "feature_flags": {"FF_NETWORK_PER_BUILD": True, "FF_DISABLE_AUTOMATIC_TOKEN_ROTATION": True},
        "docker": docker,
    }
    if manager.runner_id is not None:
        runner["id"] = manager.runner_id
    configuration = {
        "concurrent": manager.concurrent,
        "check_interval": manager.check_interval,
        "log_level": manager.log_level,
        "log_format": manager.log_format,
        "runners": [runner],
    }
    return tomli_w.dumps(configuration)
