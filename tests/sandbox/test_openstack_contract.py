"""What clients of OpenStack may rely on, through openstacksdk: the double has to keep it, and so does the real thing.

As it is, this runs against the sandbox's own cloud. With CONTRACT_CLOUD set it runs against that cloud of clouds.yaml
(OS_CLIENT_CONFIG_FILE) instead; CONTRACT_IMAGE, CONTRACT_FLAVOR, CONTRACT_NETWORK and CONTRACT_EXTERNAL_NETWORK then
name what it has. The network must have a router to the external one, and the user must be an administrator (who sees
a server's user data).
"""

import base64
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openstack
import pytest
import yaml
from openstack.exceptions import BadRequestException, ConflictException, HttpException, NotFoundException
from openstack.utils import iterate_timeout

from tests.sandbox.inprocess import InProcess

# A Connection of openstacksdk. By its types every finder may give None, which each test would have to rule out.
Cloud = Any

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEv8hWzTPEAg0ErCCOPMFGuVhvMBcSkJ2hKkxUHZRwSw contract"
FINGERPRINT = "77:e3:ad:61:4c:d1:53:fb:8e:0d:78:bf:29:16:d2:d1"
NOWHERE = "00000000-0000-4000-8000-000000000000"
BOOT_TIMEOUT_S = 300


@dataclass(frozen=True)
class Names:
    """What the cloud has."""

    image: str
    flavor: str
    network: str
    external_network: str


@pytest.fixture(scope="module")
def names() -> Names:
    def name(what: str, default: str) -> str:
        return os.environ.get(f"CONTRACT_{what}", default)

    return Names(
        name("IMAGE", "debian-13"),
        name("FLAVOR", "m1.small"),
        name("NETWORK", "runners"),
        name("EXTERNAL_NETWORK", "public"),
    )


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    if "CONTRACT_CLOUD" in os.environ:
        yield openstack.connect(cloud=os.environ["CONTRACT_CLOUD"])
        return
    directory = tmp_path_factory.mktemp("contract")
    with InProcess(directory / "store.sqlite") as sandbox, pytest.MonkeyPatch.context() as environment:
        _clouds_file(directory / "clouds.yaml", sandbox)
        for name in [name for name in os.environ if name.startswith("OS_")]:
            environment.delenv(name)
        environment.setenv("OS_CLIENT_CONFIG_FILE", str(directory / "clouds.yaml"))
        environment.setenv("OS_CLOUD", "contract")
        yield openstack.connect()


def _clouds_file(path: Path, sandbox: InProcess) -> None:
    path.write_text(yaml.safe_dump({"clouds": {"contract": {"auth": sandbox.auth(), "region_name": "RegionOne"}}}))


Create = Callable[..., Any]


@pytest.fixture
def create(cloud: Cloud) -> Iterator[Create]:
    """Creates resources by kind, with a name of their own, and removes them after the test, last first."""
    made: list[tuple[Callable[..., Any], str]] = []

    def _create(kind: str, **attributes: Any) -> Any:
        proxy = cloud.compute if kind in ("keypair", "server_group", "server") else cloud.network
        if kind in ("volume", "container"):
            proxy = cloud.block_storage if kind == "volume" else cloud.object_store
        if kind not in ("ip", "security_group_rule"):
            attributes.setdefault("name", f"contract-{uuid.uuid4().hex[:12]}")
        resource = getattr(proxy, f"create_{kind}")(**attributes)
        made.append((getattr(proxy, f"delete_{kind}"), resource.name if kind == "keypair" else resource.id))
        return resource

    yield _create
    for delete, id in reversed(made):
        with suppress(NotFoundException):
            delete(id, ignore_missing=False)
            if delete == cloud.compute.delete_server:
                cloud.compute.wait_for_delete(openstack.compute.v2.server.Server.existing(id=id), wait=BOOT_TIMEOUT_S)


@pytest.fixture
def network(cloud: Cloud, names: Names) -> Any:
    return cloud.network.find_network(names.network, ignore_missing=False)


@pytest.fixture
def external_network(cloud: Cloud, names: Names) -> Any:
    return cloud.network.find_network(names.external_network, ignore_missing=False)


@pytest.fixture
def server_attributes(cloud: Cloud, names: Names) -> dict[str, Any]:
    image = cloud.image.find_image(names.image, ignore_missing=False)
    return {"image_id": image.id, "flavor_id": cloud.compute.find_flavor(names.flavor, ignore_missing=False).id}


