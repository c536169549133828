"""Whether a stack fits into its project's quotas is said before anything is created: the program's check, on the
doubles."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clients import ClientError
from clients.lookups import look_up
from clients.openstack import Catalogue
from clients.quotas import check_quotas
from settings import OpenStackHost, Settings
from tests.sandbox.inprocess import HOST, InProcess

VOLUME = {"dockerVolume": {"size": 30}}
# What is asked for quotas.
LIMITS = ("/limits", "/details", "/details.json")


@pytest.fixture
def clouds(tmp_path: Path) -> Iterator[InProcess]:
    with InProcess(tmp_path / "store.sqlite") as served:
        yield served


def check(clouds: InProcess, **host: Any) -> list[str]:
    """The warnings about a stack with this host."""
    runners = {"app": {"token": "glrt-own"}}
    settings = Settings.model_validate_json(json.dumps({"host": HOST | host, "runners": runners}))
    assert isinstance(settings.host, OpenStackHost)
    catalogue = Catalogue(clouds.connect)
    lookups = look_up("dev", settings, catalogue, None, preview=True)
    return check_quotas("dev", settings.host, lookups, catalogue)


def refusal(clouds: InProcess, **host: Any) -> str:
    with pytest.raises(ClientError) as error:
        check(clouds, **host)
    assert "\n" not in str(error.value)
    return str(error.value)


def asked(clouds: InProcess) -> int:
    return sum(entry["path"].endswith(LIMITS) for entry in clouds.requests(method="GET"))


@pytest.fixture
def boot(clouds: InProcess) -> Callable[..., None]:
    """Makes machines of the stack."""

    def _boot(*names: str, **attributes: Any) -> None:
        cloud: Any = clouds.connect()
        given = {
            "flavor_id": cloud.compute.find_flavor("m1.small").id,
            "image_id": cloud.image.find_image("debian-13").id,
            "networks": [{"uuid": cloud.network.find_network("runners").id}],
        }
        for name in names:
            server = cloud.compute.create_server(name=name, **given | attributes)
            cloud.compute.wait_for_server(server, interval=0.05)

    return _boot


def limit(clouds: InProcess, compute: dict[str, int] | None = None, network: dict[str, int] | None = None) -> None:
    cloud: Any = clouds.connect()
    project = cloud.current_project_id
    if compute:
        cloud.compute.update_quota_set(project, **compute)
    if network:
        cloud.network.update_quota(project, **network)


def test_a_stack_that_fits_is_told_nothing_with_one_question_to_each_service(clouds: InProcess) -> None:
    assert check(clouds, count=5, floatingIpPool="public", **VOLUME) == []
    assert asked(clouds) == 3


@pytest.mark.parametrize(
    ("host", "compute", "network", "line"),
    [
        ({"count": 3}, {"instances": 2}, {}, "no room for dev-1, dev-2, dev-3 (instances: 3 needed, 2 of 2 left)"),
        (
            {"count": 6, "flavor": "m1.large"},
            {},
            {},
            "no room for dev-1, dev-2, dev-3 and 3 more (cores: 24 needed, 20 of 20 left)",
        ),
        (
            {"count": 2, "overrides": {"2": {"flavor": "m1.medium"}}},
            {"cores": 2, "ram": 6143},
            {},
            "(cores: 3 needed, 2 of 2 left; MiB of memory: 6144 needed, 6143 of 6143 left)",
        ),
        ({"count": 2}, {"server_group_members": 1}, {}, "servers in one server group: 2 needed, 1 of 1 left"),
        ({"count": 2}, {"server_groups": 0}, {}, "(server groups: 1 needed, 0 of 0 left)"),
        ({"additionalNetworks": ["runners-geneve"]}, {}, {"port": 1}, "(ports: 2 needed, 1 of 1 left)"),
        ({"floatingIpPool": "public"}, {}, {"floatingip": 0}, "(floating IPs: 1 needed, 0 of 0 left)"),
        # The project has a default group, and that has four rules.
        ({}, {}, {"security_group": 1}, "(security groups: 1 needed, 0 of 1 left)"),
        ({}, {}, {"security_group_rule": 6}, "(security group rules: 3 needed, 2 of 6 left)"),
        (
            {"count": 2, "bootVolume": {"size": 471}, **VOLUME},
            {},
            {},
            "(GiB of volumes: 1002 needed, 1000 of 1000 left)",
        ),
    ],
    ids=[
        "instances", "cores", "override", "group members", "groups", "ports", "floating IPs", "security groups",
        "rules", "volumes",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    clouds: InProcess, host: dict[str, Any], compute: dict[str, int], network: dict[str, int], line: str
) -> None:
    list(clouds.connect().network.security_groups())
    limit(clouds, compute, network)
    text = refusal(clouds, **host)
    assert text.startswith("OpenStack quota: no room for dev-1")
    assert line in text
    assert text.endswith("; ask for less by host.count, flavor or volumes, or for a larger quota")


def test_no_limit_is_no_limit(clouds: InProcess) -> None:
    limit(clouds, {"instances": -1, "cores": -1, "ram": -1, "server_group_members": -1}, {"port": -1})
    assert check(clouds, count=40) == []


def test_machines_that_are_there_need_no_room(clouds: InProcess, boot: Callable[..., None]) -> None:
    boot("dev-1", "dev-2")
    limit(clouds, {"instances": 2})
    assert check(clouds, count=2) == []
    assert check(clouds, count=1) == []
    assert asked(clouds) == 0
    assert "no room for dev-3 (instances: 1 needed, 0 of 2 left)" in refusal(clouds, count=3)


@pytest.mark.parametrize("change", [{"flavor": "m1.medium"}, {"image": "ubuntu-24.04"}, {"availabilityZone": "zone-2"}])
def test_a_machine_to_be_replaced_needs_room_beside_itself(
    clouds: InProcess, boot: Callable[..., None], change: dict[str, Any]
) -> None:
    boot("dev-1")
    assert check(clouds, **change) == []
    limit(clouds, {"instances": 1})
    assert check(clouds, **change) == [
        "OpenStack quota: no room for the old and the new dev-1 at once (instances: 1 needed, 0 of 1 left), as it "
        "takes until the old one has drained"
    ]


def test_a_floating_ip_that_moves_is_one(clouds: InProcess, boot: Callable[..., None]) -> None:
    boot("dev-1")
    limit(clouds, network={"floatingip": 0})
    change = {"flavor": "m1.medium", "floatingIpPool": "public"}
    (line,) = check(clouds, **change)
    assert "(floating IPs: 1 needed, 0 of 0 left)" in line
    assert check(clouds, ssh={"address": "fixed"}, **change) == []


def test_what_an_interrupted_update_has_left_needs_no_room_either(clouds: InProcess) -> None:
    cloud: Any = clouds.connect()
    network, description = cloud.network.find_network("runners"), "gitlab-runners, stack dev, host dev-1"
    cloud.network.create_port(network_id=network.id, name="dev-1", description=description)
    limit(clouds, network={"port": 1})
    assert check(clouds) == []
    cloud.network.update_port(next(cloud.network.ports()), description="gitlab-runners, stack other, host other-1")
    assert "ports: 1 needed, 0 of 1 left" in refusal(clouds)


def test_a_volume_that_grows_needs_the_difference(clouds: InProcess, boot: Callable[..., None]) -> None:
    boot("dev-1")
    cloud: Any = clouds.connect()
    volume = cloud.block_storage.create_volume(name="dev-1", size=20, metadata={"pulumi-stack": "dev"})
    cloud.block_storage.wait_for_status(volume, "available", interval=0.05)
    cloud.compute.create_volume_attachment(next(cloud.compute.servers()), volume_id=volume.id)
    assert check(clouds, dockerVolume={"size": 20}) == []
    assert check(clouds, dockerVolume={"size": 1000}) == []
    assert "no room for larger volumes (GiB of volumes: 981 needed, 980 of 1000 left)" in refusal(
        clouds, dockerVolume={"size": 1001}
    )


@pytest.mark.parametrize("status", [403, 404])
def test_a_cloud_that_keeps_its_quotas_to_itself_is_in_nobodys_way(clouds: InProcess, status: int) -> None:
    limit(clouds, {"instances": 0}, {"port": 0})
    fault = {"do": "status", "status": status, "path": f"({'|'.join(LIMITS)})$", "times": 9}
    clouds.control("POST", "faults", fault)
    assert check(clouds, **VOLUME) == []
    assert asked(clouds) == 3
