"""The stand-in plugins plan and act as the official ones: from data, and against the sandbox's clouds and engine."""

import asyncio
import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pulumi.provider.experimental import provider
from pulumi.provider.experimental.property_value import PropertyValue

from sandbox import engine as engine_module
from sandbox.gitlab import gitlab_app
from sandbox.gitlab import seed as seed_gitlab
from sandbox.openstack import openstack_app
from sandbox.openstack import seed as seed_openstack
from sandbox.plugins import install
from sandbox.plugins.common import NamedCheckRequest, PartialError, Plugin, PluginError
from sandbox.plugins.docker import ssh
from sandbox.plugins.docker.plugin import Docker
from sandbox.plugins.gitlab import GitLab
from sandbox.plugins.openstack.plugin import OpenStack
from sandbox.plugins.values import UNKNOWN, plain_map, property_map
from sandbox.store import Store
from sandbox.vm import VirtualMachine

CONTAINER = "docker:index/container:Container"
IMAGE = "docker:index/remoteImage:RemoteImage"
VOLUME = "docker:index/volume:Volume"
RUNNER = "gitlab:index/userRunner:UserRunner"
INSTANCE = "openstack:compute/instance:Instance"
KEYPAIR = "openstack:compute/keypair:Keypair"
SERVER_GROUP = "openstack:compute/serverGroup:ServerGroup"
FLOATING_IP = "openstack:networking/floatingIp:FloatingIp"
ASSOCIATION = "openstack:networking/floatingIpAssociate:FloatingIpAssociate"
PORT = "openstack:networking/port:Port"
GROUP = "openstack:networking/secGroup:SecGroup"
RULE = "openstack:networking/secGroupRule:SecGroupRule"
DISK = "openstack:blockstorage/volume:Volume"
BUCKET = "openstack:objectstorage/container:Container"
APPLICATION_CREDENTIAL = "openstack:identity/applicationCredential:ApplicationCredential"
EC2 = "openstack:identity/ec2CredentialV3:Ec2CredentialV3"
TIMEOUT_S = 20

Plain = dict[str, Any]


class Client:
    """What the engine asks of a plugin, in plain values."""

    def __init__(self, plugin: Plugin, **config: Any) -> None:
        self.plugin = plugin
        asyncio.run(plugin.configure(provider.ConfigureRequest({}, property_map(config), True, True)))

    def check(self, token: str, inputs: Plain, old: Plain | None = None, seed: bytes = b"") -> provider.CheckResponse:
        request = NamedCheckRequest(urn(token), property_map(old or {}), property_map(inputs), seed)
        return asyncio.run(self.plugin.check(request))

    def checked(self, token: str, inputs: Plain, old: Plain | None = None) -> Plain:
        answer = self.check(token, inputs, old)
        assert not answer.failures, texts(answer)
        return plain_map(answer.inputs or {})

    def reasons(self, token: str, inputs: Plain) -> list[str]:
        return texts(self.check(token, inputs))

    def diff(self, token: str, state: Plain, inputs: Plain) -> provider.DiffResponse:
        return asyncio.run(
            self.plugin.diff(provider.DiffRequest(urn(token), "id", property_map(state), property_map(inputs), []))
        )

    def plan(self, token: str, state: Plain, inputs: Plain) -> str:
        """`same`, `update: ...` or `replace: ...` with what is the reason."""
        answer = self.diff(token, state, inputs)
        if not answer.changes:
            return "same"
        return f"replace: {' '.join(answer.replaces)}" if answer.replaces else f"update: {' '.join(answer.diffs)}"

    def create(self, token: str, inputs: Plain, preview: bool = False) -> tuple[str, Plain]:
        request = provider.CreateRequest(urn(token), property_map(self.checked(token, inputs)), 0, preview)
        answer = asyncio.run(self.plugin.create(request))
        return answer.resource_id or "", plain_map(answer.properties)

    def read(self, token: str, id: str, state: Plain, inputs: Plain) -> tuple[str, Plain, Plain]:
        request = provider.ReadRequest(urn(token), id, property_map(state), property_map(inputs))
        answer = asyncio.run(self.plugin.read(request))
        return answer.resource_id or "", plain_map(answer.properties), plain_map(answer.inputs)

    def update(self, token: str, id: str, state: Plain, inputs: Plain) -> Plain:
        news = property_map(self.checked(token, inputs, old=inputs))
        request = provider.UpdateRequest(urn(token), id, property_map(state), news, 0, [], False)
        return plain_map(asyncio.run(self.plugin.update(request)).properties)

    def delete(self, token: str, id: str, state: Plain) -> None:
        asyncio.run(self.plugin.delete(provider.DeleteRequest(urn(token), id, property_map(state), 0)))

    def invoke(self, token: str, arguments: Plain) -> Plain:
        answer = asyncio.run(self.plugin.invoke(provider.InvokeRequest(token, property_map(arguments))))
        return plain_map(answer.return_value or {})


def texts(answer: provider.CheckResponse) -> list[str]:
    return [f"{failure.property} {failure.reason}" for failure in answer.failures or []]


def urn(token: str) -> str:
    # As in the program, where components are the parents of resources.
    return f"urn:pulumi:test::project::project:index:Component${token}::thing"


@pytest.fixture(scope="module")
def openstack() -> Client:
    """Configured, and never asked for anything that needs a cloud."""
    return Client(OpenStack())


@pytest.fixture(scope="module")
def gitlab() -> Client:
    return Client(GitLab())


@pytest.fixture(scope="module")
def docker() -> Client:
    return Client(Docker(), host="ssh://nobody@127.0.0.1:9")


# Plans


SERVER: Plain = {
    "name": "vm",
    "imageId": "image-1",
    "flavorId": "2",
    "keyPair": "key",
    "networks": [{"port": "port-1"}],
    "metadata": {"a": "1"},
    "tags": ["x", "y"],
    "userData": "#cloud-config\n",
    "configDrive": True,
    "availabilityZone": "nova",
    "schedulerHints": [{"group": "group-1"}],
}


