"""What the clean-up before a creation removes, leaves, and stops at, thing by thing, on the doubles.

Each thing is tried in each state: known to the stack's state, unknown and never used, unknown and perhaps in use, and
with a state that cannot be read.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import gitlab
import pulumi
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from openstack.connection import Connection

from clients import ClientError
from clients.doubles import check_no_doubles
from clients.gitlab import GitLab
from clients.openstack import Catalogue
from clients.state import State, StateUnknown
from components.leftovers import _LOOKS, HOST_KEY_METADATA, _Creation, _runner
from tests.sandbox.inprocess import InProcess

VM = "urn:pulumi:dev::gitlab-runners::gitlab-runners:index:Fleet$gitlab-runners:openstack:VirtualMachine"
MARKS = {"pulumi-project": "gitlab-runners", "pulumi-stack": "dev"}
HOST_KEY = {"type": "pulumi-python:dynamic/ssh:HostKey", "id": "the-key"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Connection]:
    with InProcess(tmp_path / "store.sqlite") as served:
        yield served.connect()


def state_of(*resources: dict[str, str], pending: tuple[dict[str, str], ...] = ()) -> State:
    """A state with these resources, HostKey aside."""
    operations = [{"resource": resource, "type": "creating"} for resource in pending]
    deployment = {"resources": [HOST_KEY, *resources], "pending_operations": operations}
    return State(lambda: json.dumps({"version": 3, "deployment": deployment}))


def unreadable() -> State:
    def export() -> str:
        raise StateUnknown("the stack's state cannot be read: there is no pulumi on PATH")

    return State(export)


@dataclass
class Thing:
    """Something in the cloud that a hook meets, and the inputs of the resource about to be created."""

    type: str
    id: str
    inputs: dict[str, Any]
    is_there: Callable[[], bool]
    use: Callable[[], object] | None = None
    """Puts it to use."""
    used_by_name: str = ""
    more: list[dict[str, str]] = field(default_factory=list)
    """Further resources of the state."""


def port(cloud: Connection, name: str = "dev-1") -> Any:
    (network,) = cloud.network.networks(name="runners")
    return cloud.network.create_port(network_id=network.id, name=name, description="of dev")


def server(cloud: Connection, port_id: str, name: str = "dev-1", **more: Any) -> Any:
    (flavor,) = [each for each in cloud.compute.flavors() if each.name == "m1.small"]
    (image,) = cloud.image.images(name="debian-13")
    made = cloud.compute.create_server(
        name=name, flavor_id=flavor.id, image_id=image.id, networks=[{"port": port_id}], metadata=MARKS, **more
    )
    return cloud.compute.wait_for_server(made)


def a_port(cloud: Connection) -> Thing:
    made = port(cloud)
    inputs = {"name": "dev-1", "description": "of dev", "networkId": made.network_id}
    return Thing(
        "openstack:networking/port:Port",
        made.id,
        inputs,
        lambda: cloud.network.find_port(made.id) is not None,
        lambda: server(cloud, made.id),
        f"port {made.id}",
    )


def a_volume(cloud: Connection) -> Thing:
    made = cloud.block_storage.create_volume(
        size=1, name="dev-1", description="of dev", metadata={HOST_KEY_METADATA: "the-key"}
    )
    cloud.block_storage.wait_for_status(made, "available")
    disk = {"uuid": made.id, "source_type": "volume", "destination_type": "volume", "boot_index": -1}
    (image,) = cloud.image.images(name="debian-13")
    root = {"uuid": image.id, "source_type": "image", "destination_type": "local", "boot_index": 0}
    return Thing(
        "openstack:blockstorage/volume:Volume",
        made.id,
        {"name": "dev-1", "description": "of dev"},
        lambda: cloud.block_storage.find_volume(made.id) is not None,
        lambda: server(cloud, port(cloud).id, block_device_mapping=[root, disk]),
        f"volume {made.id}",
    )


def a_floating_ip(cloud: Connection) -> Thing:
    (pool,) = cloud.network.networks(name="public")
    made = cloud.network.create_ip(floating_network_id=pool.id, description="of dev")
    return Thing(
        "openstack:networking/floatingIp:FloatingIp",
        made.id,
        {"description": "of dev"},
        lambda: cloud.network.find_ip(made.id) is not None,
        lambda: cloud.network.update_ip(made, port_id=port(cloud).id),
        f"floating IP {made.floating_ip_address}",
    )


def a_security_group(cloud: Connection) -> Thing:
    made = cloud.network.create_security_group(name="dev", description="of dev")
    (network,) = cloud.network.networks(name="runners")
    return Thing(
        "openstack:networking/secGroup:SecGroup",
        made.id,
        {"name": "dev", "description": "of dev"},
        lambda: cloud.network.find_security_group(made.id) is not None,
        lambda: cloud.network.create_port(network_id=network.id, security_groups=[made.id]),
        f"security group {made.id}",
    )


def a_rule(cloud: Connection) -> Thing:
    group = cloud.network.create_security_group(name="dev", description="of dev")
    made = cloud.network.create_security_group_rule(
        security_group_id=group.id,
        direction="ingress",
        ether_type="IPv4",
        protocol="tcp",
        port_range_min=22,
        port_range_max=22,
        remote_ip_prefix="192.0.2.0/24",
    )
    inputs = {
        "securityGroupId": group.id,
        "direction": "ingress",
        "ethertype": "IPv4",
        "protocol": "tcp",
        "portRangeMin": 22,
        "portRangeMax": 22,
        "remoteIpPrefix": "192.0.2.0/24",
    }
    return Thing(
        "openstack:networking/secGroupRule:SecGroupRule",
        made.id,
        inputs,
        lambda: cloud.network.find_security_group_rule(made.id) is not None,
    )


def a_key_pair(cloud: Connection) -> Thing:
    public = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    made = cloud.compute.create_keypair(name="dev-1234", public_key=public)
    return Thing(
        "openstack:compute/keypair:Keypair",
        made.name,
        {"name": "dev-1234"},
        lambda: cloud.compute.find_keypair(made.name) is not None,
        lambda: server(cloud, port(cloud).id, key_name="dev-1234"),
        "key pair dev-1234",
    )


def a_server_group(cloud: Connection) -> Thing:
    made = cloud.compute.create_server_group(name="dev", policies=["anti-affinity"])
    return Thing(
        "openstack:compute/serverGroup:ServerGroup",
        made.id,
        {"name": "dev"},
        lambda: cloud.compute.find_server_group(made.id) is not None,
    )


def an_application_credential(cloud: Connection) -> Thing:
    identity, user = cast(Any, cloud.identity), cloud.current_user_id
    made = identity.create_application_credential(user, name="dev-app-workers-1234", description="of dev, key the-key")
    return Thing(
        "openstack:identity/applicationCredential:ApplicationCredential",
        made.id,
        {"name": "dev-app-workers-1234"},
        lambda: identity.find_application_credential(user, made.id) is not None,
    )


def a_server(cloud: Connection) -> Thing:
    """On a port that the state knows."""
    there = port(cloud)
    made = server(cloud, there.id)
    return Thing(
        "openstack:compute/instance:Instance",
        made.id,
        {"networks": [{"port": there.id}]},
        lambda: cloud.compute.find_server(made.id) is not None,
        more=[{"type": "openstack:networking/port:Port", "id": there.id}],
    )


def a_container(cloud: Connection) -> Thing:
    marks: dict[str, Any] = {"pulumi-stack": "dev"}
    cloud.object_store.create_container("dev-cache")
    cloud.object_store.set_container_metadata("dev-cache", **marks)
    return Thing(
        "openstack:objectstorage/container:Container",
        "dev-cache",
        {"name": "dev-cache", "metadata": {"pulumi-stack": "dev"}},
        lambda: "dev-cache" in {each.name for each in cloud.object_store.containers()},
        lambda: cloud.object_store.upload_object("dev-cache", "cache.zip", data=b"zip"),
        "container dev-cache",
    )


MAKERS = {
    maker.__name__: maker
    for maker in (
        a_port,
        a_volume,
        a_floating_ip,
        a_security_group,
        a_rule,
        a_key_pair,
        a_server_group,
        an_application_credential,
        a_server,
        a_container,
    )
}
# A container of the object store that is empty is taken over: to make it once more changes nothing.
REMOVED = [name for name in MAKERS if name != "a_container"]
USED = [name for name in MAKERS if name not in {"a_rule", "a_server_group", "an_application_credential", "a_server"}]
# These cannot be replaced alone, see tests/engine/test_replacements.py.
ALONE = {"an_application_credential", "a_server"}


def look(cloud: Connection, thing: Thing, state: State, *, preview: bool = False) -> None:
    urn = f"{VM}${thing.type}::dev-1"
    _LOOKS[thing.type](cloud, _Creation(urn, thing.type, thing.inputs, state, preview))


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    return said


def test_every_type_with_a_look_is_tried(cloud: Connection) -> None:
    association = {"openstack:networking/floatingIpAssociate:FloatingIpAssociate"}
    assert {make(cloud).type for make in MAKERS.values()} == set(_LOOKS) - association


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ALONE])
def test_what_the_state_knows_stays(cloud: Connection, name: str) -> None:
    thing = MAKERS[name](cloud)
    known = {"type": thing.type, "id": thing.id}
    look(cloud, thing, state_of(known, *thing.more))
    look(cloud, thing, state_of({**known, "delete": "true"}, *thing.more))
    look(cloud, thing, state_of(*thing.more, pending=(known,)))
    assert thing.is_there()


@pytest.mark.parametrize("name", sorted(ALONE))
def test_what_the_state_knows_and_cannot_be_replaced_alone_stays(cloud: Connection, name: str) -> None:
    thing = MAKERS[name](cloud)
    with pytest.raises(ClientError, match="cannot be replaced"):
        look(cloud, thing, state_of({"type": thing.type, "id": thing.id}, *thing.more))
    assert thing.is_there()


@pytest.mark.parametrize("name", REMOVED)
def test_what_it_does_not_know_and_nobody_used_goes_but_not_in_a_preview(
    cloud: Connection, warnings: list[str], name: str
) -> None:
    thing = MAKERS[name](cloud)
    look(cloud, thing, state_of(*thing.more), preview=True)
    assert thing.is_there()
    look(cloud, thing, state_of(*thing.more))
    assert not thing.is_there()
    assert [line.partition(" which ")[2] for line in warnings] == [
        "an interrupted update left behind, will be removed",
        "an interrupted update left behind",
    ]


@pytest.mark.parametrize("name", USED)
def test_what_it_does_not_know_and_is_in_use_stops_the_update(cloud: Connection, name: str) -> None:
    thing = MAKERS[name](cloud)
    assert thing.use is not None
    thing.use()
    with pytest.raises(
        ClientError, match=f"^{thing.used_by_name} .*`make orphans STACK=dev` .*recover-a-state.md"
    ) as error:
        look(cloud, thing, state_of(*thing.more))
    assert "\n" not in str(error.value)
    assert thing.is_there()


@pytest.mark.parametrize("name", MAKERS)
def test_where_the_state_cannot_be_read_everything_stays(cloud: Connection, name: str) -> None:
    thing = MAKERS[name](cloud)
    with pytest.raises(StateUnknown):
        look(cloud, thing, unreadable())
    assert thing.is_there()


def test_a_volume_or_a_credential_of_another_state_stays(cloud: Connection) -> None:
    other = {"type": HOST_KEY["type"], "id": "another-key"}
    state = State(lambda: json.dumps({"deployment": {"resources": [other]}}))
    for thing in (a_volume(cloud), an_application_credential(cloud)):
        with pytest.raises(ClientError, match="does not know"):
            look(cloud, thing, state)
        assert thing.is_there()


def test_a_container_that_is_not_the_stacks_is_not_taken_over(cloud: Connection) -> None:
    cloud.object_store.create_container("dev-cache")
    thing = a_container(cloud)
    inputs = {"name": "dev-cache", "metadata": {"pulumi-stack": "other"}}
    with pytest.raises(ClientError, match=r"set cache\.container"):
        look(cloud, Thing(thing.type, "dev-cache", inputs, thing.is_there), state_of())


@dataclass
class Runners:
    """A project's runners in the GitLab double."""

    clouds: InProcess

    def __post_init__(self) -> None:
        self.client = gitlab.Gitlab(self.clouds.gitlab_url, private_token=self.clouds.tokens.administrator)

    def register(self, description: str = "dev app", *, used: bool = False) -> str:
        body = {"runner_type": "project_type", "project_id": 100, "description": description, "run_untagged": True}
        made: Any = self.client.http_post("/user/runners", post_data=body)
        if used:
            self.client.http_post("/runners/verify", post_data={"token": made["token"], "system_id": "s_123456789012"})
        return str(made["id"])

    def look(self, state: State, description: str = "dev app") -> None:
        type_ = "gitlab:index/userRunner:UserRunner"
        urn = f"urn:pulumi:dev::gitlab-runners::gitlab-runners:index:Fleet${type_}::dev-app"
        inputs = {"runnerType": "project_type", "projectId": 100, "description": description}
        asked = GitLab(self.clouds.gitlab_url, {"token": self.clouds.tokens.platform}, {})
        _runner(asked, _Creation(urn, type_, inputs, state, preview=False))

    def ids(self) -> set[str]:
        return {str(each.id) for each in self.client.runners_all.list(get_all=True)}


