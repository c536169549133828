"""What lies on machines that Nova does not have any more, and what is left of a state without it."""

from types import SimpleNamespace
from typing import Any

import pytest
from openstack.exceptions import NotFoundException

from clients import ClientError
from clients.lost import check_nothing_lost, cut_off, lost, without

INSTANCE, PROVIDER = "openstack:compute/instance:Instance", "pulumi:providers:docker"
ADDRESS = "192.0.2.7"


def resource(type_: str, name: str, **more: Any) -> dict[str, Any]:
    return {"urn": f"urn:pulumi:dev::runners::{type_}::{name}", "type": type_, "id": f"{type_}-{name}", **more}


def on_machine(server: str, address: str = ADDRESS, **more: Any) -> list[dict[str, Any]]:
    """A docker provider and a container of the machine with this id, as the state has them."""
    lies_on = {"replacementTrigger": server, "deletedWith": f"urn:pulumi:dev::runners::{INSTANCE}::dev-1", **more}
    provider = resource(PROVIDER, "dev-1", inputs={"host": f"ssh://debian@{address}:22"}, **lies_on)
    reference = f"{provider['urn']}::{provider['id']}"
    trigger = {"replacementTrigger": f"{server} digest"}
    return [provider, resource("docker:index/container:Container", "app", provider=reference, **(lies_on | trigger))]


def port(**more: Any) -> dict[str, Any]:
    outputs = {"tenantId": "project", "region": "one", "allFixedIps": [ADDRESS]}
    return resource("openstack:networking/port:Port", "dev-1", outputs=outputs, **more)


class Cloud:
    """One with these servers, by their ids, and their addresses; it has nothing else."""

    def __init__(self, project: str = "project", **servers: list[str]) -> None:
        self.current_project_id = project
        self.config = SimpleNamespace(get_region_name=lambda: "one")
        self.compute = SimpleNamespace(get_server=lambda id_: self._server(servers, id_))
        self.network = SimpleNamespace(get_port=self._nothing, get_ip=self._nothing)

    @staticmethod
    def _server(servers: dict[str, list[str]], id_: str) -> Any:
        if id_ not in servers:
            raise NotFoundException
        return SimpleNamespace(addresses={"network": [{"addr": address} for address in servers[id_]]})

    @staticmethod
    def _nothing(_id: str) -> None:
        raise NotFoundException


def is_lost(cloud: Cloud, resources: list[dict[str, Any]]) -> set[str]:
    return lost(cloud, resources)  # type: ignore[arg-type]


def test_a_machine_that_nova_does_not_have_is_lost() -> None:
    resources = [port(), *on_machine("old", delete=True), *on_machine("new")]
    assert is_lost(Cloud(new=[ADDRESS]), resources) == {"old"}


@pytest.mark.parametrize("cloud", [Cloud("another"), Cloud()], ids=["another project", "nothing of it is there"])
def test_where_the_cloud_may_be_another_one_nothing_is_lost(cloud: Cloud) -> None:
    unknown = port() if cloud.current_project_id == "another" else port() | {"outputs": {}}
    with pytest.raises(ClientError, match="Nothing is taken for gone"):
        is_lost(cloud, [unknown, *on_machine("old")])


def test_another_thing_of_the_stack_tells_the_cloud() -> None:
    living = resource(INSTANCE, "dev-2") | {"id": "new"}
    assert is_lost(Cloud("another", new=[]), [living, *on_machine("old")]) == {"old"}


def test_an_engine_that_existed_is_not_asked_for() -> None:
    existing = [each | {"replacementTrigger": None} for each in on_machine("old")]
    assert is_lost(Cloud("another"), existing) == set()
    assert without({"resources": existing}, {"old"})[1] == []


def test_what_remains_refers_to_nothing_that_was_taken_out() -> None:
    gone = on_machine("old")
    urns = [each["urn"] for each in gone]
    drain = resource(
        "pulumi-python:dynamic/docker:Drain",
        "dev-1",
        dependencies=[port()["urn"], *urns],
        propertyDependencies={"managers": urns},
    )
    pending = [{"resource": gone[1], "type": "deleting"}]
    edited, removed = without({"resources": [port(), *gone, drain], "pending_operations": pending}, {"old"})
    assert [each["urn"] for each in removed] == urns
    assert edited["resources"] == [
        port(),
        drain | {"dependencies": [port()["urn"]], "propertyDependencies": {"managers": []}},
    ]
    assert edited["pending_operations"] == []


def test_what_a_successor_has_under_the_same_name_stays() -> None:
    new = on_machine("new")
    new[0]["id"] = "id-of-the-new-one"
    new[1]["provider"] = f"{new[0]['urn']}::{new[0]['id']}"
    instance = resource(INSTANCE, "dev-1")
    edited, removed = without({"resources": [instance, *new, *on_machine("old", delete=True)]}, {"old"})
    assert edited["resources"] == [instance, *new]
    assert [each["replacementTrigger"] for each in removed] == ["old", "old digest"]


def test_what_is_at_an_address_that_its_machine_lost_cannot_be_looked_at() -> None:
    resources = [port(), *on_machine("id")]
    asked: Any = Cloud(id=["10.0.0.5"])
    assert cut_off(asked, resources) == [resources[2]["urn"]]
    asked = Cloud(id=["10.0.0.5", ADDRESS])
    assert cut_off(asked, resources) == []


@pytest.mark.parametrize(
    ("resources", "refused"),
    [
        ([port(), resource(INSTANCE, "dev-1")], True),
        ([port(), resource(INSTANCE, "dev-1", delete=True)], False),
        ([port() | {"outputs": {"tenantId": "project", "region": "one"}}, *on_machine("old")], True),
        ([port(), *on_machine("old")], False),
    ],
    ids=["a machine", "one that goes", "what was on one", "what was on one at an address that stays"],
)
def test_an_update_that_would_ask_a_machine_that_is_gone_is_refused(
    resources: list[dict[str, Any]], refused: bool
) -> None:
    cloud: Any = Cloud()
    if not refused:
        check_nothing_lost("dev", cloud, resources)
        return
    with pytest.raises(ClientError, match="run `make refresh STACK=dev`"):
        check_nothing_lost("dev", cloud, resources)