@pytest.mark.parametrize(
    ("change", "plan"),
    [
        ({}, "same"),
        ({"tags": ["y", "x"]}, "same"),
        ({"imageId": "image-2"}, "update: imageId"),
        ({"flavorId": "3"}, "update: flavorId"),
        ({"metadata": {"a": "2"}}, "update: metadata"),
        ({"metadata": None}, "update: metadata"),
        ({"tags": ["x"]}, "update: tags"),
        ({"name": "other"}, "update: name"),
        ({"stopBeforeDestroy": True}, "update: stopBeforeDestroy"),
        ({"powerState": "shutoff"}, "update: powerState"),
        ({"userData": "#cloud-config\nruncmd: []\n"}, "replace: userData"),
        ({"keyPair": "other"}, "replace: keyPair"),
        ({"networks": [{"port": "port-2"}]}, "replace: networks"),
        ({"networks": [{"port": UNKNOWN}]}, "replace: networks"),
        ({"availabilityZone": "other"}, "replace: availabilityZone"),
        ({"availabilityZone": None}, "same"),
        ({"configDrive": False}, "replace: configDrive"),
        ({"schedulerHints": [{"group": "group-2"}]}, "replace: schedulerHints"),
        ({"blockDevices": [{"sourceType": "image", "uuid": "u", "volumeSize": 9}]}, "replace: blockDevices"),
    ],
)
def test_a_server_is_changed_in_place_or_replaced(openstack: Client, change: Plain, plan: str) -> None:
    _, planned = openstack.create(INSTANCE, SERVER, preview=True)
    # What Nova adds to what was asked for.
    state = planned | {
        "networks": [{"port": "port-1", "uuid": "net", "name": "net", "mac": "m", "accessNetwork": False}],
        "securityGroups": ["default"],
        "imageName": "debian",
        "flavorName": "m1.small",
    }
    inputs = openstack.checked(INSTANCE, {k: v for k, v in {**SERVER, **change}.items() if v is not None})
    assert openstack.plan(INSTANCE, state, inputs) == plan


CONTAINER_INPUTS: Plain = {
    "name": "runner",
    "image": "sha256:1",
    "restart": "always",
    "envs": ["A=1", "B=2"],
    "labels": [{"label": "x", "value": "1"}, {"label": "y", "value": "2"}],
    "volumes": [{"volumeName": "v", "containerPath": "/v"}],
    "uploads": [{"file": "/etc/config.toml", "content": "a"}],
    "logOpts": {"max-size": "10m"},
    "stopSignal": "SIGQUIT",
    "destroyGraceSeconds": 10,
}


@pytest.mark.parametrize(
    ("change", "plan"),
    [
        ({}, "same"),
        ({"envs": ["B=2", "A=1"]}, "same"),
        ({"labels": CONTAINER_INPUTS["labels"][::-1]}, "same"),
        ({"uploads": [{"file": "/etc/config.toml", "content": "a", "executable": False}]}, "same"),
        ({"restart": "no"}, "update: restart"),
        ({"restart": None}, "update: restart"),
        ({"memory": 100}, "update: memory"),
        ({"mustRun": False}, "update: mustRun"),
        ({"destroyGraceSeconds": 20}, "update: destroyGraceSeconds"),
        ({"wait": True}, "update: wait"),
        ({"healthcheck": {"tests": ["CMD", "true"]}}, "replace: healthcheck"),
        ({"stopSignal": None}, "same"),
        ({"stopSignal": "SIGTERM"}, "replace: stopSignal"),
        ({"stopTimeout": 5}, "replace: stopTimeout"),
        ({"image": "sha256:2"}, "replace: image"),
        ({"image": UNKNOWN}, "replace: image"),
        ({"envs": ["A=1"]}, "replace: envs"),
        ({"uploads": [{"file": "/etc/config.toml", "content": "b"}]}, "replace: uploads"),
        ({"uploads": None}, "replace: uploads"),
        ({"labels": [{"label": "x", "value": "1"}]}, "replace: labels"),
        ({"volumes": [{"volumeName": "w", "containerPath": "/v"}]}, "replace: volumes"),
        ({"logOpts": {"max-size": "20m"}}, "replace: logOpts"),
        ({"privileged": True}, "replace: privileged"),
        ({"networkMode": "host"}, "replace: networkMode"),
    ],
)
def test_a_container_is_changed_in_place_or_replaced(docker: Client, change: Plain, plan: str) -> None:
    _, state = docker.create(CONTAINER, CONTAINER_INPUTS, preview=True)
    inputs = docker.checked(CONTAINER, {k: v for k, v in {**CONTAINER_INPUTS, **change}.items() if v is not None})
    assert docker.plan(CONTAINER, state, inputs) == plan
    # pulumi-docker says so of containers, whatever their name is.
    assert docker.diff(CONTAINER, state, inputs).delete_before_replace == plan.startswith("replace")


@pytest.mark.parametrize(
    ("change", "plan"),
    [
        ({}, "same"),
        ({"tagLists": ["b", "a"]}, "same"),
        ({"description": None}, "same"),
        ({"description": "other"}, "update: description"),
        ({"tagLists": ["a"]}, "update: tagLists"),
        ({"paused": True}, "update: paused"),
        ({"maximumTimeout": 7200}, "update: maximumTimeout"),
        ({"projectId": 2}, "replace: projectId"),
        ({"runnerType": "group_type", "groupId": 1, "projectId": None}, "replace: groupId projectId runnerType"),
    ],
)
def test_a_runner_is_changed_in_place_or_replaced(gitlab: Client, change: Plain, plan: str) -> None:
    inputs = {"runnerType": "project_type", "projectId": 1, "description": "d", "tagLists": ["a", "b"], "paused": False}
    _, state = gitlab.create(RUNNER, inputs, preview=True)
    news = gitlab.checked(RUNNER, {k: v for k, v in {**inputs, **change}.items() if v is not None})
    assert gitlab.plan(RUNNER, state, news) == plan