@pytest.fixture
def runners(tmp_path: Path) -> Iterator[Runners]:
    with InProcess(tmp_path / "store.sqlite") as served:
        yield Runners(served)


def test_a_runner_that_never_contacted_gitlab_goes_only_where_the_state_does_not_know_it(runners: Runners) -> None:
    """One whose manager never came up has a successor when its token is rotated."""
    known, remnant = runners.register(), runners.register()
    runners.look(state_of({"type": "gitlab:index/userRunner:UserRunner", "id": known}))
    assert runners.ids() == {known}
    with pytest.raises(StateUnknown):
        runners.look(unreadable())
    assert runners.ids() == {known}
    assert remnant not in runners.ids()


def test_a_runner_that_was_in_use_stops_the_update(runners: Runners) -> None:
    used = runners.register(used=True)
    with pytest.raises(ClientError, match=f"^runner {used} of GitLab has the description dev app and was in use"):
        runners.look(state_of())
    assert runners.ids() == {used}


def test_a_description_without_the_stacks_name_may_be_anybodys(runners: Runners) -> None:
    used = runners.register("builds", used=True)
    runners.look(state_of(), "builds")
    assert runners.ids() == {used}


def test_machines_that_the_state_does_not_know_stop_everything(cloud: Connection) -> None:
    there = port(cloud)
    stranger = server(cloud, there.id)
    server(cloud, port(cloud, "dev-app-worker").id, name="dev-app-worker-1")

    def check(state: State) -> None:
        check_no_doubles("gitlab-runners", "dev", Catalogue(lambda: cloud), state, lambda: "file:///elsewhere")

    with pytest.raises(ClientError) as error:
        check(state_of())
    assert str(error.value).startswith(
        f"stack dev: the cloud has dev-1 ({stranger.id}) with this stack's marks, but the state in file:///elsewhere "
        "does not know it"
    )
    check(state_of({"type": "openstack:compute/instance:Instance", "id": stranger.id}))
    # Its answer was lost, and the next update removes it.
    check(state_of({"type": "openstack:networking/port:Port", "id": there.id}))
    with pytest.raises(StateUnknown):
        check(unreadable())