def refusal(error: pytest.ExceptionInfo[HttpException]) -> str:
    return str(error.value.details)


# Looking things up


def test_flavors_images_networks_and_zones_are_found_by_name(cloud: Cloud, names: Names) -> None:
    flavor = cloud.compute.find_flavor(names.flavor)
    assert (flavor.name, cloud.compute.get_flavor(flavor.id).ram) == (names.flavor, flavor.ram)
    image = cloud.image.find_image(names.image)
    assert (image.name, image.status, cloud.image.get_image(image.id).id) == (names.image, "active", image.id)
    network = cloud.network.find_network(names.network)
    assert network.mtu >= 1280
    assert not network.is_router_external
    assert cloud.network.get_subnet(network.subnet_ids[0]).network_id == network.id
    assert [found.name for found in cloud.network.networks(**{"router:external": True})] == [names.external_network]
    zones = {zone.name: zone.state for zone in cloud.compute.availability_zones()}
    assert zones["nova"] == {"available": True}


def test_what_does_not_exist_is_not_found(cloud: Cloud) -> None:
    for find in (cloud.compute.find_flavor, cloud.image.find_image, cloud.network.find_network):
        assert find("no-such-name") is None
    for get in (
        cloud.compute.get_flavor,
        cloud.compute.get_keypair,
        cloud.compute.get_server,
        cloud.compute.get_server_group,
        cloud.image.get_image,
        cloud.network.get_network,
        cloud.network.get_port,
        cloud.network.get_security_group,
        cloud.network.get_security_group_rule,
        cloud.network.get_ip,
    ):
        with pytest.raises(NotFoundException):
            get(NOWHERE)
    for delete in (
        cloud.compute.delete_keypair,
        cloud.compute.delete_server,
        cloud.compute.delete_server_group,
        cloud.network.delete_port,
        cloud.network.delete_security_group,
        cloud.network.delete_security_group_rule,
        cloud.network.delete_ip,
    ):
        with pytest.raises(NotFoundException):
            delete(NOWHERE, ignore_missing=False)


def test_compute_has_the_microversions_that_clients_ask_for(cloud: Cloud) -> None:
    answer = cloud.compute.get("/servers", microversion="2.64")
    assert answer.headers["OpenStack-API-Version"] == "compute 2.64"
    assert cloud.compute.get("/servers", microversion="2.999", raise_exc=False).status_code == 406


# Key pairs


def test_a_key_pair_is_imported_read_listed_and_deleted(cloud: Cloud, create: Create) -> None:
    pair = create("keypair", public_key=PUBLIC_KEY)
    assert (pair.fingerprint, pair.type, pair.private_key) == (FINGERPRINT, "ssh", None)
    assert cloud.compute.get_keypair(pair.name).public_key == PUBLIC_KEY
    assert pair.name in [found.name for found in cloud.compute.keypairs()]
    cloud.compute.delete_keypair(pair.name, ignore_missing=False)
    assert cloud.compute.find_keypair(pair.name) is None


def test_a_key_pair_without_a_public_key_is_generated(create: Create) -> None:
    assert "PRIVATE KEY" in create("keypair").private_key


def test_a_second_key_pair_of_a_name_conflicts(create: Create) -> None:
    pair = create("keypair", public_key=PUBLIC_KEY)
    with pytest.raises(ConflictException) as error:
        create("keypair", name=pair.name, public_key=PUBLIC_KEY)
    assert refusal(error) == f"Key pair '{pair.name}' already exists."


@pytest.mark.parametrize("wrong", [{"public_key": "ssh-ed25519 nonsense"}, {"name": "with.dots"}, {"name": ""}])
def test_a_wrong_key_pair_is_refused(create: Create, wrong: dict[str, str]) -> None:
    with pytest.raises(BadRequestException):
        create("keypair", **{"public_key": PUBLIC_KEY, **wrong})


# Server groups


@pytest.mark.parametrize("policy", ["anti-affinity", "soft-anti-affinity"])
def test_a_server_group_is_created_read_listed_and_deleted(cloud: Cloud, create: Create, policy: str) -> None:
    group = create("server_group", policy=policy)
    found = cloud.compute.get_server_group(group.id)
    assert (found.name, found.policy, found.member_ids) == (group.name, policy, [])
    assert group.id in [each.id for each in cloud.compute.server_groups()]
    cloud.compute.delete_server_group(group.id, ignore_missing=False)
    assert cloud.compute.find_server_group(group.id) is None