@pytest.mark.parametrize(
    ("token", "inputs", "change", "plan"),
    [
        (KEYPAIR, {"publicKey": "ssh-ed25519 A"}, {"publicKey": "ssh-ed25519 B"}, "replace: publicKey"),
        (SERVER_GROUP, {"policies": "anti-affinity"}, {"policies": "soft-anti-affinity"}, "replace: policies"),
        (GROUP, {"description": "a"}, {"description": "b"}, "update: description"),
        (GROUP, {"deleteDefaultRules": True}, {"deleteDefaultRules": False}, "replace: deleteDefaultRules"),
        (PORT, {"networkId": "n", "securityGroupIds": ["a"]}, {"securityGroupIds": ["b"]}, "update: securityGroupIds"),
        (PORT, {"networkId": "n", "tags": ["a"]}, {"tags": ["b"]}, "update: tags"),
        (PORT, {"networkId": "n"}, {"networkId": "m"}, "replace: networkId"),
        (FLOATING_IP, {"pool": "public", "description": "a"}, {"description": "b"}, "update: description"),
        (FLOATING_IP, {"pool": "public"}, {"pool": "other"}, "replace: pool"),
        (ASSOCIATION, {"floatingIp": "1.2.3.4", "portId": "p"}, {"portId": "q"}, "update: portId"),
        (ASSOCIATION, {"floatingIp": "1.2.3.4", "portId": "p"}, {"floatingIp": "1.2.3.5"}, "replace: floatingIp"),
        (
            RULE,
            {"direction": "ingress", "ethertype": "IPv4", "securityGroupId": "g", "remoteIpPrefix": "10.0.0.0/8"},
            {"remoteIpPrefix": "10.1.0.0/16"},
            "replace: remoteIpPrefix",
        ),
    ],
)
def test_other_resources_of_the_cloud(openstack: Client, token: str, inputs: Plain, change: Plain, plan: str) -> None:
    old = openstack.checked(token, inputs)
    request = provider.CreateRequest(urn(token), property_map(old), 0, True)
    state = plain_map(asyncio.run(openstack.plugin.create(request)).properties)
    assert openstack.plan(token, state, openstack.checked(token, inputs, old)) == "same"
    assert openstack.plan(token, state, openstack.checked(token, {**inputs, **change}, old)) == plan


@pytest.mark.parametrize(
    ("token", "change", "plan"),
    [
        (VOLUME, {"labels": [{"label": "a", "value": "b"}]}, "replace: labels"),
        (VOLUME, {"driver": "other"}, "replace: driver"),
        (IMAGE, {"name": "busybox:2"}, "replace: name"),
        (IMAGE, {"keepLocally": True}, "update: keepLocally"),
        (IMAGE, {"pullTriggers": ["x"]}, "replace: pullTriggers"),
    ],
)
def test_volumes_and_images(docker: Client, token: str, change: Plain, plan: str) -> None:
    inputs = {"name": "busybox:1" if token == IMAGE else "v", "driver": "local"}
    if token == IMAGE:
        del inputs["driver"]
    _, state = docker.create(token, inputs, preview=True)
    assert docker.plan(token, state, docker.checked(token, inputs)) == "same"
    assert docker.plan(token, state, docker.checked(token, {**inputs, **change})) == plan


def test_a_name_that_the_program_chose_makes_the_old_resource_go_first(openstack: Client) -> None:
    for name, first in (({"name": "mine"}, True), ({}, False)):
        inputs = openstack.checked(KEYPAIR, {"publicKey": "a", **name})
        news = openstack.checked(KEYPAIR, {"publicKey": "b", **name}, old=inputs)
        answer = openstack.diff(KEYPAIR, {"publicKey": "a", "name": inputs["name"]}, news)
        assert (answer.replaces, answer.delete_before_replace) == (["publicKey"], first)


# Names


def test_a_name_is_made_once_and_kept_until_a_replacement(openstack: Client) -> None:
    first = openstack.checked(PORT, {"networkId": "n"})
    assert first["name"].startswith("thing-")
    assert len(first["name"]) == len("thing-") + 7
    assert openstack.checked(PORT, {"networkId": "m"}, old=first)["name"] == first["name"]
    assert openstack.checked(PORT, {"networkId": "n"})["name"] != first["name"]
    names = [plain_map(openstack.check(PORT, {"networkId": "n"}, seed=b"s").inputs or {})["name"] for _ in range(2)]
    assert names[0] == names[1]


def test_the_stacks_naming_configuration_counts(openstack: Client) -> None:
    request = NamedCheckRequest(urn(GROUP), {}, {}, b"")
    request.proposed_name = "prefix-thing"
    assert plain_map(asyncio.run(openstack.plugin.check(request)).inputs or {})["name"] == "prefix-thing"
    request.naming_disabled = True
    failures = asyncio.run(openstack.plugin.check(request)).failures
    assert [failure.property for failure in failures or []] == ["name"]


# Refusals


def test_inputs_that_are_wrong_are_refused_with_the_reason(docker: Client, gitlab: Client, openstack: Client) -> None:
    assert docker.reasons(CONTAINER, {"image": "i", "colour": "red"}) == [
        "colour is not a property that the provider knows"
    ]
    assert docker.reasons(CONTAINER, {}) == ["image is required and missing"]
    assert docker.reasons(CONTAINER, {"image": "i", "exitCode": 1}) == ["exitCode is not an input"]
    assert docker.reasons(CONTAINER, {"image": "i", "memory": "1g"}) == ["memory must be an integer, not '1g'"]
    assert docker.reasons(CONTAINER, {"image": "i", "volumes": [{"path": "/x"}]}) == [
        "volumes[0].path is not a property that the provider knows"
    ]
    assert docker.reasons(CONTAINER, {"image": "i", "gpus": "all"}) == [
        "gpus is not implemented by the stand-in for the official docker plugin"
    ]
    assert docker.reasons(CONTAINER, {"image": "i", "restart": "often"}) == [
        "restart must be one of no, on-failure, always, unless-stopped, not 'often'"
    ]
    assert docker.reasons(CONTAINER, {"image": "i", "uploads": [{"file": "/f"}]}) == [
        "uploads[0] needs exactly one of content, contentBase64 and source"
    ]
    assert gitlab.reasons(RUNNER, {"runnerType": "team_type"}) == [
        "runnerType must be instance_type, group_type or project_type, not 'team_type'"
    ]
    assert gitlab.reasons(RUNNER, {"runnerType": "group_type"}) == [
        "groupId is required for a runner of type group_type"
    ]
    assert gitlab.reasons(RUNNER, {"runnerType": "instance_type", "maximumTimeout": 60}) == [
        "maximumTimeout must be at least 600, not 60"
    ]
    assert openstack.reasons(INSTANCE, {"networks": [], "networkMode": "auto"}) == [
        "networkMode conflicts with networks"
    ]