def test_a_machine_that_was_in_use_is_no_remnant(cloud: Connection) -> None:
    """Somebody took it out of the state, and all that needs it; its port and the connection stayed there."""
    thing = a_server(cloud)
    (address,) = [each["ip_address"] for each in cloud.network.get_port(thing.more[0]["id"]).fixed_ips]
    url = f"ssh://debian@{address}:22"
    connection = {"type": "gitlab-runners:docker:Connection", "outputs": {"url": url}}
    state = State(lambda: json.dumps({"deployment": {"resources": [*thing.more, connection]}}))
    with pytest.raises(ClientError, match="does not know it"):
        check_no_doubles("gitlab-runners", "dev", Catalogue(lambda: cloud), state, lambda: "")
    with pytest.raises(ClientError, match=f"^server {thing.id} has a port .* jobs may be running"):
        look(cloud, thing, state)
    assert thing.is_there()


def test_a_server_of_anybody_that_has_the_stacks_volume_stays(cloud: Connection) -> None:
    volume = a_volume(cloud)
    assert volume.use is not None
    volume.use()
    (other,) = cloud.compute.servers()
    inputs = {"networks": [], "blockDevices": [{"sourceType": "volume", "uuid": volume.id}]}
    thing = Thing("openstack:compute/instance:Instance", other.id, inputs, lambda: True)
    with pytest.raises(ClientError, match="jobs may be running there"):
        look(cloud, thing, state_of({"type": volume.type, "id": volume.id}))
    assert cloud.compute.find_server(other.id) is not None