def test_before_microversion_2_64_a_server_group_has_policies(cloud: Cloud, create: Create) -> None:
    group = create("server_group", policy="soft-anti-affinity")
    old = cloud.compute.get(f"/os-server-groups/{group.id}", microversion="2.15").json()["server_group"]
    assert old["policies"] == ["soft-anti-affinity"]
    assert "policy" not in old


def test_an_unknown_policy_is_refused(create: Create) -> None:
    with pytest.raises(BadRequestException):
        create("server_group", policy="apart")


# Security groups and their rules


def test_a_new_security_group_lets_everything_out(create: Create) -> None:
    group = create("security_group", description="first")
    rules = [(rule["direction"], rule["ethertype"], rule["protocol"]) for rule in group.security_group_rules]
    assert sorted(rules) == [("egress", "IPv4", None), ("egress", "IPv6", None)]


def test_a_security_group_is_updated_tagged_listed_and_deleted(cloud: Cloud, create: Create) -> None:
    group = create("security_group", description="first")
    cloud.network.update_security_group(group.id, description="second")
    cloud.network.set_tags(group, ["blue", "contract"])
    found = cloud.network.get_security_group(group.id)
    assert (found.description, sorted(found.tags)) == ("second", ["blue", "contract"])
    assert [each.id for each in cloud.network.security_groups(name=group.name)] == [group.id]
    assert [each.id for each in cloud.network.security_groups(name=group.name, tags="blue,contract")] == [group.id]
    assert not list(cloud.network.security_groups(name=group.name, tags="red"))
    cloud.network.delete_security_group(group.id, ignore_missing=False)
    assert cloud.network.find_security_group(group.id) is None


def test_the_name_default_is_taken(create: Create) -> None:
    with pytest.raises(ConflictException):
        create("security_group", name="default")


def test_a_security_group_in_use_cannot_be_deleted(cloud: Cloud, create: Create, network: Any) -> None:
    group = create("security_group")
    create("port", network_id=network.id, security_group_ids=[group.id])
    with pytest.raises(ConflictException) as error:
        cloud.network.delete_security_group(group.id, ignore_missing=False)
    assert refusal(error) == f"Security Group {group.id} in use."


def _ssh(group: Any) -> dict[str, Any]:
    rule = {"security_group_id": group.id, "direction": "ingress", "ethertype": "IPv4", "protocol": "tcp"}
    return rule | {"port_range_min": 22, "port_range_max": 22, "remote_ip_prefix": "192.0.2.0/24"}


def test_a_rule_is_created_listed_and_deleted(cloud: Cloud, create: Create) -> None:
    group = create("security_group")
    rule = create("security_group_rule", **_ssh(group), description="operators")
    found = cloud.network.get_security_group_rule(rule.id)
    assert (found.port_range_min, found.remote_ip_prefix, found.description) == (22, "192.0.2.0/24", "operators")
    listed = cloud.network.security_group_rules(security_group_id=group.id, direction="ingress")
    assert [each.id for each in listed] == [rule.id]
    assert rule.id in [each["id"] for each in cloud.network.get_security_group(group.id).security_group_rules]
    cloud.network.delete_security_group_rule(rule.id, ignore_missing=False)
    assert not list(cloud.network.security_group_rules(security_group_id=group.id, direction="ingress"))


def test_the_same_rule_twice_conflicts(create: Create) -> None:
    group = create("security_group")
    first = create("security_group_rule", **_ssh(group))
    with pytest.raises(ConflictException) as error:
        create("security_group_rule", **_ssh(group), description="another description does not make another rule")
    assert refusal(error) == f"Security group rule already exists. Rule id is {first.id}."


@pytest.mark.parametrize(
    "wrong",
    [
        {"remote_ip_prefix": "192.0.2.0/33"},
        {"ethertype": "IPv6"},
        {"protocol": None},
        {"protocol": "carrier-pigeon"},
        {"port_range_min": 23},
        {"port_range_max": 65536},
        {"direction": "sideways"},
        {"colour": "blue"},
    ],
)
def test_a_wrong_rule_is_refused(cloud: Cloud, create: Create, wrong: dict[str, Any]) -> None:
    rule = _ssh(create("security_group")) | wrong
    answer = cloud.network.post("/security-group-rules", json={"security_group_rule": rule})
    assert answer.status_code == 400
    assert answer.json()["NeutronError"]["message"]


def test_a_rule_of_a_group_that_does_not_exist_is_not_found(create: Create) -> None:
    with pytest.raises(NotFoundException):
        create("security_group_rule", security_group_id=NOWHERE, direction="ingress")


# Ports