def test_types_and_look_ups_that_are_not_implemented_are_named(docker: Client) -> None:
    with pytest.raises(PluginError, match="docker:index/network:Network is not implemented by the stand-in"):
        docker.check("docker:index/network:Network", {})
    with pytest.raises(PluginError, match="look-up docker:index/getNetwork:getNetwork is not implemented"):
        docker.invoke("docker:index/getNetwork:getNetwork", {})


def test_configuration_is_checked_and_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///somewhere.sock")

    def check(**config: Any) -> provider.CheckResponse:
        return asyncio.run(Docker().check_config(provider.CheckRequest("urn", {}, property_map(config), b"")))

    assert plain_map(check().inputs or {}) == {"host": "unix:///somewhere.sock"}
    # The SDK sends all but strings as JSON texts.
    assert not check(sshOpts='["-F", "/x"]', disableDockerDaemonCheck="true").failures
    kept = {"host": "x", "sshOpts": r'["-o","A=\u003cb\u003e"]'}
    assert plain_map(check(host="x", sshOpts='["-o", "A=<b>"]').inputs or {}) == kept
    assert texts(check(sshopts="[]", registryAuth="[]")) == ["sshopts is not a property that the provider knows"]
    with pytest.raises(PluginError, match="configuring the docker provider: context is not implemented"):
        Client(Docker(), context="other")


# Secrets and unknown values


def test_secrets_stay_secret(docker: Client, gitlab: Client) -> None:
    upload = {"file": PropertyValue("/f"), "content": PropertyValue("hidden", is_secret=True)}
    inputs = property_map({"image": "i", "name": "c"}) | {"uploads": PropertyValue([PropertyValue(upload)])}
    checked = asyncio.run(docker.plugin.check(provider.CheckRequest(urn(CONTAINER), {}, inputs, b""))).inputs or {}
    assert checked["uploads"].contains_secret()
    planned = asyncio.run(docker.plugin.create(provider.CreateRequest(urn(CONTAINER), checked, 0, True))).properties
    assert planned["uploads"].is_secret
    assert not planned["image"].contains_secret()
    request = provider.CreateRequest(urn(RUNNER), property_map({"runnerType": "instance_type"}), 0, True)
    assert asyncio.run(gitlab.plugin.create(request)).properties["token"].is_secret


def test_a_preview_tells_what_only_the_update_can_know(openstack: Client) -> None:
    _, planned = openstack.create(PORT, {"networkId": UNKNOWN, "tags": ["a"]}, preview=True)
    assert (planned["networkId"], planned["tags"], planned["allFixedIps"]) == (UNKNOWN, ["a"], UNKNOWN)
    _, planned = openstack.create(INSTANCE, SERVER, preview=True)
    assert planned["accessIpV4"] is UNKNOWN
    # As in the official provider, the state has no more of user data than its hash.
    assert planned["userData"] == hashlib.sha1(SERVER["userData"].encode(), usedforsecurity=False).hexdigest()


# GitLab


