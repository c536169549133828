"""Which cloud and which GitLab the dynamic providers speak to: no engine, no network."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from pulumi.dynamic import ConfigureRequest
from pulumi.dynamic.config import Config

from clients.ssh import SSH_FAILED, Answer
from components.declared_rules import _DeclaredRulesProvider
from components.drain import _DrainProvider
from components.jobs_ended import _JobsEndedProvider

LAYERS = {"cloud": "prod", "region": "shared"}
Asked = list[dict[str, str]]


def test_a_preview_loads_no_client_for_them() -> None:
    """The engine has a process for dynamic providers, which loads their modules before anything is asked of them."""
    modules = (
        "components.declared_rules, components.drain, components.handover, components.host_key, "
        "components.jobs_ended, components.workers"
    )
    loaded = f"import sys, {modules}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert not {"gitlab", "openstack", "pulumi_openstack", "pydantic"} & set(done.stdout.split())


def own(**config: str) -> ConfigureRequest:
    """A stack's own configuration, which is all that the engine hands over."""
    return ConfigureRequest(Config({key.replace("__", ":"): value for key, value in config.items()}, "gitlab-runners"))


@pytest.fixture
def clouds(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Collects with which configuration OpenStack is asked; it has nothing."""
    asked: Asked = []

    def connect(config: dict[str, str]) -> Any:
        asked.append(config)
        return SimpleNamespace(
            compute=SimpleNamespace(find_server=lambda _server: None),
            network=SimpleNamespace(security_group_rules=lambda **_filter: []),
        )

    monkeypatch.setattr("clients.openstack.connect", connect)
    return asked


@pytest.mark.parametrize(
    ("properties", "config"),
    [
        ({"cloud": LAYERS}, LAYERS | {"userName": "own"}),
        ({"cloud": {}}, {"userName": "own"}),
        ({}, {"region": "own", "authUrl": "https://stranger.example", "userName": "own"}),
    ],
    ids=["layers", "layers that say nothing", "no layers"],
)
def test_a_refresh_asks_the_cloud_of_the_layers(
    clouds: Asked, properties: dict[str, Any], config: dict[str, str]
) -> None:
    provider = _DeclaredRulesProvider()
    provider.configure(
        own(openstack__region="own", openstack__authUrl="https://stranger.example", openstack__userName="own")
    )
    provider.read("group", {"rules": [], **properties})
    assert clouds == [config]


def test_a_drain_asks_the_cloud_of_the_layers_whether_the_machine_is_gone(
    clouds: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(*_arguments: Any) -> Answer:
        return Answer(SSH_FAILED, "", "no route to host")

    monkeypatch.setattr("components.drain.run", unreachable)
    provider = _DrainProvider()
    provider.configure(own())
    host = {"server": "id", "address": "10.0.0.5", "user": "debian", "port": 22, "options": [], "grace": 600}
    provider.delete("id", {**host, "cloud": LAYERS})
    assert clouds == [LAYERS]


def test_the_end_of_jobs_is_asked_of_the_gitlab_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def gitlab(url: str, config: dict[str, str], _environment: Any) -> Any:
        asked.append((url, config))
        return SimpleNamespace(has_running_jobs=lambda _runner: False)

    monkeypatch.setattr("clients.gitlab.GitLab", gitlab)
    provider = _JobsEndedProvider()
    provider.configure(own(gitlab__token="glpat-own", gitlab__baseUrl="https://stranger.example"))
    shared = {"baseUrl": "https://gitlab.example/api/v4/"}
    provider.delete("7", {"runner": "7", "grace": 600, "gitlab": shared})
    assert asked == [("https://gitlab.example", shared | {"token": "glpat-own"})]
