"""What the dynamic providers compare, what is stored of them, and which cloud they speak to: no engine, no network."""

import base64
import pickle
import pickletools
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pulumi.dynamic import ConfigureRequest
from pulumi.dynamic import Resource as DynamicResource
from pulumi.dynamic.config import Config
from pulumi.dynamic.dynamic import serialize_provider

import components
from clients.ssh import SSH_FAILED, Answer
from components.declared_rules import _DeclaredRulesProvider
from components.drain import _DrainProvider
from components.dynamic import Provider, provider
from components.handover import _HandoverProvider
from components.host_key import _HostKeyProvider
from components.jobs_ended import _JobsEndedProvider
from components.workers import _WorkersProvider

LAYERS = {"cloud": "prod", "region": "shared"}
Asked = list[dict[str, str]]
# What version 0.1.0 stored of each provider. Such states live on: what they name has to stay where it was.
STORED_BY_0_1_0 = {
    "docker:Drain": "gASVKgAAAAAAAACMEGNvbXBvbmVudHMuZHJhaW6UjA5fRHJhaW5Qcm92aWRlcpSTlCmBlC4=",
    "docker:Handover": "gASVMAAAAAAAAACME2NvbXBvbmVudHMuaGFuZG92ZXKUjBFfSGFuZG92ZXJQcm92aWRlcpSTlCmBlC4=",
    "gitlab:JobsEnded": "gASVMwAAAAAAAACMFWNvbXBvbmVudHMuam9ic19lbmRlZJSMEl9Kb2JzRW5kZWRQcm92aWRlcpSTlCmBlC4=",
    "openstack:DeclaredRules": (
        "gASVOwAAAAAAAACMGWNvbXBvbmVudHMuZGVjbGFyZWRfcnVsZXOUjBZfRGVjbGFyZWRSdWxlc1Byb3ZpZGVylJOUKYGULg=="
    ),
    "openstack:Workers": "gASVLgAAAAAAAACMEmNvbXBvbmVudHMud29ya2Vyc5SMEF9Xb3JrZXJzUHJvdmlkZXKUk5QpgZQu",
    "ssh:HostKey": "gASVLwAAAAAAAACME2NvbXBvbmVudHMuaG9zdF9rZXmUjBBfSG9zdEtleVByb3ZpZGVylJOUKYGULg==",
}
KEY = {"private_key": "-----BEGIN OPENSSH PRIVATE KEY-----", "public_key": "ssh-ed25519 AAAA"}


def kinds() -> dict[str, type[DynamicResource]]:
    """The dynamic resources of the program, by the kind that states know."""
    for file in Path(components.__path__[0]).glob("*.py"):
        import_module(f"components.{file.stem}")
    found = [class_ for class_ in DynamicResource.__subclasses__() if class_.__module__.startswith("components.")]
    return {class_._resource_type_name.removeprefix("dynamic/"): class_ for class_ in found}


def test_each_dynamic_resource_has_a_provider_by_its_kind() -> None:
    assert kinds()
    for kind, resource in kinds().items():
        assert type(provider(kind)).__module__ == resource.__module__


def test_a_provider_is_stored_by_the_one_public_name_and_its_kind() -> None:
    for kind in kinds():
        stored = base64.b64decode(serialize_provider(provider(kind)))
        words = [value for _, value, _ in pickletools.genops(stored) if isinstance(value, str)]
        assert words == ["components.dynamic", "provider", kind]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_provider_stored_in_any_protocol_is_loaded(protocol: int) -> None:
    for kind in kinds():
        assert type(pickle.loads(pickle.dumps(provider(kind), protocol))) is type(provider(kind))


@pytest.mark.parametrize("kind", STORED_BY_0_1_0)
def test_a_provider_stored_by_0_1_0_is_loaded(kind: str) -> None:
    assert type(pickle.loads(base64.b64decode(STORED_BY_0_1_0[kind]))) is type(provider(kind))


# Each with what is declared, what it found, and the property that says which thing it is about.
PROVIDERS: list[tuple[Provider, dict[str, Any], dict[str, Any], str | None]] = [
    (_HostKeyProvider(), {}, KEY, None),
    (_HandoverProvider(), {"managers": {"app": "id"}, "grace": 600.0}, {}, None),
    (_DrainProvider(), {"server": "id", "grace": 600.0, "cloud": LAYERS}, {}, "server"),
    (_JobsEndedProvider(), {"runner": "7", "grace": 600.0, "gitlab": LAYERS}, {}, "runner"),
    (_WorkersProvider(), {"group": "id", "cloud": LAYERS}, {}, "group"),
    (_DeclaredRulesProvider(), {"group": "id", "rules": ["a"], "cloud": LAYERS}, {"undeclared": {}}, "group"),
]


@pytest.mark.parametrize(("asked", "declared", "found", "_thing"), PROVIDERS)
def test_how_a_provider_is_stored_is_no_change(
    asked: Provider, declared: dict[str, Any], found: dict[str, Any], _thing: str | None
) -> None:
    olds = {**declared, **found, "__provider": "as it was stored"}
    assert not asked.diff("id", olds, {**declared, "__provider": "as it is stored now"}).changes


@pytest.mark.parametrize(("asked", "declared", "found", "thing"), [case for case in PROVIDERS if case[-1] is not None])
def test_another_thing_is_a_replacement_and_all_else_an_update(
    asked: Provider, declared: dict[str, Any], found: dict[str, Any], thing: str
) -> None:
    olds = declared | found
    assert asked.diff("id", olds, declared | {thing: "another"}).replaces == [thing]
    less = {key: value for key, value in declared.items() if value is not LAYERS}
    for news in (declared | {"added": "by a later version"}, less):
        result = asked.diff("id", olds, news)
        assert (result.changes, result.replaces) == (True, [])


def test_the_order_of_rules_is_no_change_and_one_that_nobody_declared_is() -> None:
    asked, declared = _DeclaredRulesProvider(), {"group": "id", "rules": ["a", "b"]}
    assert not asked.diff("id", declared | {"undeclared": {}}, declared | {"rules": ["b", "a"]}).changes
    assert asked.diff("id", declared | {"undeclared": {"c": "ingress"}}, declared).changes


def test_an_update_keeps_a_host_key() -> None:
    assert _HostKeyProvider().update("id", {**KEY, "__provider": "old"}, {"__provider": "new"}).outs == KEY


def test_a_host_key_that_an_earlier_version_lost_is_made_anew() -> None:
    result = _HostKeyProvider().diff("id", {"__provider": "old"}, {"__provider": "new"})
    assert (result.changes, result.replaces) == (True, ["private_key", "public_key"])


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
    async def unreachable(*_arguments: Any, held: bool) -> Answer:
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


@pytest.mark.parametrize(("stack", "url"), [("payments-dev", "https://gitlab.dev"), ("dev", "https://own.example")])
def test_where_the_layers_say_nothing_the_environment_does(
    monkeypatch: pytest.MonkeyPatch, stack: str, url: str
) -> None:
    asked = []

    def gitlab(url: str, _config: dict[str, str], _environment: Any) -> Any:
        asked.append(url)
        return SimpleNamespace(has_running_jobs=lambda _runner: False)

    monkeypatch.setattr("clients.gitlab.GitLab", gitlab)
    monkeypatch.setenv("GITLAB_BASE_URL", "https://gitlab.dev/api/v4/")
    provider = _JobsEndedProvider()
    provider.configure(own(gitlab__baseUrl="https://own.example/api/v4/"))
    provider.delete("7", {"runner": "7", "grace": 600, "gitlab": None, "stack": stack})
    assert asked == [url]