def test_a_port_is_created_updated_tagged_listed_and_deleted(cloud: Cloud, create: Create, network: Any) -> None:
    groups = [create("security_group") for _ in range(2)]
    port = create("port", network_id=network.id, security_group_ids=[groups[0].id], description="first")
    assert (port.status, port.device_id, port.security_group_ids) == ("DOWN", "", [groups[0].id])
    assert port.fixed_ips[0]["subnet_id"] in network.subnet_ids
    cloud.network.update_port(port.id, description="second", security_group_ids=[groups[1].id])
    cloud.network.set_tags(port, ["contract"])
    found = cloud.network.get_port(port.id)
    assert (found.description, found.security_group_ids, found.tags) == ("second", [groups[1].id], ["contract"])
    assert [each.id for each in cloud.network.ports(name=port.name, network_id=network.id, tags="contract")] == [
        port.id
    ]
    assert [each.id for each in cloud.network.ports(mac_address=port.mac_address)] == [port.id]
    cloud.network.delete_port(port.id, ignore_missing=False)
    assert cloud.network.find_port(port.id) is None


def test_a_port_without_groups_has_the_default_group(cloud: Cloud, create: Create, network: Any) -> None:
    port = create("port", network_id=network.id)
    assert [cloud.network.get_security_group(id).name for id in port.security_group_ids] == ["default"]
    assert create("port", network_id=network.id, security_group_ids=[]).security_group_ids == []


def test_an_address_is_given_once(create: Create, network: Any) -> None:
    fixed = create("port", network_id=network.id).fixed_ips
    with pytest.raises(ConflictException) as error:
        create("port", network_id=network.id, fixed_ips=fixed)
    assert "already allocated in subnet" in refusal(error)


def test_a_wrong_port_is_refused(create: Create, network: Any) -> None:
    with pytest.raises(BadRequestException):
        create("port", network_id=network.id, fixed_ips=[{"ip_address": "203.0.113.7"}])
    with pytest.raises(BadRequestException):
        create("port")
    with pytest.raises(NotFoundException):
        create("port", network_id=NOWHERE)
    with pytest.raises(NotFoundException):
        create("port", network_id=network.id, security_group_ids=[NOWHERE])


def test_lists_come_in_pages(cloud: Cloud, create: Create, network: Any) -> None:
    ports = {create("port", network_id=network.id, description="paged").id for _ in range(5)}
    assert {port.id for port in cloud.network.ports(description="paged", limit=2)} == ports
    page = cloud.network.get("/ports", params={"description": "paged", "limit": 2}).json()
    assert len(page["ports"]) == 2
    assert "next" in [link["rel"] for link in page["ports_links"]]


# Floating IPs


def test_a_floating_ip_is_associated_with_a_port(
    cloud: Cloud, create: Create, network: Any, external_network: Any
) -> None:
    port = create("port", network_id=network.id)
    floating = create("ip", floating_network_id=external_network.id, description="first")
    assert floating.port_id is None
    cloud.network.set_tags(floating, ["contract"])
    associated = cloud.network.update_ip(floating.id, port_id=port.id)
    assert (associated.port_id, associated.fixed_ip_address) == (port.id, port.fixed_ips[0]["ip_address"])
    assert [each.id for each in cloud.network.ips(port_id=port.id)] == [floating.id]
    address = floating.floating_ip_address
    assert [each.tags for each in cloud.network.ips(floating_ip_address=address)] == [["contract"]]
    freed = cloud.network.update_ip(floating.id, port_id=None)
    assert (freed.port_id, freed.fixed_ip_address) == (None, None)
    cloud.network.delete_ip(floating.id, ignore_missing=False)
    assert not list(cloud.network.ips(floating_ip_address=address))


def test_a_port_has_one_floating_ip(cloud: Cloud, create: Create, network: Any, external_network: Any) -> None:
    port = create("port", network_id=network.id)
    first = create("ip", floating_network_id=external_network.id, port_id=port.id)
    second = create("ip", floating_network_id=external_network.id)
    with pytest.raises(ConflictException) as error:
        cloud.network.update_ip(second.id, port_id=port.id)
    assert "already has a floating IP" in refusal(error)
    cloud.network.delete_port(port.id, ignore_missing=False)
    assert cloud.network.get_ip(first.id).port_id is None


