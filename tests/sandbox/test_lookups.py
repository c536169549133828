"""What is wrong with the names and the access of a stack is said in one line: the program's look-ups, on the doubles.

That such a line ends a run before anything is created is shown by tests/engine/test_bad_input.py.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gitlab
import pytest

from clients import ClientError
from clients.gitlab import GitLab, TokensUnknown, token_expiries
from clients.lookups import Lookups, look_up
from clients.openstack import Catalogue, CloudAccess, Endpoint, Flavor, connect
from sandbox.openstack import keystone
from settings import Settings
from tests.sandbox.inprocess import HOST, InProcess

CLOSED = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with InProcess(tmp_path_factory.mktemp("clouds") / "store.sqlite") as served:
        yield served


@pytest.fixture(autouse=True)
def without_clouds_yaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("OS_CLOUD", "OS_CLIENT_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)


def found(clouds: InProcess, config: dict[str, Any]) -> Lookups:
    """What the look-ups of a stack find."""
    settings = Settings.model_validate_json(json.dumps(config))
    asked = GitLab(clouds.gitlab_url, {"token": clouds.tokens.platform}, {})
    asked.check_token()
    return look_up("sandbox", settings, Catalogue(clouds.connect), asked, preview=True)


def looked_up(
    clouds: InProcess, host: dict[str, Any] | None = None, cache: dict[str, Any] | None = None, **runner: Any
) -> str:
    """The one line with which the look-ups of a stack end."""
    runners = {"app": {"project": 100, "tags": ["docker"]} | runner}
    with pytest.raises(ClientError) as error:
        found(clouds, {"host": HOST | (host or {}), "runners": runners, "cache": cache})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ({"flavor": "m1.smal"}, "flavor m1.smal: does not exist in this cloud; did you mean m1.small"),
        ({"image": "debian-31"}, "image debian-31: does not exist in this cloud; did you mean debian-13"),
        ({"image": "duplicate"}, "image duplicate: the name is ambiguous; use one of the ids"),
        ({"network": "runner"}, "network runner: does not exist in this cloud; did you mean runners"),
        ({"floatingIpPool": "publik"}, "network publik: does not exist in this cloud; did you mean public"),
        ({"keyPair": {"name": "nobody"}}, "key pair nobody: does not exist in this cloud"),
        (
            {"dockerVolume": {"size": 20, "type": "sdd"}},
            "volume type sdd: does not exist in this cloud; did you mean ssd",
        ),
        ({"availabilityZone": "nowa"}, "availability zone nowa: does not exist in this cloud; did you mean nova"),
        (
            {"count": 3, "availabilityZones": ["nova", "zone2"]},
            "availability zone zone2: does not exist in this cloud; did you mean zone-2",
        ),
        ({"overrides": {"1": {"flavor": "m1.smal"}}}, "flavor m1.smal: does not exist in this cloud"),
        (
            {"count": 2, "overrides": {"sandbox-2": {"image": "debian-31"}}},
            "image debian-31: does not exist in this cloud; did you mean debian-13",
        ),
        (
            {"availabilityZone": "zone-2", "dockerVolume": {"size": 20, "sameZone": True}},
            "availability zone of volumes zone-2: does not exist in this cloud; there are: nova",
        ),
        ({"mtu": 1460}, "host.mtu: 1460: is above the MTU of network runners (1450)"),
    ],
)
def test_a_name_that_the_cloud_does_not_know(clouds: InProcess, host: dict[str, Any], line: str) -> None:
    assert line in looked_up(clouds, host)


def test_a_network_that_is_too_narrow_for_ipv6(clouds: InProcess) -> None:
    network = clouds.connect().network.find_network("runners", ignore_missing=False)
    store = clouds.store
    document = store.get("neutron.network", network.id)
    assert document is not None
    store.put("neutron.network", network.id, document | {"mtu": 1279})
    try:
        assert (
            looked_up(clouds, {"ipv6": True})
            == "host.ipv6: IPv6 needs an MTU of 1280 bytes, and the networks have 1279"
        )
    finally:
        store.put("neutron.network", network.id, document)


def test_workers_are_looked_up_as_their_hosts_are(clouds: InProcess) -> None:
    scaler = {"plugin": "registry.example/fleeting-plugin-openstack:1.2.3", "maxInstances": 2, "flavor": "m1.large"}
    runner = {"project": 100, "tags": ["docker"], "executor": "autoscaler"}
    lookups = found(clouds, {"host": HOST, "runners": {"app": runner | {"autoscaler": scaler}}})
    assert lookups.workers == {"app": replace(lookups.machines["sandbox-1"], flavor_id="4")}
    assert lookups.cloud == CloudAccess(clouds.auth_url, None, "public", "/compute/v2.1", "/image")
    wrong = looked_up(clouds, executor="autoscaler", autoscaler=scaler | {"flavor": "m1.larg"})
    assert wrong == "flavor m1.larg: does not exist in this cloud; did you mean m1.large or m1.small?"


@pytest.mark.parametrize("spelled", [str.upper, lambda id_: id_.replace("-", ""), "{{{}}}".format])
def test_an_id_is_taken_as_the_cloud_writes_it(clouds: InProcess, spelled: Callable[[str], str]) -> None:
    catalogue = Catalogue(clouds.connect)
    image, network = catalogue.image_id("debian-13"), catalogue.network("runners")
    assert catalogue.image_id(spelled(image)) == image
    assert catalogue.network(spelled(network.id)) == network
    assert catalogue.network_id(spelled(network.id)) == network.id


def test_a_flavors_id_may_be_any_text(clouds: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue(clouds.connect)
    hexadecimal, usual = "0123456789ABCDEF0123456789ABCDEF", "fedcba98-7654-3210-fedc-ba9876543210"
    flavors = [Flavor(id_, f"f{number}", 1, 1) for number, id_ in enumerate((hexadecimal, usual))]
    monkeypatch.setattr(Catalogue, "_flavors", flavors)
    assert catalogue.flavor_id(hexadecimal) == hexadecimal
    assert catalogue.flavor_id(usual.upper()) == catalogue.flavor_id(usual.replace("-", "")) == usual


def test_each_machine_is_made_of_what_it_has_and_a_name_is_looked_up_once(clouds: InProcess) -> None:
    host = HOST | {
        "count": 4,
        "availabilityZones": ["nova", "zone-2"],
        "overrides": {"2": {"flavor": "m1.large"}, "sandbox-3": {"image": "ubuntu-24.04"}},
    }
    clouds.control("DELETE", "requests")
    machines = found(clouds, {"host": host, "runners": {"app": {"project": 100, "tags": ["docker"]}}}).machines
    assert list(machines) == ["sandbox-1", "sandbox-2", "sandbox-3", "sandbox-4"]
    assert machines["sandbox-1"] == machines["sandbox-4"]
    assert machines["sandbox-2"] == replace(machines["sandbox-1"], flavor_id="4")
    assert machines["sandbox-3"].image_id != machines["sandbox-1"].image_id
    asked = [entry["path"].rpartition("v2")[2] for entry in clouds.requests(method="GET")]
    once = ("/flavors/detail", ".1/os-availability-zone", ".0/networks")
    assert [sum(path.endswith(each) for path in asked) for each in (*once, "/images")] == [1, 1, 1, 2]


@pytest.fixture
def attached(clouds: InProcess) -> Iterator[Callable[..., Any]]:
    """Makes volumes that the cloud's only server has."""
    cloud = clouds.connect()
    image, flavor = cloud.image.find_image("debian-13"), cloud.compute.find_flavor("m1.small")
    network = cloud.network.find_network("runners")
    assert image is not None
    assert flavor is not None
    assert network is not None
    server = cloud.compute.create_server(
        name="sandbox-1", image_id=image.id, flavor_id=flavor.id, networks=[{"uuid": network.id}]
    )
    cloud.compute.wait_for_server(server, interval=0.1)

    def make(**attributes: Any) -> None:
        volume = cloud.block_storage.create_volume(**attributes)
        cloud.block_storage.wait_for_status(volume, "available", interval=0.1)
        cloud.compute.create_volume_attachment(server, volume_id=volume.id)

    yield make
    cloud.compute.delete_server(server)