@pytest.mark.parametrize("marks", [{}, MARKS | {"pulumi-stack": "other"}, MARKS | {"pulumi-project": "fork"}])
def test_machines_of_others_are_no_business_of_the_stack(cloud: Connection, marks: dict[str, str]) -> None:
    made = server(cloud, port(cloud).id)
    cloud.compute.delete_server_metadata(made, list(MARKS))
    cloud.compute.set_server_metadata(made, **marks)
    check_no_doubles("gitlab-runners", "dev", Catalogue(lambda: cloud), state_of(), lambda: "")


def test_what_is_made_while_an_update_runs_is_known() -> None:
    made: list[dict[str, str]] = []
    state = State(lambda: json.dumps({"deployment": {"resources": made}}))
    assert state.unknown({"one"}) == {"one"}
    made.append({"type": "openstack:networking/port:Port", "id": "one"})
    assert state.unknown({"one", "two"}) == {"two"}


def test_a_new_stack_has_an_empty_state() -> None:
    assert State(lambda: '{"version": 3, "deployment": {"manifest": {}}}').unknown({"one"}) == {"one"}


@pytest.mark.parametrize("printed", ["", "null", "[]", '{"version": 3}'])
def test_what_is_no_state_is_said_to_be_none(printed: str) -> None:
    with pytest.raises(StateUnknown, match="cannot be read"):
        State(lambda: printed).unknown({"one"})