def test_a_wrong_floating_ip_is_refused(create: Create, network: Any, external_network: Any) -> None:
    with pytest.raises(BadRequestException) as error:
        create("ip", floating_network_id=network.id)
    assert "is not a valid external network" in refusal(error)
    with pytest.raises(NotFoundException):
        create("ip", floating_network_id=NOWHERE)
    with pytest.raises(NotFoundException):
        create("ip", floating_network_id=external_network.id, port_id=NOWHERE)


# Servers


def _wait(cloud: Cloud, server: Any, status: str = "ACTIVE") -> Any:
    server = cloud.compute.wait_for_server(server, status=status, wait=BOOT_TIMEOUT_S, interval=0.1)
    while server.task_state is not None:
        server = cloud.compute.get_server(server.id)
    return server


def _delete(cloud: Cloud, server: Any) -> None:
    cloud.compute.delete_server(server.id, ignore_missing=False)
    # The SDK's wait_for_delete ends already at DELETED, a status that Nova shows shortly before it forgets the server.
    for _ in iterate_timeout(BOOT_TIMEOUT_S, f"Server {server.id} is not deleted.", wait=0.1):
        if cloud.compute.find_server(server.id) is None:
            return


def test_a_server_is_what_it_was_asked_to_be(
    cloud: Cloud, create: Create, network: Any, server_attributes: dict[str, Any]
) -> None:
    port = create("port", network_id=network.id)
    pair = create("keypair", public_key=PUBLIC_KEY)
    group = create("server_group", policy="soft-anti-affinity")
    data = base64.b64encode(b"#cloud-config\n").decode()
    server = create(
        "server",
        networks=[{"port": port.id}],
        key_name=pair.name,
        user_data=data,
        config_drive=True,
        metadata={"stack": "contract"},
        tags=["contract"],
        availability_zone="nova",
        scheduler_hints={"group": group.id},
        **server_attributes,
    )
    server = _wait(cloud, server)
    assert (server.key_name, server.user_data, server.has_config_drive) == (pair.name, data, "True")
    assert (server.metadata, server.tags, server.availability_zone) == ({"stack": "contract"}, ["contract"], "nova")
    assert server.image["id"] == server_attributes["image_id"]
    assert [entry["addr"] for entry in server.addresses[network.name]] == [port.fixed_ips[0]["ip_address"]]
    assert [entry["OS-EXT-IPS:type"] for entry in server.addresses[network.name]] == ["fixed"]
    assert cloud.compute.get_server_group(group.id).member_ids == [server.id]
    assert [each.id for each in cloud.compute.servers(name=server.name, status="ACTIVE")] == [server.id]
    assert [each.id for each in cloud.compute.servers(tags="contract", name=server.name)] == [server.id]
    assert [each.port_id for each in cloud.compute.server_interfaces(server)] == [port.id]


def test_a_port_that_was_given_stays_and_one_that_was_made_goes(
    cloud: Cloud, create: Create, network: Any, server_attributes: dict[str, Any]
) -> None:
    port = create("port", network_id=network.id)
    server = create("server", networks=[{"port": port.id}, {"uuid": network.id}], **server_attributes)
    server = _wait(cloud, server)
    used = {each.id: each.device_owner for each in cloud.network.ports(device_id=server.id)}
    assert used[port.id] == "compute:nova"
    assert len(used) == 2
    _delete(cloud, server)
    with pytest.raises(NotFoundException):
        cloud.compute.get_server(server.id)
    kept = cloud.network.get_port(port.id)
    assert (kept.device_id, kept.device_owner) == ("", "")
    assert not list(cloud.network.ports(device_id=server.id))


def test_a_port_in_use_is_refused_to_another_server(
    cloud: Cloud, create: Create, network: Any, server_attributes: dict[str, Any]
) -> None:
    port = create("port", network_id=network.id)
    server = create("server", networks=[{"port": port.id}], **server_attributes)
    _wait(cloud, server)
    with pytest.raises(ConflictException) as error:
        create("server", networks=[{"port": port.id}], **server_attributes)
    assert refusal(error) == f"Port {port.id} is still in use."


def test_a_floating_ip_shows_in_the_servers_addresses(
    cloud: Cloud, create: Create, network: Any, external_network: Any, server_attributes: dict[str, Any]
) -> None:
    port = create("port", network_id=network.id)
    server = _wait(cloud, create("server", networks=[{"port": port.id}], **server_attributes))
    floating = create("ip", floating_network_id=external_network.id, port_id=port.id)

    def floating_addresses() -> list[str]:
        entries = cloud.compute.get_server(server.id).addresses[network.name]
        return [entry["addr"] for entry in entries if entry["OS-EXT-IPS:type"] == "floating"]

    # Nova hears of it from Neutron, a moment later.
    for _ in openstack.utils.iterate_timeout(60, "the floating IP did not show up", wait=0.2):
        if floating_addresses():
            break
    assert floating_addresses() == [floating.floating_ip_address]