def test_a_volume_does_not_shrink(clouds: InProcess, attached: Callable[..., Any]) -> None:
    attached(name="sandbox-1", size=30, metadata={"pulumi-stack": "sandbox"})
    # Another stack's, and another machine's: neither is in the way.
    attached(name="sandbox-1", size=99, metadata={"pulumi-stack": "other"})
    attached(name="sandbox-2", size=99, metadata={"pulumi-stack": "sandbox"})
    assert looked_up(clouds, {"dockerVolume": {"size": 29}}) == (
        "host.dockerVolume.size: 29: volume sandbox-1 has 30 GiB, and volumes only grow; for a smaller one remove "
        "dockerVolume, update the stack and set it again"
    )
    runners = {"app": {"project": 100, "tags": ["docker"]}}
    for size in (30, 31):
        assert found(clouds, {"host": HOST | {"dockerVolume": {"size": size}}, "runners": runners}).machines


def test_a_cloud_that_stores_nothing(clouds: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    services = [service for service in keystone._SERVICES if service[1] not in ("cinder", "swift")]
    monkeypatch.setattr(keystone, "_SERVICES", services)
    assert looked_up(clouds, {"dockerVolume": {"size": 20}}) == (
        "host.dockerVolume: this cloud has no block storage (Cinder) in its catalogue"
    )
    assert looked_up(clouds, cache={"kind": "openstack"}) == (
        "cache.kind: openstack: this cloud has no object store (Swift) in its catalogue; name a bucket with kind: s3"
    )


@pytest.mark.parametrize(
    ("cache", "endpoint"),
    [
        ({}, lambda here: Endpoint(here, True)),
        ({"insecure": False}, lambda here: Endpoint(here, False)),
        ({"server": "s3.example:9000"}, lambda _: Endpoint("s3.example:9000", False)),
        ({"server": "s3.example", "insecure": True}, lambda _: Endpoint("s3.example", True)),
    ],
    ids=["catalogue", "catalogue by https", "given", "given by http"],
)
def test_the_s3_api_of_the_cloud(clouds: InProcess, cache: dict[str, Any], endpoint: Callable[[str], Endpoint]) -> None:
    runners = {"app": {"project": 100, "tags": ["docker"]}}
    config = {"host": HOST, "runners": runners, "cache": {"kind": "openstack"} | cache}
    assert found(clouds, config).cache_endpoint == endpoint(urlsplit(clouds.auth_url).netloc)


def test_a_project_that_gitlab_does_not_know(clouds: InProcess) -> None:
    assert "GitLab: there is no project 999" in looked_up(clouds, project=999)


def test_a_token_that_gitlab_refuses_or_that_may_too_little(clouds: InProcess) -> None:
    with pytest.raises(ClientError, match="refuses the token"):
        GitLab(clouds.gitlab_url, {"token": "glpat-wrong"}, {}).check_token()
    with pytest.raises(
        ClientError, match="the token has the scopes read_user, but not create_runner and manage_runner"
    ):
        GitLab(clouds.gitlab_url, {"token": clouds.tokens.read_user}, {}).check_token()


def test_a_gitlab_that_does_not_answer() -> None:
    with pytest.raises(ClientError, match=f"GitLab at {CLOSED} cannot be reached"):
        GitLab(CLOSED, {"token": "glpat-any"}, {}).check_token()


@pytest.fixture
def given(clouds: InProcess) -> Iterator[Callable[..., str]]:
    """Registers a runner whose token holds for so many seconds, and returns it."""
    administrator = gitlab.Gitlab(clouds.gitlab_url, private_token=clouds.tokens.administrator)
    settings = administrator.settings.get()

    def register(seconds: int | None) -> str:
        settings.project_runner_token_expiration_interval = seconds
        settings.save()
        new = {"runner_type": "project_type", "project_id": 100, "tag_list": "docker"}
        made: Any = administrator.http_post("/user/runners", post_data=new)
        return str(made["token"])

    yield register
    settings.project_runner_token_expiration_interval = None
    settings.save()


def test_each_given_token_is_asked_for_once(clouds: InProcess, given: Callable[..., str]) -> None:
    day, ever = given(24 * 60 * 60), given(None)
    clouds.control("DELETE", "requests")
    found = token_expiries(clouds.gitlab_url, {}, {"app": day, "web": day, "old": ever})
    assert found["app"] == found["web"] != found["old"] is None
    assert found["app"] is not None
    assert 23 < (found["app"] - datetime.now(UTC)) / timedelta(hours=1) < 24
    asked = clouds.requests(method="POST")
    assert [entry["path"] for entry in asked] == ["/api/v4/runners/verify"] * 2
    assert not {day, ever} & set(json.dumps(asked).replace('"', " ").split())


def test_asking_again_makes_no_further_manager_of_a_runner(clouds: InProcess, given: Callable[..., str]) -> None:
    token = given(None)
    for _ in range(2):
        token_expiries(clouds.gitlab_url, {}, {"app": token})
    administrator = gitlab.Gitlab(clouds.gitlab_url, private_token=clouds.tokens.administrator)
    newest = max(administrator.runners_all.list(get_all=True), key=lambda runner: int(runner.id))
    (manager,) = administrator.http_list(f"/runners/{newest.id}/managers")
    assert manager["system_id"] == "gitlab-runners"


def test_given_tokens_that_gitlab_refuses(clouds: InProcess, given: Callable[..., str]) -> None:
    tokens = {"app": "glrt-unknown-1", "web": given(None), "old": "glrt-unknown-2"}
    with pytest.raises(ClientError) as error:
        token_expiries(clouds.gitlab_url, {}, tokens)
    told = f"GitLab at {clouds.gitlab_url}: 403 Forbidden: it has expired, or there is no such runner"
    assert str(error.value).splitlines() == [f"runners.{name}.token: {told}" for name in ("app", "old")]


@pytest.mark.parametrize("path", ["", "/elsewhere"], ids=["closed", "no API"])
def test_a_gitlab_that_does_not_tell_of_given_tokens(clouds: InProcess, path: str) -> None:
    url = f"{clouds.gitlab_url}{path}" if path else CLOSED
    with pytest.raises(TokensUnknown, match=f"GitLab at {url}") as error:
        token_expiries(url, {}, {"app": "glrt-secret"})
    assert "glrt-secret" not in str(error.value)


@pytest.mark.parametrize(
    "config", [{}, {"cloud": "nowhere"}, {"authUrl": f"{CLOSED}/v3"}], ids=["none", "cloud", "url"]
)
def test_a_cloud_without_credentials(config: dict[str, str]) -> None:
    with pytest.raises(ClientError, match="OpenStack: no usable credentials"):
        connect(config)


def test_a_cloud_that_does_not_answer() -> None:
    config = {
        "authUrl": f"{CLOSED}/v3",
        "userName": "me",
        "password": "secret",
        "tenantName": "mine",
        "userDomainName": "Default",
        "projectDomainName": "Default",
    }
    with pytest.raises(ClientError, match="OpenStack cannot be reached"):
        connect(config)
