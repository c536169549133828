"""GitLab Runner's own check of config.toml (`gitlab-runner lint`), on what the program writes and lets through."""

import copy
import io
import tarfile
from typing import Any

import pytest
import tomli_w

from renderers.autoscaler import Autoscaler, Policy, Worker, autoscaler_table
from renderers.config_toml import Cache, ConfigToml, Dind, Limits, config_toml
from settings.advanced import known_keys
from tests.configurations import PLAIN
from tests.engine.harness import Sandbox

FULL = ConfigToml(
    **vars(PLAIN)
    | {
        "runner_id": 7,
        "docker_host": "unix:///run/user/1000/docker.sock",
        "pull_policies": ("always", "if-not-present"),
        "allowed_images": ("debian:*",),
        "allowed_services": ("postgres:*",),
        "allowed_pull_policies": ("always",),
        "services_limit": 2,
        "job_limits": Limits("2g", "1.5"),
        "service_limits": Limits("1g", "1"),
        "volumes": ("/cache",),
        "environment": {"KEY": "value"},
        "mtu": 1450,
        "ipv6": True,
        "dind": Dind("/var/lib/docker/volumes/x/_data/dind-daemon.json"),
        "ca_file": "/var/lib/docker/volumes/x/_data/ca.crt",
        "listen_address": "0.0.0.0:9252",
        "cache": Cache("s3.example.com", "bucket", "eu", "access", "secret", insecure=True, path="x", shared=True),
    }
)
VALUES: dict[str, Any] = {
    "boolean": True,
    "duration": "1m",
    "integer": 1,
    "map of boolean": {"KEY": True},
    "map of string": {"KEY": "value"},
    "map of strings": {"KEY": ["value"]},
    "numbers": [1],
    "secret": "value",
    "string": "value",
    "strings": ["* * * * * * *"],
    "table": {},
    "tables": [{}],
    "time": "2026-01-01T00:00:00Z",
}

OF_KEYS = {"shell": "bash", "timezone": "UTC"}


def complaints(sandbox: Sandbox, text: str) -> str:
    """Why GitLab Runner refuses a config.toml; nothing when it takes it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("config.toml")
        entry.size = len(text.encode())
        tar.addfile(entry, io.BytesIO(text.encode()))
    image = sandbox.environment["SANDBOX_RUNNER_IMAGE"]
    container = sandbox.docker.containers.create(image, ["lint", "--config", "/config.toml"])
    try:
        container.put_archive("/", archive.getvalue())
        container.start()
        status = container.wait()["StatusCode"]
        lines = container.logs().decode().splitlines()
        return "\n".join(line for line in lines if "WARNING" not in line) if status else ""
    finally:
        container.remove(v=True)


@pytest.fixture
def workers() -> ConfigToml:
    worker = Worker(
        "app-worker", "flavor", "image", ["network"], "debian", 22, "#cloud-config\n", 900, {"key": "value"}
    )
    policy = Policy(["* 8-17 * * mon-fri"], "Europe/Berlin", 2, 600)
    plugin = "registry.example/fleeting-plugin-openstack:1.2.3"
    scaler = Autoscaler(plugin, "group", 1, 5, 1, [policy], worker, "key", "security-group")
    return ConfigToml(**vars(PLAIN) | {"autoscaler": autoscaler_table(scaler)})


def test_gitlab_runner_knows_all_of_workers_but_what_is_the_plugins(sandbox: Sandbox, workers: ConfigToml) -> None:
    lines = complaints(sandbox, config_toml(workers)).splitlines()
    # Of a plugin's tables it knows nothing; see tests/unit/autoscaler_keys.tsv.
    assert [line for line in lines if "unknown key:" in line and "plugin_config.server_spec" not in line] == []
    assert "runners.autoscaler.plugin_config.server_spec.imageRef" in "".join(lines)


@pytest.mark.parametrize(
    "manager",
    [PLAIN, FULL, ConfigToml(**vars(PLAIN) | {"rootless": True})],
    ids=["plain", "full", "rootless"],
)
def test_gitlab_runner_takes_what_is_written(sandbox: Sandbox, manager: ConfigToml) -> None:
    assert complaints(sandbox, config_toml(manager)) == ""


def test_gitlab_runner_knows_every_key_that_advanced_lets_through(sandbox: Sandbox) -> None:
    document: dict[str, Any] = {"runners": [{}]}
    for path, kind in known_keys().items():
        table = document["runners"][0] if path.startswith("runners[].") else document
        *parents, last = path.removeprefix("runners[].").split(".")
        for parent in parents:
            found = table.setdefault(parent.removesuffix("[]"), [{}] if parent.endswith("[]") else {})
            table = found[0] if isinstance(found, list) else found
        table.setdefault(last, copy.deepcopy(OF_KEYS.get(last, VALUES[kind])))
    assert complaints(sandbox, tomli_w.dumps(document)) == ""


def test_a_key_that_gitlab_runner_does_not_know_is_found(sandbox: Sandbox) -> None:
    assert "unknown key: bogus" in complaints(sandbox, f"bogus = 1\n{config_toml(PLAIN)}")