def test_a_server_is_renamed_marked_stopped_started_and_rebooted(
    cloud: Cloud, create: Create, network: Any, server_attributes: dict[str, Any]
) -> None:
    server = _wait(cloud, create("server", networks=[{"uuid": network.id}], **server_attributes))
    cloud.compute.update_server(server, name=f"{server.name}-renamed")
    cloud.compute.set_server_metadata(server, stack="contract")
    cloud.compute.put(f"/servers/{server.id}/tags", json={"tags": ["blue"]}, microversion="2.26")
    found = cloud.compute.get_server(server.id)
    assert (found.name, found.metadata, found.tags) == (server.name, {"stack": "contract"}, ["blue"])
    cloud.compute.delete_server_metadata(server, ["stack"])
    assert cloud.compute.get_server(server.id).metadata == {}
    with pytest.raises(ConflictException) as error:
        cloud.compute.start_server(server)
    assert refusal(error) == f"Cannot 'start' instance {server.id} while it is in vm_state active"
    cloud.compute.stop_server(server)
    _wait(cloud, server, "SHUTOFF")
    cloud.compute.start_server(server)
    _wait(cloud, server)
    cloud.compute.reboot_server(server, "HARD")
    assert _wait(cloud, server).status == "ACTIVE"


def test_a_rebuilt_server_keeps_its_id_and_its_port(
    cloud: Cloud, create: Create, network: Any, server_attributes: dict[str, Any]
) -> None:
    port = create("port", network_id=network.id)
    server = _wait(cloud, create("server", networks=[{"port": port.id}], **server_attributes))
    cloud.compute.rebuild_server(server, image=server_attributes["image_id"])
    rebuilt = _wait(cloud, cloud.compute.get_server(server.id))
    assert (rebuilt.id, rebuilt.image["id"]) == (server.id, server_attributes["image_id"])
    assert cloud.network.get_port(port.id).device_id == server.id


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flavor_id": "no-such-flavor"}, "Flavor no-such-flavor could not be found."),
        ({"image_id": NOWHERE}, "Can not find requested image"),
        ({"image_id": "not-a-uuid"}, "imageRef"),
        ({"key_name": "no-such-key"}, "Invalid key_name provided."),
        ({"networks": [{"port": NOWHERE}]}, f"Port id {NOWHERE} could not be found."),
        ({"networks": [{"uuid": NOWHERE}]}, f"Network {NOWHERE} could not be found."),
        ({"availability_zone": "mars"}, "The requested availability zone is not available"),
        ({"scheduler_hints": {"group": NOWHERE}}, f"Instance group {NOWHERE} could not be found."),
        ({"user_data": "not base64!"}, "user_data"),
        ({"name": ""}, "name"),
    ],
)
def test_a_wrong_server_is_refused(
    create: Create, network: Any, server_attributes: dict[str, Any], wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequestException) as error:
        create("server", **{"networks": [{"uuid": network.id}], **server_attributes, **wrong})
    assert message in refusal(error)


# Quotas


def test_limits_tell_what_may_be_used_and_what_is(
    cloud: Cloud, create: Create, network: Any, server_attributes: dict[str, Any]
) -> None:
    def used() -> dict[str, int]:
        limits = cloud.compute.get_limits().absolute
        quota = cloud.network.get_quota(cloud.current_project_id, details=True)
        for limit in (limits.instances, limits.total_cores, limits.total_ram, limits.server_group_members):
            assert isinstance(limit, int)
        for details in (quota.ports, quota.floating_ips):
            assert {name: type(details[name]) for name in ("limit", "used")} == {"limit": int, "used": int}
        network = {"security groups": quota.security_groups, "rules": quota.security_group_rules}
        return {
            "instances": limits.instances_used,
            "cores": limits.total_cores_used,
            "ram": limits.total_ram_used,
            "server groups": limits.server_groups_used,
            **{name: each["used"] for name, each in network.items()},
        }

    before = used()
    group = create("server_group", policy="anti-affinity")
    create("security_group")
    hints = {"group": group.id}
    # Nova counts a server once its cell has it.
    _wait(cloud, create("server", networks=[{"uuid": network.id}], scheduler_hints=hints, **server_attributes))
    flavor = cloud.compute.get_flavor(server_attributes["flavor_id"])
    more = {"instances": 1, "cores": flavor.vcpus, "ram": flavor.ram, "server groups": 1}
    # A new group lets everything out, by IPv4 and by IPv6.
    more |= {"security groups": 1, "rules": 2}
    now = used()
    assert {name: now[name] - before[name] for name in more} == more