@contextlib.contextmanager
def served(application: web.Application, listener: socket.socket) -> Iterator[None]:
    """Serve an application in a thread of its own."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(application)

    async def start() -> None:
        await runner.setup()
        await web.SockSite(runner, listener).start()

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(TIMEOUT_S)
        loop.close()


@pytest.fixture(scope="module")
def gitlab_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    store = Store(tmp_path_factory.mktemp("gitlab") / "store.sqlite")
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with served(gitlab_app(store, lambda: url), listener):
        yield Client(GitLab(), baseUrl=f"{url}/api/v4", token=seed_gitlab(store).platform)
    store.close()


def test_the_life_of_a_runner(gitlab_cloud: Client) -> None:
    inputs = {"runnerType": "project_type", "projectId": 100, "tagLists": ["b", "a"], "maximumTimeout": 3600}
    id, state = gitlab_cloud.create(RUNNER, inputs)
    assert state["token"].startswith("glrt-")
    assert (state["paused"], state["untagged"], state["accessLevel"]) == (False, True, "not_protected")
    assert gitlab_cloud.plan(RUNNER, state, inputs) == "same"

    changed = {**inputs, "paused": True, "description": "new"}
    assert gitlab_cloud.plan(RUNNER, state, changed) == "update: description paused"
    updated = gitlab_cloud.update(RUNNER, id, state, changed)
    assert (updated["paused"], updated["description"], updated["token"]) == (True, "new", state["token"])

    # Somebody changes it in the web page: the refresh takes it over, and the next plan puts it back.
    gitlab_cloud.update(RUNNER, id, updated, {**changed, "description": "drift"})
    _, drifted, drifted_inputs = gitlab_cloud.read(RUNNER, id, updated, changed)
    assert (drifted["description"], drifted_inputs["description"]) == ("drift", "drift")
    assert drifted["tagLists"] == inputs["tagLists"]
    assert gitlab_cloud.plan(RUNNER, drifted, changed) == "update: description"

    imported_id, imported, imported_inputs = gitlab_cloud.read(RUNNER, id, {}, {})
    assert imported_id == id
    assert "token" not in imported
    assert imported_inputs["runnerType"] == "project_type"
    assert gitlab_cloud.plan(RUNNER, imported, {**changed, "description": "drift"}) == "same"

    gitlab_cloud.delete(RUNNER, id, updated)
    assert gitlab_cloud.read(RUNNER, id, updated, changed)[0] == ""
    gitlab_cloud.delete(RUNNER, id, updated)


def test_what_gitlab_refuses_is_told(gitlab_cloud: Client) -> None:
    with pytest.raises(PluginError, match=r"creating thing \(gitlab:index/userRunner:UserRunner\): GitLab answered: "):
        gitlab_cloud.create(RUNNER, {"runnerType": "project_type", "projectId": 12345})


def test_the_current_user_is_looked_up(gitlab_cloud: Client) -> None:
    assert gitlab_cloud.invoke("gitlab:index/getCurrentUser:getCurrentUser", {})["username"] == "platform"


# OpenStack


class NoMachines:
    """Machines that are there at once and do nothing."""

    async def boot(self, vm: VirtualMachine) -> None:
        return

    async def shutdown(self, id: str) -> None:
        return

    async def wipe(self, id: str) -> None:
        return

    async def set_addresses(self, id: str, addresses: list[str]) -> None:
        return

    def console(self, id: str) -> str:
        return ""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    store = Store(tmp_path_factory.mktemp("openstack") / "store.sqlite")
    credentials = seed_openstack(store)
    listener = socket.create_server(("127.0.0.1", 0))
    with served(openstack_app(store, NoMachines()), listener):
        yield Client(
            OpenStack(),
            authUrl=f"http://127.0.0.1:{listener.getsockname()[1]}/identity/v3",
            userName=credentials.username,
            password=credentials.password,
            tenantName=credentials.project,
            userDomainName="Default",
            projectDomainName="Default",
            region="RegionOne",
        )
    store.close()


@pytest.fixture(scope="module")
def image(cloud: Client) -> str:
    return str(cloud.invoke("openstack:images/getImage:getImage", {"name": "debian-13"})["id"])


@pytest.fixture(scope="module")
def network(cloud: Client) -> str:
    return str(cloud.invoke("openstack:networking/getNetwork:getNetwork", {"name": "runners"})["id"])


def unchanged(client: Client, token: str, id: str, state: Plain, inputs: Plain) -> None:
    """A second run of the same program changes nothing, with and without a refresh before."""
    assert client.plan(token, state, inputs) == "same"
    read_id, read, read_inputs = client.read(token, id, state, inputs)
    assert (read_id, read_inputs) == (id, inputs)
    assert client.plan(token, read, inputs) == "same"


def test_the_life_of_a_server(cloud: Client, image: str, network: str) -> None:
    key_inputs = {
        "name": "key",
        "publicKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHFNoIRoyCrqHTSXfg2zVxkLPCuHqD8DMh5S/y0Ek5kD",
    }
    key, key_state = cloud.create(KEYPAIR, key_inputs)
    unchanged(cloud, KEYPAIR, key, key_state, key_inputs)
    assert key == "key"

    group, group_state = cloud.create(SERVER_GROUP, {"policies": "soft-anti-affinity", "name": "apart"})
    unchanged(cloud, SERVER_GROUP, group, group_state, {"policies": "soft-anti-affinity", "name": "apart"})

    firewall_inputs = {"name": "vm", "deleteDefaultRules": True, "description": "d", "tags": ["b", "a"]}
    firewall, firewall_state = cloud.create(GROUP, firewall_inputs)
    unchanged(cloud, GROUP, firewall, firewall_state, firewall_inputs)
    assert firewall_state["allTags"] == ["a", "b"]

    rule_inputs = {
        "direction": "ingress",
        "ethertype": "IPv4",
        "protocol": "tcp",
        "portRangeMin": 22,
        "portRangeMax": 22,
        "remoteIpPrefix": "192.0.2.0/24",
        "securityGroupId": firewall,
    }
    rule, rule_state = cloud.create(RULE, rule_inputs)
    unchanged(cloud, RULE, rule, rule_state, rule_inputs)

    port_inputs = {
        "name": "port",
        "networkId": network,
        "securityGroupIds": [firewall],
        "description": "d",
        "tags": ["gitlab-runners"],
    }
    port, port_state = cloud.create(PORT, port_inputs)
    unchanged(cloud, PORT, port, port_state, port_inputs)
    assert port_state["allSecurityGroupIds"] == [firewall]
    address = port_state["allFixedIps"][0]

    inputs = {
        "name": "vm",
        "imageId": image,
        "flavorId": "2",
        "keyPair": "key",
        "networks": [{"port": port}],
        "metadata": {"a": "1"},
        "tags": ["x"],
        "userData": "#cloud-config\n{}\n",
        "schedulerHints": [{"group": group}],
    }
    server, state = cloud.create(INSTANCE, inputs)
    unchanged(cloud, INSTANCE, server, state, inputs)
    assert (state["accessIpV4"], state["powerState"], state["flavorName"]) == (address, "active", "m1.small")
    assert state["networks"][0]["name"] == "runners"
    # The port's device and owner are Nova's now, and no change for it.
    unchanged(cloud, PORT, port, cloud.read(PORT, port, port_state, port_inputs)[1], port_inputs)

    other = cloud.invoke("openstack:images/getImage:getImage", {"name": "ubuntu-24.04"})["id"]
    news = {**inputs, "name": "vm-2", "imageId": other, "flavorId": "3", "metadata": {"b": "2"}, "tags": ["y"]}
    assert cloud.plan(INSTANCE, state, news) == "update: flavorId imageId metadata name tags"
    state = cloud.update(INSTANCE, server, state, news)
    unchanged(cloud, INSTANCE, server, state, news)
    assert (state["imageName"], state["flavorName"], state["allMetadata"]) == ("ubuntu-24.04", "m1.medium", {"b": "2"})

    stopped = cloud.update(INSTANCE, server, state, {**news, "powerState": "shutoff"})
    assert stopped["powerState"] == "shutoff"
    assert cloud.plan(INSTANCE, stopped, news) == "update: powerState"

    imported_id, imported, _ = cloud.read(INSTANCE, server, {}, {})
    assert (imported_id, imported["metadata"], imported["networks"][0]["fixedIpV4"]) == (server, {"b": "2"}, address)

    floating, floating_state = cloud.create(FLOATING_IP, {"pool": "public", "description": "d", "tags": ["t"]})
    unchanged(cloud, FLOATING_IP, floating, floating_state, {"pool": "public", "description": "d", "tags": ["t"]})
    way_inputs = {"floatingIp": floating_state["address"], "portId": port}
    way, way_state = cloud.create(ASSOCIATION, way_inputs)
    unchanged(cloud, ASSOCIATION, way, way_state, way_inputs)
    # The association is another resource's concern.
    unchanged(cloud, FLOATING_IP, floating, floating_state, {"pool": "public", "description": "d", "tags": ["t"]})

    for token, id, old in (
        (ASSOCIATION, way, way_state),
        (FLOATING_IP, floating, floating_state),
        (INSTANCE, server, state),
        (PORT, port, port_state),
        (RULE, rule, rule_state),
        (GROUP, firewall, firewall_state),
        (SERVER_GROUP, group, group_state),
        (KEYPAIR, key, key_state),
    ):
        cloud.delete(token, id, old)
        cloud.delete(token, id, old)
        if token != ASSOCIATION:
            assert cloud.read(token, id, old, {})[0] == "", token


def test_the_life_of_a_volume(cloud: Client, image: str, network: str) -> None:
    inputs = {"name": "disk", "size": 20, "description": "d", "metadata": {"a": "1"}, "enableOnlineResize": True}
    disk, state = cloud.create(DISK, inputs)
    unchanged(cloud, DISK, disk, state, inputs)
    assert (state["attachments"], state["volumeType"], state["availabilityZone"]) == ([], "__DEFAULT__", "nova")
    server_inputs = {
        "name": "vm",
        "imageId": image,
        "flavorId": "2",
        "networks": [{"uuid": network}],
        "blockDevices": [
            {"sourceType": "image", "destinationType": "local", "uuid": image, "bootIndex": 0},
            {"sourceType": "volume", "destinationType": "volume", "uuid": disk, "bootIndex": -1},
        ],
    }
    server, server_state = cloud.create(INSTANCE, server_inputs)
    unchanged(cloud, INSTANCE, server, server_state, server_inputs)
    # That it is attached is the server's concern.
    unchanged(cloud, DISK, disk, state, inputs)
    assert cloud.read(DISK, disk, state, inputs)[1]["attachments"][0]["instanceId"] == server

    larger = {**inputs, "size": 30, "metadata": {"a": "2"}}
    assert cloud.plan(DISK, state, larger) == "update: metadata size"
    with pytest.raises(PluginError, match="resizing online is disabled"):
        cloud.update(DISK, disk, state, {**larger, "enableOnlineResize": False})
    state = cloud.update(DISK, disk, state, larger)
    unchanged(cloud, DISK, disk, state, larger)
    with pytest.raises(PluginError, match="New size for extend must be greater than current size"):
        cloud.update(DISK, disk, state, inputs)
    assert cloud.plan(DISK, state, {**larger, "availabilityZone": "other"}) == "replace: availabilityZone"
    assert cloud.plan(DISK, state, {**larger, "volumeType": "ssd"}) == "update: volumeType"

    # One that is still attached is detached first.
    cloud.delete(DISK, disk, state)
    cloud.delete(DISK, disk, state)
    assert cloud.read(DISK, disk, state, {})[0] == ""
    cloud.delete(INSTANCE, server, server_state)


def test_the_life_of_a_bucket(cloud: Client) -> None:
    assert isinstance(cloud.plugin, OpenStack)
    inputs = {"name": "cache", "metadata": {"stack": "a", "kind": "c"}}
    bucket, state = cloud.create(BUCKET, inputs)
    unchanged(cloud, BUCKET, bucket, state, inputs)
    assert (bucket, state["storagePolicy"]) == ("cache", "Policy-0")
    cloud.plugin.cloud.objects("PUT", "/cache/a/b%20c")
    with pytest.raises(PluginError, match="409"):
        cloud.delete(BUCKET, bucket, state)
    forced = {"name": "cache", "metadata": {"stack": "b"}, "forceDestroy": True}
    assert cloud.plan(BUCKET, state, forced) == "update: forceDestroy metadata"
    state = cloud.update(BUCKET, bucket, state, forced)
    headers = cloud.plugin.cloud.objects("HEAD", "/cache")
    assert (headers["X-Container-Meta-Stack"], "X-Container-Meta-Kind" in headers) == ("b", False)
    cloud.delete(BUCKET, bucket, state)
    cloud.delete(BUCKET, bucket, state)
    assert cloud.read(BUCKET, bucket, state, {})[0] == ""


def test_the_life_of_an_ec2_credential(cloud: Client) -> None:
    request = provider.CreateRequest(urn(EC2), property_map({}), 0, False)
    made = asyncio.run(cloud.plugin.create(request))
    assert made.properties["secret"].is_secret
    state = plain_map(made.properties)
    assert made.resource_id == state["access"]
    unchanged(cloud, EC2, state["access"], state, {})
    assert cloud.plan(EC2, state, {"projectId": "another"}) == "replace: projectId"
    cloud.delete(EC2, state["access"], state)
    cloud.delete(EC2, state["access"], state)
    assert cloud.read(EC2, state["access"], state, {})[0] == ""


def test_the_life_of_an_application_credential(cloud: Client) -> None:
    rules = [{"service": "compute", "method": method, "path": "/v2.1/servers"} for method in ("GET", "POST")]
    wanted = {"name": "workers", "roles": ["reader", "member"], "accessRules": rules}
    request = provider.CreateRequest(urn(APPLICATION_CREDENTIAL), property_map(wanted), 0, False)
    made = asyncio.run(cloud.plugin.create(request))
    assert made.properties["secret"].is_secret
    state, id = plain_map(made.properties), str(made.resource_id)
    unchanged(cloud, APPLICATION_CREDENTIAL, id, state, wanted)
    assert cloud.plan(APPLICATION_CREDENTIAL, state, wanted | {"roles": ["member", "reader"]}) == "same"
    assert cloud.plan(APPLICATION_CREDENTIAL, state, wanted | {"roles": ["member"]}) == "replace: roles"
    assert cloud.plan(APPLICATION_CREDENTIAL, state, wanted | {"name": "other"}) == "replace: name"
    assert "accessRules" in cloud.plan(APPLICATION_CREDENTIAL, state, wanted | {"accessRules": rules[:1]})
    cloud.delete(APPLICATION_CREDENTIAL, id, state)
    cloud.delete(APPLICATION_CREDENTIAL, id, state)
    assert cloud.read(APPLICATION_CREDENTIAL, id, state, {})[0] == ""


def test_a_key_pair_without_a_public_key_brings_a_private_one(cloud: Client) -> None:
    request = provider.CreateRequest(urn(KEYPAIR), property_map({"name": "made"}), 0, False)
    made = asyncio.run(cloud.plugin.create(request)).properties
    assert made["privateKey"].is_secret
    assert "PRIVATE KEY" in plain_map(made)["privateKey"]
    cloud.delete(KEYPAIR, "made", {})


def test_what_fails_midway_is_kept_as_if_it_were_done(cloud: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(cloud.plugin, OpenStack)
    call = cloud.plugin.cloud.call

    def failing(service: str, method: str, path: str, **options: Any) -> Plain:
        if path.endswith("/tags"):
            raise ConnectionError("the cloud is away")
        return call(service, method, path, **options)

    def tags(id: str) -> list[str]:
        found: list[str] = call("network", "GET", f"/security-groups/{id}")["security_group"]["tags"]
        return found

    with monkeypatch.context() as patch:
        patch.setattr(cloud.plugin.cloud, "call", failing)
        with pytest.raises(PartialError, match=r"creating thing .*: ConnectionError: the cloud is away") as created:
            cloud.create(GROUP, {"name": "half", "tags": ["a"]})
        id, state = created.value.id, plain_map(created.value.properties)
        # The engine's next update has no difference to bring, and brings none.
        assert cloud.plan(GROUP, state, cloud.checked(GROUP, {"name": "half", "tags": ["a"]})) == "same"
        assert cloud.update(GROUP, id, state, {"name": "half", "tags": ["a"]}) == state
        with pytest.raises(PartialError, match="updating thing") as updated:
            cloud.update(GROUP, id, state, {"name": "half", "tags": ["b"]})
    state = plain_map(updated.value.properties)
    assert cloud.plan(GROUP, state, cloud.checked(GROUP, {"name": "half", "tags": ["b"]})) == "same"
    assert tags(id) == []
    cloud.delete(GROUP, id, state)


def test_a_security_group_that_keeps_its_default_rules_is_lost(cloud: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(cloud.plugin, OpenStack)
    call = cloud.plugin.cloud.call

    def failing(service: str, method: str, path: str, **options: Any) -> Plain:
        if method == "DELETE":
            raise ConnectionError("the cloud is away")
        return call(service, method, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cloud.plugin.cloud, "call", failing)
        with pytest.raises(ConnectionError, match="the cloud is away"):
            cloud.create(GROUP, {"name": "lost", "deleteDefaultRules": True})


def test_what_the_cloud_refuses_is_told(cloud: Client) -> None:
    with pytest.raises(PluginError, match=r"not found|could not be found"):
        cloud.create(PORT, {"networkId": "00000000-0000-0000-0000-000000000000"})
    with pytest.raises(PluginError, match="there is no network named 'nowhere'"):
        cloud.create(FLOATING_IP, {"pool": "nowhere"})


def test_networks_images_and_flavors_are_looked_up(cloud: Client) -> None:
    assert cloud.invoke("openstack:networking/getNetwork:getNetwork", {"name": "runners-geneve"})["mtu"] == 1442
    assert cloud.invoke("openstack:compute/getFlavor:getFlavor", {"vcpus": 2})["name"] == "m1.medium"
    with pytest.raises(PluginError, match="there are 2 candidates: image that fits the query"):
        cloud.invoke("openstack:images/getImage:getImage", {"name": "duplicate"})
    newest = cloud.invoke("openstack:images/getImage:getImage", {"name": "duplicate", "mostRecent": True})
    assert newest["name"] == "duplicate"


# Docker over ssh


def test_the_command_line_is_that_of_dockers_own_client() -> None:
    assert ssh.command("ssh://debian@192.0.2.7:2222", ["-F", "/x", "-o", "BatchMode=yes"]) == [
        *("ssh", "-F", "/x", "-o", "BatchMode=yes", "-o ConnectTimeout=30", "-T", "-l", "debian", "-p", "2222"),
        *("--", "192.0.2.7", "docker", "system", "dial-stdio"),
    ]
    patient = ssh.command("ssh://host", ["-o", "ConnectTimeout=300"])
    assert patient == [
        *("ssh", "-o", "ConnectTimeout=300", "-T", "--", "host"),
        *("docker", "system", "dial-stdio"),
    ]
    assert ssh.command("ssh://host/run/user/1000/docker.sock", [])[-4:] == [
        *("docker", "--host=unix:///run/user/1000/docker.sock", "system", "dial-stdio"),
    ]


def test_what_ssh_says_reaches_the_person(docker: Client) -> None:
    with pytest.raises(PluginError, match=r"command \[ssh .* has exited with exit status 255.*refused"):
        docker.create(VOLUME, {})


# A real engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state = tmp_path_factory.mktemp("engine")
    try:
        yield engine_module.ensure(state, print).docker_host
    except engine_module.EngineError as error:
        pytest.skip(str(error))
    finally:
        engine_module.stop(state)


@pytest.fixture(scope="module")
def local(engine: str) -> Client:
    return Client(Docker(), host=engine)


@pytest.fixture
def over_ssh(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The same engine, reached by an `ssh` that skips the network."""
    fake = tmp_path / "ssh"
    fake.write_text(f'#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift 2\nDOCKER_HOST={engine} exec "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Client(Docker(), host="ssh://someone@somewhere", sshOpts='["-o", "ControlMaster=auto"]')


@pytest.fixture
def shell(local: Client, shell_root: Path) -> str:
    """An image with a shell, made without a registry."""
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(shell_root, arcname=".")
    assert isinstance(local.plugin, Docker)
    local.plugin.engine.client.import_image_from_data(packed.getvalue(), repository="plugins-test", tag="shell")
    return "plugins-test:shell"


FOREVER = ["/bin/bash", "-c", "trap 'exit 0' TERM QUIT; while :; do read -t 1 <> <(:); done"]


@pytest.mark.docker
@pytest.mark.parametrize("way", ["local", "over_ssh"])
def test_the_life_of_a_container(way: str, shell: str, request: pytest.FixtureRequest) -> None:
    client: Client = request.getfixturevalue(way)
    image_inputs = {"name": shell, "keepLocally": True}
    image_id, image_state = client.create(IMAGE, image_inputs)
    unchanged(client, IMAGE, image_id, image_state, image_inputs)
    assert image_id == image_state["imageId"] + shell

    volume, volume_state = client.create(VOLUME, {"labels": [{"label": "a", "value": "b"}]})
    assert volume.startswith("thing-")
    assert volume_state["mountpoint"].endswith("/_data")

    # Files go into a volume through a container that never runs.
    mounted = [{"volumeName": volume, "containerPath": "/etc/gitlab-runner"}]
    config_inputs = {
        "name": "config",
        "image": image_state["imageId"],
        "command": ["/bin/bash"],
        "start": False,
        "mustRun": False,
        "volumes": mounted,
        "uploads": [{"file": "/etc/gitlab-runner/config.toml", "content": "concurrent = 1\n"}],
    }
    config, config_state = client.create(CONTAINER, config_inputs)
    unchanged(client, CONTAINER, config, config_state, config_inputs)

    inputs = {
        "name": "runner",
        "image": image_state["imageId"],
        "command": FOREVER,
        "volumes": mounted,
        "restart": "always",
        "stopSignal": "SIGQUIT",
        "stopTimeout": 5,
        "destroyGraceSeconds": 10,
        "labels": [{"label": "a", "value": "b"}],
        "envs": ["A=1"],
        "logOpts": {"max-size": "1m"},
        "healthcheck": {"tests": ["CMD", "/bin/bash", "-c", "true"], "interval": "90s"},
    }
    runner, state = client.create(CONTAINER, inputs)
    unchanged(client, CONTAINER, runner, state, inputs)
    engine = _engine(client)
    started = engine.exec_create(runner, ["/bin/bash", "-c", "echo $(</etc/gitlab-runner/config.toml)"])
    assert engine.exec_start(started["Id"]) == b"concurrent = 1\n"

    news = {**inputs, "restart": "no", "memory": 64, "memorySwap": 128, "destroyGraceSeconds": 20}
    assert client.plan(CONTAINER, state, news) == "update: destroyGraceSeconds memory memorySwap restart"
    state = client.update(CONTAINER, runner, state, news)
    unchanged(client, CONTAINER, runner, state, news)
    assert engine.inspect_container(runner)["HostConfig"]["Memory"] == 64 * 1024 * 1024

    # Stopped by somebody: found by a refresh, and started by the next update.
    engine.stop(runner, timeout=10)
    _, stopped, _ = client.read(CONTAINER, runner, state, news)
    assert (stopped["mustRun"], client.plan(CONTAINER, stopped, news)) == (False, "update: mustRun")
    state = client.update(CONTAINER, runner, stopped, news)
    assert engine.inspect_container(runner)["State"]["Running"]

    imported_id, imported, _ = client.read(CONTAINER, runner, {}, {})
    assert (imported_id, imported["name"], imported["stopSignal"]) == (runner, "runner", "SIGQUIT")

    for token, id, old in (
        (CONTAINER, runner, state),
        (CONTAINER, config, config_state),
        (VOLUME, volume, volume_state),
    ):
        client.delete(token, id, old)
        client.delete(token, id, old)
        assert client.read(token, id, old, {})[0] == ""
    # Kept, as keepLocally says; without it, it goes.
    client.delete(IMAGE, image_id, image_state)
    assert client.read(IMAGE, image_id, image_state, image_inputs)[0] == image_id
    client.delete(IMAGE, image_id, {**image_state, "keepLocally": False})
    assert client.read(IMAGE, image_id, image_state, image_inputs)[0] == ""


@pytest.mark.docker
def test_a_container_that_ends_at_once_is_an_error_that_keeps_it(local: Client, shell: str) -> None:
    inputs = {"name": "broken", "image": shell, "command": ["/bin/bash", "-c", "echo why >&2; exit 3"]}
    with pytest.raises(PartialError, match="container exited immediately with exit code 3: why") as caught:
        local.create(CONTAINER, inputs)
    local.delete(CONTAINER, caught.value.id, {})


@pytest.mark.docker
def test_a_volume_in_use_is_waited_for_and_then_named(
    local: Client, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, state = local.create(VOLUME, {})
    mounted = [{"volumeName": volume, "containerPath": "/v"}]
    inputs = {"name": "user", "image": shell, "command": ["/bin/bash"], "start": False, "mustRun": False}
    container, container_state = local.create(CONTAINER, {**inputs, "volumes": mounted})
    monkeypatch.setattr("sandbox.plugins.docker.plugin.Volume.seconds", 1)
    with pytest.raises(PluginError, match=r"timeout after 1 s while waiting for volume .*: .*volume is in use"):
        local.delete(VOLUME, volume, state)
    local.delete(CONTAINER, container, container_state)
    local.delete(VOLUME, volume, state)


def test_an_engine_that_does_not_answer_fails_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=rf"configuring the docker provider: .*\(Docker at unix://{tmp_path}/none\)"):
        Client(Docker(), host=f"unix://{tmp_path}/none")


def _engine(client: Client) -> Any:
    assert isinstance(client.plugin, Docker)
    return client.plugin.engine.client


# Installation


def test_installing_leaves_official_plugins_alone(tmp_path: Path) -> None:
    official = install.executable(tmp_path, "docker", "1.0.0")
    official.parent.mkdir(parents=True)
    official.write_bytes(b"\x7fELF")
    present = install.executable(tmp_path, "gitlab", "1.0.0")
    present.parent.mkdir(parents=True)
    present.write_text(install.script("gitlab"))
    # Nothing is left for the CLI to do, so it is never started.
    outcome = install.install(tmp_path / "no-pulumi", tmp_path, {"docker": "1.0.0", "gitlab": "1.0.0"})
    assert outcome == {"docker": "official", "gitlab": "present"}
    assert install.remove(tmp_path) == ["gitlab"]
    assert official.exists()
    assert not present.parent.exists()


@pytest.mark.parametrize("name", install.PLUGINS)
def test_a_plugin_prints_its_port_and_ends_with_its_parent(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"pulumi-resource-{name}"
    path.write_text(install.script(name))
    path.chmod(0o755)
    with subprocess.Popen([path, "127.0.0.1:1"], stdout=subprocess.PIPE, text=True) as plugin:
        assert plugin.stdout is not None
        assert int(plugin.stdout.readline()) > 0
        plugin.terminate()
    alone = subprocess.run([path], capture_output=True, text=True, check=False)
    assert f"stand-in for Pulumi's {name} plugin" in alone.stderr
    assert sys.executable in path.read_text()