# Volumes


@pytest.fixture
def volumes(cloud: Cloud) -> Any:
    """The block storage service, where the cloud has one."""
    if not any(service["type"] in ("block-storage", "volumev3") for service in cloud.service_catalog):
        pytest.skip("this cloud has no block storage")
    return cloud.block_storage


def _volume(cloud: Cloud, volume: Any, status: str = "available") -> Any:
    found = cloud.block_storage.get_volume(volume.id)
    return cloud.block_storage.wait_for_status(found, status, ["error"], interval=0.1, wait=BOOT_TIMEOUT_S)


def _without(find: Callable[[], Any]) -> None:
    for _ in iterate_timeout(BOOT_TIMEOUT_S, "It is not deleted.", wait=0.1):
        if find() is None:
            return


@pytest.mark.usefixtures("volumes")
def test_a_volume_is_made_found_changed_grown_and_deleted(cloud: Cloud, create: Create) -> None:
    made = create("volume", size=1, description="contract", metadata={"stack": "contract"})
    assert made.status in ("creating", "available")
    volume = _volume(cloud, made)
    assert (volume.size, volume.description, volume.metadata) == (1, "contract", {"stack": "contract"})
    assert (volume.attachments, volume.is_bootable) == ([], False)
    assert [each.id for each in cloud.block_storage.volumes(name=volume.name)] == [volume.id]
    cloud.block_storage.extend_volume(volume, 2)
    assert _volume(cloud, volume).size == 2
    with pytest.raises(BadRequestException) as error:
        cloud.block_storage.extend_volume(volume, 1)
    assert "New size for extend must be greater than current size" in refusal(error)
    cloud.block_storage.delete_volume(volume, ignore_missing=False)
    _without(lambda: cloud.block_storage.find_volume(volume.id))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"volume_type": "no-such-type"}, {"availability_zone": "mars"}])
@pytest.mark.usefixtures("volumes")
def test_a_wrong_volume_is_refused(create: Create, wrong: dict[str, Any]) -> None:
    with pytest.raises((BadRequestException, NotFoundException)):
        create("volume", **{"size": 1, **wrong})


@pytest.mark.usefixtures("volumes")
def test_limits_tell_what_volumes_take(cloud: Cloud, create: Create) -> None:
    before = cloud.block_storage.get_limits().absolute
    assert isinstance(before.max_total_volumes, int)
    assert isinstance(before.max_total_volume_gigabytes, int)
    _volume(cloud, create("volume", size=2))
    after = cloud.block_storage.get_limits().absolute
    assert after.total_volumes_used - before.total_volumes_used == 1
    assert after.total_gigabytes_used - before.total_gigabytes_used == 2


@pytest.mark.usefixtures("volumes")
def test_a_volumes_zone_is_among_those_listed(cloud: Cloud, create: Create) -> None:
    zones = {zone.name: zone.state for zone in cloud.block_storage.availability_zones()}
    assert zones[_volume(cloud, create("volume", size=1)).availability_zone] == {"available": True}


@pytest.mark.usefixtures("volumes")
def test_a_volume_belongs_to_a_server_until_that_goes(
    cloud: Cloud, create: Create, network: Any, server_attributes: dict[str, Any]
) -> None:
    kept, gone = (_volume(cloud, create("volume", size=1)) for _ in range(2))
    image = {"uuid": server_attributes["image_id"], "source_type": "image", "destination_type": "local"}
    devices = [image | {"boot_index": 0, "delete_on_termination": True}]
    for volume in (kept, gone):
        devices.append(
            {"uuid": volume.id, "source_type": "volume", "destination_type": "volume", "boot_index": -1}
            | {"delete_on_termination": volume == gone}
        )
    wanted = {"networks": [{"uuid": network.id}], "block_device_mapping": devices, **server_attributes}
    server = _wait(cloud, create("server", **wanted))
    assert {each["id"] for each in server.attached_volumes} == {kept.id, gone.id}
    attached = cloud.block_storage.get_volume(kept.id)
    assert (attached.status, [each["server_id"] for each in attached.attachments]) == ("in-use", [server.id])
    with pytest.raises(BadRequestException):
        cloud.block_storage.delete_volume(kept.id, ignore_missing=False)
    with pytest.raises(BadRequestException, match=r"failed to get volume|must be 'available'|status"):
        create("server", **wanted)
    # Only from this version on may a volume grow under a server.
    extend = {"os-extend": {"new_size": 2}}
    path = f"/volumes/{kept.id}/action"
    assert cloud.block_storage.post(path, json=extend, microversion="3.41").status_code == 400
    assert cloud.block_storage.post(path, json=extend, microversion="3.42").status_code == 202
    assert _volume(cloud, kept, "in-use").size == 2
    _delete(cloud, server)
    assert _volume(cloud, kept).attachments == []
    _without(lambda: cloud.block_storage.find_volume(gone.id))


@pytest.mark.usefixtures("volumes")
def test_a_volume_is_attached_to_a_server_and_detached(
    cloud: Cloud, create: Create, network: Any, server_attributes: dict[str, Any]
) -> None:
    server = _wait(cloud, create("server", networks=[{"uuid": network.id}], **server_attributes))
    volume = _volume(cloud, create("volume", size=1))
    cloud.compute.create_volume_attachment(server, volume_id=volume.id)
    _volume(cloud, volume, "in-use")
    assert [each.volume_id for each in cloud.compute.volume_attachments(server)] == [volume.id]
    cloud.compute.delete_volume_attachment(server, volume.id)
    assert _volume(cloud, volume).attachments == []


# What a cache lies in, and who may use it


@pytest.fixture
def object_store(cloud: Cloud) -> Any:
    """The object store, where the cloud has one."""
    if not any(service["type"] == "object-store" for service in cloud.service_catalog):
        pytest.skip("this cloud has no object store")
    return cloud.object_store


def test_a_container_goes_only_when_it_is_empty(object_store: Any, create: Create) -> None:
    container = create("container", metadata={"stack": "contract"})
    found = object_store.get_container_metadata(container.name)
    assert (found.object_count, found.metadata) == (0, {"stack": "contract"})
    assert container.name in [each.name for each in object_store.containers()]
    # To make it again changes nothing and is no error.
    object_store.create_container(container.name)
    assert object_store.get_container_metadata(container.name).metadata == {"stack": "contract"}
    object_store.upload_object(container=container.name, name="a/b c", data=b"cached")
    assert [each.name for each in object_store.objects(container.name)] == ["a/b c"]
    assert object_store.download_object("a/b c", container=container.name) == b"cached"
    with pytest.raises(ConflictException):
        object_store.delete_container(container.name, ignore_missing=False)
    object_store.delete_object("a/b c", container=container.name, ignore_missing=False)
    object_store.delete_container(container.name, ignore_missing=False)
    with pytest.raises(NotFoundException):
        object_store.get_container_metadata(container.name)


def test_an_application_credential_keeps_its_rules(cloud: Cloud) -> None:
    user = cloud.current_user_id
    name = f"contract-{uuid.uuid4().hex[:12]}"
    rule = {"service": "compute", "method": "GET", "path": "/v2.1/servers/*"}
    made = cloud.identity.create_application_credential(user, name, access_rules=[rule])
    try:
        found = cloud.identity.get_application_credential(user, made.id)
        assert [{key: each[key] for key in rule} for each in found.access_rules] == [rule]
        assert [each.id for each in cloud.identity.application_credentials(user, name=name)] == [made.id]
        with pytest.raises(ConflictException):
            cloud.identity.create_application_credential(user, name)
    finally:
        cloud.identity.delete_application_credential(user, made.id)
    with pytest.raises(NotFoundException):
        cloud.identity.get_application_credential(user, made.id)


def test_an_ec2_credential_is_made_found_and_deleted(cloud: Cloud) -> None:
    path = f"/users/{cloud.current_user_id}/credentials/OS-EC2"
    made = cloud.identity.post(path, json={"tenant_id": cloud.current_project_id})
    assert made.status_code == 201
    credential = made.json()["credential"]
    assert (credential["tenant_id"], credential["user_id"]) == (cloud.current_project_id, cloud.current_user_id)
    assert credential["access"] != credential["secret"]
    one = f"{path}/{credential['access']}"
    assert cloud.identity.get(one).json()["credential"]["secret"] == credential["secret"]
    listed = cloud.identity.get(path).json()["credentials"]
    assert credential["access"] in [each["access"] for each in listed]
    assert cloud.identity.delete(one).status_code == 204
    assert cloud.identity.get(one).status_code == 404
    assert cloud.identity.post(path, json={"tenant_id": NOWHERE}).status_code == 404
