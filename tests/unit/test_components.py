"""What the components declare, through Pulumi's mocks: no engine, no provider, no network."""

import asyncio
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pulumi
import pytest
import yaml
from pulumi.runtime import mocks, rpc, settings
from pydantic import SecretStr

from clients.lookups import Lookups, Machine
from clients.openstack import CloudAccess, Endpoint
from clients.state import State
from components.fleet import Fleet, FleetArgs, Shared
from settings import (
    Autoscaler,
    DockerHost,
    DockerVolume,
    HostOverride,
    KeyPair,
    Limits,
    Manager,
    ObjectStoreCache,
    OpenStackHost,
    Owner,
    Proxy,
    Prune,
    RegistryCache,
    RegistryLogin,
    Runner,
    S3Cache,
    Settings,
    Ssh,
    Updates,
)

HOST_KEY = "ssh-ed25519 AAAAhostkey"
TOKEN = "glrt-the-token"


@dataclass
class Registered(pulumi.runtime.Mocks):
    """Answers for the engine and remembers what was registered."""

    resources: list[pulumi.runtime.MockResourceArgs] = field(default_factory=list)

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        self.resources.append(args)
        computed: dict[str, dict[str, Any]] = {
            "openstack:networking/port:Port": {"allFixedIps": ["2001:db8::5", "10.0.0.5"]},
            "openstack:networking/floatingIp:FloatingIp": {"address": "203.0.113.5"},
            "gitlab:index/userRunner:UserRunner": {"token": TOKEN},
            "docker:index/volume:Volume": {"name": args.name, "mountpoint": f"/volumes/{args.name}"},
            "docker:index/remoteImage:RemoteImage": {"imageId": "sha256:1"},
            "docker:index/container:Container": {"name": args.name},
            "openstack:identity/applicationCredential:ApplicationCredential": {"secret": "made-secret"},
            "openstack:identity/ec2CredentialV3:Ec2CredentialV3": {"access": "made-access", "secret": "made-secret"},
            "pulumi-python:dynamic/ssh:HostKey": {"private_key": "PRIVATE\n", "public_key": HOST_KEY},
        }
        id_ = "7" if args.typ.endswith("UserRunner") else f"{args.name}-id"
        return id_, dict(args.inputs) | computed.get(args.typ, {})

    def call(self, _args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise AssertionError("the program asks no provider anything")

    def of(self, type_: str) -> list[pulumi.runtime.MockResourceArgs]:
        return [resource for resource in self.resources if resource.typ.endswith(type_)]

    def inputs(self, type_: str, name: str) -> dict[str, Any]:
        return next(plain(resource.inputs) for resource in self.of(type_) if resource.name == name)


def plain(value: Any) -> Any:
    """A value without the envelope in which Pulumi hands secrets over."""
    if isinstance(value, dict):
        return (
            plain(value["value"])
            if rpc._special_sig_key in value
            else {key: plain(each) for key, each in value.items()}
        )
    return [plain(each) for each in value] if isinstance(value, list) else value


class NoLeftovers:
    """Stands for the hooks: the mocks have no engine that would call them."""

    def before_create(self, parent: pulumi.Resource, **options: Any) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=parent, **options)

    of_unique = before_create
    of_volume = before_create
    of_credential = before_create


class NoCallbacks:
    def register_resource_hook(self, _hook: pulumi.ResourceHook) -> None:
        """The mocks call no hooks."""


@pytest.fixture
def registered() -> Iterator[Registered]:
    answers = Registered()
    asyncio.set_event_loop(asyncio.new_event_loop())
    mocks.set_mocks(answers, project="gitlab-runners", stack="dev", preview=False)
    settings.SETTINGS.callbacks = NoCallbacks()
    yield answers
    asyncio.get_event_loop().close()


HOST = OpenStackHost(
    kind="openstack",
    flavor="m1.small",
    image="debian-13",
    network="runners",
    key_pair=KeyPair(name="me"),
    ssh_from=("192.0.2.0/24",),
)


RUNNER = Runner(project=1, tags=("docker",))
WORKER = Machine("worker-flavor", "worker-image", ["network-id"], 1450)


def declare(
    host: OpenStackHost | DockerHost = HOST,
    token_expiry: datetime | None = None,
    *,
    shared: Shared | None = None,
    cache: S3Cache | ObjectStoreCache | None = None,
    endpoint: Endpoint | None = None,
    **runners: Runner,
) -> dict[str, Any]:
    """Declares a fleet and returns its outputs."""
    machines = {}
    if isinstance(host, OpenStackHost):
        names = [f"dev-{number}" for number in range(1, host.count + 1)]
        machines = {name: Machine(f"flavor of {name}", "image-id", ["network-id"], 1450) for name in names}
    args = FleetArgs(
        project="gitlab-runners",
        stack="dev",
        settings=Settings(host=host, runners=runners or {"app": RUNNER}, manager=Manager(), cache=cache),
        lookups=Lookups(
            machines,
            {"app": "https://gitlab.example/team/app/-/runners"},
            cache_endpoint=endpoint,
            workers={name: WORKER for name, runner in runners.items() if runner.autoscaler is not None},
            cloud=CloudAccess("https://keystone.example/v3", "one", "public", "/compute/v2.1", "/image", ca="CA\n"),
        ),
        leftovers=NoLeftovers(),  # type: ignore[arg-type]
        state=State(lambda: pytest.fail("nothing is created")),
        gitlab_config={"baseUrl": "https://gitlab.example/api/v4/", "token": "glpat-secret"},
        gitlab_url="https://gitlab.example",
        token_expiry=lambda _runner: token_expiry,
        own_tokens={name: token_expiry for name, runner in runners.items() if runner.token is not None},
        shared=shared,
    )
    outputs: dict[str, Any] = {}

    @pulumi.runtime.test  # type: ignore[untyped-decorator]
    def program() -> pulumi.Output[None]:
        fleet = Fleet("dev", args)
        declared: dict[str, pulumi.Output[Any]] = {"hosts": fleet.hosts, "runners": fleet.runners}
        if fleet.prometheus_targets is not None:
            declared["targets"] = fleet.prometheus_targets
        return pulumi.Output.all(**declared).apply(outputs.update)

    program()
    return outputs


def config_toml(registered: Registered, name: str) -> dict[str, Any]:
    uploads = registered.inputs("Container", f"{name}-config")["uploads"]
    upload = next(upload for upload in uploads if upload["file"] == "/etc/gitlab-runner/config.toml")
    return tomllib.loads(upload["content"])


def test_outputs_tell_where_everything_is(registered: Registered) -> None:
    assert declare() == {
        "hosts": {
            "dev-1": {
                "addresses": ["2001:db8::5", "10.0.0.5"],
                "mtu": 1450,
                "dockerUrl": "ssh://debian@10.0.0.5:22",
            }
        },
        "runners": {
            "app": {
                "id": 7,
                "page": "https://gitlab.example/team/app/-/runners/7",
                "tags": ["docker"],
                "containers": ["dev-1-app"],
            }
        },
    }


def test_every_runner_has_a_manager_on_every_host(registered: Registered) -> None:
    declare(
        HOST.model_copy(update={"count": 2}),
        app=Runner(project=1, tags=("a",)),
        team=Runner(group=2, tags=("b",)),
    )
    assert {container.name for container in registered.of("Container")} == {
        f"dev-{host}-{runner}{suffix}" for host in (1, 2) for runner in ("app", "team") for suffix in ("", "-config")
    }
    assert len(registered.of("UserRunner")) == 2


SPREAD = HOST.model_copy(update={"availability_zones": ("a", "b", "c")})


def zones(registered: Registered, host: OpenStackHost) -> dict[str, str]:
    registered.resources.clear()
    declare(host)
    return {instance.name: plain(instance.inputs)["availabilityZone"] for instance in registered.of("Instance")}


def test_machines_take_turns_over_the_zones_and_stay_there_whatever_their_count(registered: Registered) -> None:
    five = zones(registered, SPREAD.model_copy(update={"count": 5}))
    assert five == {"dev-1": "a", "dev-2": "b", "dev-3": "c", "dev-4": "a", "dev-5": "b"}
    for count in range(1, 5):
        fewer = zones(registered, SPREAD.model_copy(update={"count": count}))
        assert fewer.items() <= five.items()


def test_one_zone_is_the_same_either_way(registered: Registered) -> None:
    one = zones(registered, HOST.model_copy(update={"availability_zone": "a"}))
    trigger = registered.of("Instance")[0]
    assert zones(registered, HOST.model_copy(update={"availability_zones": ("a",)})) == one
    assert registered.of("Instance")[0].inputs == trigger.inputs


def test_a_machine_has_what_is_its_own(registered: Registered) -> None:
    own = {
        "2": HostOverride(availability_zone="z", metadata={"disk": "ssd"}),
        "dev-3": HostOverride(metadata={"rack": "9"}),
    }
    host = SPREAD.model_copy(update={"count": 3, "metadata": {"rack": "1"}, "overrides": own})
    assert zones(registered, host) == {"dev-1": "a", "dev-2": "z", "dev-3": "c"}
    metadata = {name: registered.inputs("Instance", name)["metadata"] for name in ("dev-1", "dev-2", "dev-3")}
    assert [each["rack"] for each in metadata.values()] == ["1", "1", "9"]
    assert [name for name, each in metadata.items() if "disk" in each] == ["dev-2"]
    assert registered.inputs("Instance", "dev-2")["flavorId"] == "flavor of dev-2"


def test_a_volume_may_have_to_be_in_its_machines_zone(registered: Registered) -> None:
    volume = DockerVolume(size=100, same_zone=True)
    declare(SPREAD.model_copy(update={"count": 2, "docker_volume": volume}))
    volumes = [registered.inputs("blockstorage/volume:Volume", name)["availabilityZone"] for name in ("dev-1", "dev-2")]
    assert volumes == ["a", "b"]


def test_a_runner_may_live_on_some_hosts(registered: Registered) -> None:
    outputs = declare(
        HOST.model_copy(update={"count": 3}),
        everywhere=Runner(project=1, tags=("a",)),
        some=Runner(project=1, tags=("b",), hosts=(1, "dev-3")),
    )
    assert outputs["runners"]["some"]["containers"] == ["dev-1-some", "dev-3-some"]
    assert len(outputs["runners"]["everywhere"]["containers"]) == 3
    assert len(registered.of("UserRunner")) == 2


def test_an_engine_that_exists_is_the_first_host(registered: Registered) -> None:
    engine = DockerHost(kind="docker", url="unix:///run/docker.sock")
    outputs = declare(engine, app=Runner(project=1, tags=("a",), hosts=("dev-1",)))
    assert outputs["runners"]["app"]["containers"] == ["dev-1-app"]


def test_what_jobs_may_do_reaches_the_managers(registered: Registered) -> None:
    declare(
        app=Runner(
            project=1,
            tags=("a",),
            builds="rootless",
            allowed_images=("quay.io/buildah/stable:*",),
            allowed_services=("postgres:*",),
            allowed_pull_policies=("always",),
            services_limit=2,
            job_limits=Limits(memory="2g", cpus="1.5"),
            service_limits=Limits(memory="512m", cpus="1"),
            advanced={"docker": {"shm_size": 1048576}},
        ),
        sudo=Runner(project=1, tags=("b",), no_new_privileges=False),
        plain=Runner(project=1, tags=("c",)),
    )
    docker = config_toml(registered, "dev-1-app")["runners"][0]["docker"]
    assert {key: value for key, value in docker.items() if key not in {"image", "volumes", "network_mtu"}} == {
        # A machine's folder is mounted, not its socket: systemd makes a new one when docker.socket starts again.
        "host": "unix:///host/run/docker.sock",
        "privileged": False,
        "security_opt": ["seccomp:unconfined", "apparmor:unconfined"],
        "allowed_images": ["quay.io/buildah/stable:*"],
        "allowed_services": ["postgres:*"],
        "allowed_pull_policies": ["always"],
        "services_limit": 2,
        "memory": "2g",
        "cpus": "1.5",
        "service_memory": "512m",
        "service_cpus": "1",
        "shm_size": 1048576,
    }
    assert "security_opt" not in config_toml(registered, "dev-1-sudo")["runners"][0]["docker"]
    assert config_toml(registered, "dev-1-plain")["runners"][0]["docker"]["security_opt"] == ["no-new-privileges:true"]


def test_hosts_avoid_each_other_only_when_there_are_several(registered: Registered) -> None:
    declare(HOST.model_copy(update={"count": 2, "anti_affinity": "hard"}))
    assert registered.inputs("ServerGroup", "dev")["policies"] == "anti-affinity"
    assert registered.inputs("Instance", "dev-2")["schedulerHints"] == [{"group": "dev-id"}]


def test_a_machine_prunes_as_its_host_says(registered: Registered) -> None:
    declare(HOST.model_copy(update={"prune": Prune(older_than_hours=24, free_percent=30)}))
    text = registered.inputs("Instance", "dev-1")["userData"]
    assert "until=24h" in text
    assert "30 %" in text


def test_the_machines_of_a_stack_restart_at_different_times(registered: Registered) -> None:
    declare(HOST.model_copy(update={"updates": Updates(reboot_window="02:00-05:00"), "count": 2}))
    for name, time in (("dev-1", "02:00"), ("dev-2", "03:51")):
        assert f"OnCalendar=*-*-* {time}:00 UTC" in registered.inputs("Instance", name)["userData"]


def test_a_machine_that_prunes_nothing(registered: Registered) -> None:
    declare(HOST.model_copy(update={"prune": None}))
    assert "prune" not in registered.inputs("Instance", "dev-1")["userData"]


def test_a_single_host_needs_no_server_group(registered: Registered) -> None:
    declare()
    assert not registered.of("ServerGroup")


def test_only_declared_networks_reach_ssh_and_nothing_else_comes_in(registered: Registered) -> None:
    declare(HOST.model_copy(update={"ssh_from": ("192.0.2.0/24", "2001:db8::/32"), "ssh": Ssh(port=2222)}))
    rules = [dict(rule.inputs) for rule in registered.of("SecGroupRule")]
    inbound = [rule for rule in rules if rule["direction"] == "ingress"]
    assert {(rule["ethertype"], rule["remoteIpPrefix"]) for rule in inbound} == {
        ("IPv4", "192.0.2.0/24"),
        ("IPv6", "2001:db8::/32"),
    }
    assert all(rule["protocol"] == "tcp" for rule in inbound)
    assert all(rule["portRangeMin"] == rule["portRangeMax"] == 2222 for rule in inbound)
    assert registered.inputs("SecGroup", "dev")["deleteDefaultRules"] is True


def test_prometheus_reads_what_it_is_let(registered: Registered) -> None:
    host = HOST.model_copy(update={"metrics_from": ("198.51.100.7/32",), "count": 2})
    outputs = declare(host, app=Runner(project=1, tags=("docker",)))
    (rule,) = (dict(rule.inputs) for rule in registered.of("SecGroupRule") if "metrics" in rule.name)
    assert (rule["remoteIpPrefix"], rule["portRangeMin"], rule["portRangeMax"]) == ("198.51.100.7/32", 9252, 9252)
    assert config_toml(registered, "dev-2-app")["listen_address"] == ":9252"
    assert "runner-metrics.socket" in registered.inputs("Instance", "dev-1")["userData"]
    labels = {"stack": "dev", "instance": "dev-2"}
    assert outputs["targets"][2:] == [
        {"targets": ["10.0.0.5:9252"], "labels": labels},
        {
            "targets": ["10.0.0.5:9252"],
            "labels": labels | {"gitlab_runner": "app", "__metrics_path__": "/metrics/app"},
        },
    ]


def test_nobody_serves_metrics_unless_somebody_may_read_them(registered: Registered) -> None:
    assert "targets" not in declare()
    assert config_toml(registered, "dev-1-app")["listen_address"] == "127.0.0.1:9252"
    assert "metrics" not in registered.inputs("Instance", "dev-1")["userData"]


def test_a_public_key_becomes_a_key_pair(registered: Registered) -> None:
    declare(HOST.model_copy(update={"key_pair": KeyPair(public_key="ssh-ed25519 AAAAme")}))
    pair = registered.inputs("Keypair", "dev")
    assert pair["publicKey"] == "ssh-ed25519 AAAAme"
    assert registered.inputs("Instance", "dev-1")["keyPair"] == pair["name"]


def test_booting_from_a_volume_sets_no_image_of_its_own(registered: Registered) -> None:
    host = OpenStackHost.model_validate({**HOST.model_dump(), "boot_volume": {"size": 40}})
    declare(host)
    instance = registered.inputs("Instance", "dev-1")
    assert "imageId" not in instance
    (device,) = instance["blockDevices"]
    assert (device["uuid"], device["volumeSize"], device["deleteOnTermination"]) == ("image-id", 40, True)


def with_volume(**changes: Any) -> OpenStackHost:
    return OpenStackHost.model_validate({**HOST.model_dump(), "docker_volume": {"size": 100}, **changes})


def test_docker_gets_a_volume_before_the_first_boot(registered: Registered) -> None:
    declare(with_volume(docker_volume={"size": 100, "type": "ssd", "availability_zone": "az-1"}))
    volume = registered.inputs("blockstorage/volume:Volume", "dev-1")
    assert (volume["size"], volume["volumeType"], volume["availabilityZone"]) == (100, "ssd", "az-1")
    assert volume["enableOnlineResize"] is True
    instance = registered.inputs("Instance", "dev-1")
    assert instance["imageId"] == "image-id"
    root, data = instance["blockDevices"]
    assert (root["uuid"], root["destinationType"], root["bootIndex"]) == ("image-id", "local", 0)
    assert (data["uuid"], data["destinationType"], data["bootIndex"]) == ("dev-1-id", "volume", -1)
    assert "dev-1-id" in instance["userData"]


def test_a_machine_may_have_both_volumes(registered: Registered) -> None:
    declare(with_volume(boot_volume={"size": 40}))
    instance = registered.inputs("Instance", "dev-1")
    assert "imageId" not in instance
    assert [device["destinationType"] for device in instance["blockDevices"]] == ["volume", "volume"]


def test_a_machine_without_a_volume_is_what_it_was(registered: Registered) -> None:
    declare()
    assert not registered.of("blockstorage/volume:Volume")
    assert "blockDevices" not in registered.inputs("Instance", "dev-1")


def test_a_larger_volume_changes_nothing_else(registered: Registered) -> None:
    declare(with_volume())
    before = registered.inputs("Instance", "dev-1")
    registered.resources.clear()
    declare(with_volume(docker_volume={"size": 200}))
    assert registered.inputs("Instance", "dev-1") == before


def test_a_floating_ip_is_how_ssh_reaches_the_host(registered: Registered) -> None:
    outputs = declare(HOST.model_copy(update={"floating_ip_pool": "public"}))
    assert outputs["hosts"]["dev-1"]["dockerUrl"] == "ssh://debian@203.0.113.5:22"
    assert outputs["hosts"]["dev-1"]["addresses"][-1] == "203.0.113.5"


def test_unless_the_stack_asks_for_the_fixed_one(registered: Registered) -> None:
    host = HOST.model_copy(update={"floating_ip_pool": "public", "ssh": Ssh(address="fixed")})
    assert declare(host)["hosts"]["dev-1"]["dockerUrl"] == "ssh://debian@10.0.0.5:22"


def test_the_host_key_is_known_before_the_first_contact(registered: Registered) -> None:
    declare()
    user_data = yaml.safe_load(registered.inputs("Instance", "dev-1")["userData"])
    assert user_data["ssh_keys"]["ed25519_public"] == HOST_KEY
    options = registered.inputs("pulumi:providers:docker", "dev-1")["sshOpts"]
    assert f"KnownHostsCommand=/bin/echo %H {HOST_KEY}" in options
    assert "StrictHostKeyChecking=yes" in options


def test_the_managers_configuration_carries_token_and_mtu(registered: Registered) -> None:
    declare()
    runner = config_toml(registered, "dev-1-app")["runners"][0]
    assert (runner["token"], runner["id"], runner["docker"]["network_mtu"]) == (TOKEN, 7, 1450)


def test_docker_in_docker_mounts_its_configuration_from_the_managers_volume(registered: Registered) -> None:
    declare(app=Runner(project=1, tags=("a",), builds="dind"))
    volumes = config_toml(registered, "dev-1-app")["runners"][0]["docker"]["volumes"]
    assert "/volumes/dev-1-app/dind-daemon.json:/etc/docker/daemon.json:ro" in volumes
    uploads = registered.inputs("Container", "dev-1-app-config")["uploads"]
    assert [upload["file"] for upload in uploads] == [
        "/etc/gitlab-runner/config.toml",
        "/etc/gitlab-runner/dind-daemon.json",
    ]


def test_mirrors_reach_docker_in_docker(registered: Registered) -> None:
    mirrors = ("https://mirror.example",)
    existing = DockerHost(kind="docker", url="unix:///var/run/docker.sock", registry_mirrors=mirrors)
    for host in (HOST.model_copy(update={"registry_mirrors": mirrors}), existing):
        registered.resources.clear()
        declare(host, app=Runner(project=1, tags=("a",), builds="dind"))
        _, upload = registered.inputs("Container", "dev-1-app-config")["uploads"]
        assert json.loads(upload["content"])["registry-mirrors"] == ["https://mirror.example"]
        volumes = config_toml(registered, "dev-1-app")["runners"][0]["docker"]["volumes"]
        assert "/volumes/dev-1-app/dind-daemon.json:/etc/docker/daemon.json:ro" in volumes


def test_a_cache_on_the_machine_is_the_first_mirror_there(registered: Registered) -> None:
    cache = RegistryCache(login=RegistryLogin(user="me", password=SecretStr("very-secret")))
    host = HOST.model_copy(update={"registry_mirrors": ("https://mirror.example",), "registry_cache": cache})
    declare(host, app=Runner(project=1, tags=("a",), builds="dind"))
    _, upload = registered.inputs("Container", "dev-1-app-config")["uploads"]
    mirrors = ["http://169.254.171.1:5000", "https://mirror.example"]
    assert json.loads(upload["content"])["registry-mirrors"] == mirrors
    assert mirrors[0] in registered.inputs("Instance", "dev-1")["userData"]
    assert "very-secret" not in registered.inputs("Instance", "dev-1")["userData"]
    container = registered.inputs("Container", "dev-1-registry-cache")
    assert container["networkMode"] == "host"
    assert yaml.safe_load(container["uploads"][0]["content"])["proxy"]["password"] == "very-secret"
    assert "very-secret" not in json.dumps([container["envs"], container["command"], container["labels"]])
    # Else it would be drained with the managers.
    assert not [label for label in container["labels"] if label["label"] == "gitlab-runners.runner"]


def test_a_cache_on_the_machine_goes_through_the_proxy_and_is_reached_without_it(registered: Registered) -> None:
    proxy = Proxy(https="http://proxy.example:3128")
    own = {"registry_cache": RegistryCache(), "proxy": proxy, "ca_certificates": ("first\n", "second\n")}
    declare(HOST.model_copy(update=own))
    container = registered.inputs("Container", "dev-1-registry-cache")
    assert "https_proxy=http://proxy.example:3128" in container["envs"]
    trusted = {upload["file"]: upload["content"] for upload in container["uploads"]}
    assert trusted["/etc/ssl/certs/gitlab-runners.crt"] == "first\nsecond\n"
    direct = "no_proxy=localhost,127.0.0.1,docker,169.254.171.1"
    assert direct in registered.inputs("Container", "dev-1-app")["envs"]
    assert direct in config_toml(registered, "dev-1-app")["runners"][0]["environment"]


def test_policies_see_workers_and_how_many_machines_there_may_be(registered: Registered) -> None:
    scaler = Autoscaler(plugin="ghcr.io/p:1.0", flavor="m1.big", max_instances=5, capacity_per_instance=2)
    more = scaler.model_copy(update={"flavor": None, "max_instances": 7})
    declare(
        HOST.model_copy(update={"count": 3, "metadata": {"who": "me"}}),
        app=RUNNER,
        big=RUNNER.model_copy(update={"executor": "autoscaler", "autoscaler": scaler, "hosts": (1, "dev-3")}),
        more=RUNNER.model_copy(update={"executor": "autoscaler", "autoscaler": more}),
    )
    seen = registered.inputs("WorkerGroup", "dev-big")
    assert seen.pop("metadata") == {"who": "me", "pulumi-project": "gitlab-runners", "pulumi-stack": "dev"}
    assert seen == {
        "flavor": "m1.big",
        "image": "debian-13",
        "plugin": "ghcr.io/p:1.0",
        "maxInstances": 5,
        "capacityPerInstance": 2,
    }
    assert registered.inputs("WorkerGroup", "dev-more")["flavor"] == "m1.small"
    fleet = registered.inputs("Fleet", "dev")
    assert (fleet["hosts"], fleet["workers"]) == (3, 2 * 5 + 3 * 7)


def test_workers_have_no_cache_of_their_own(registered: Registered) -> None:
    scaler = Autoscaler(plugin="registry.example/fleeting-plugin-openstack:1.2.3", max_instances=2)
    app = Runner(project=1, tags=("a",), builds="dind", executor="autoscaler", autoscaler=scaler)
    declare(HOST.model_copy(update={"registry_cache": RegistryCache()}), app=app)
    runner = config_toml(registered, "dev-1-app")["runners"][0]
    assert "169.254.171.1" not in runner["autoscaler"]["plugin_config"]["server_spec"]["user_data"]
    assert "169.254.171.1" in registered.inputs("Instance", "dev-1")["userData"]


def test_jobs_and_docker_in_docker_have_ipv6_on_every_kind_of_host(registered: Registered) -> None:
    existing = DockerHost(kind="docker", url="unix:///var/run/docker.sock", ipv6=True)
    for host in (HOST.model_copy(update={"ipv6": True}), existing):
        registered.resources.clear()
        declare(host, app=Runner(project=1, tags=("a",), builds="dind"))
        _, upload = registered.inputs("Container", "dev-1-app-config")["uploads"]
        assert json.loads(upload["content"])["ipv6"] is True
        docker = config_toml(registered, "dev-1-app")["runners"][0]["docker"]
        assert docker["enable_ipv6"] is True
        assert "/volumes/dev-1-app/dind-daemon.json:/etc/docker/daemon.json:ro" in docker["volumes"]


def test_the_machines_engine_has_ipv6_and_so_have_workers(registered: Registered) -> None:
    scaler = Autoscaler(plugin="registry.example/fleeting-plugin-openstack:1.2.3", max_instances=2)
    app = Runner(project=1, tags=("a",), executor="autoscaler", autoscaler=scaler)
    declare(HOST.model_copy(update={"ipv6": True}), app=app)
    assert "fe80::a9fe:a9fe" in registered.inputs("Instance", "dev-1")["userData"]
    runner = config_toml(registered, "dev-1-app")["runners"][0]
    assert runner["docker"]["enable_ipv6"] is True
    assert "fe80::a9fe:a9fe" in runner["autoscaler"]["plugin_config"]["server_spec"]["user_data"]


def test_managers_and_machines_get_further_cas(registered: Registered) -> None:
    certificates = ("-----BEGIN 1\n", "-----BEGIN 2\n")
    existing = DockerHost(kind="docker", url="unix:///var/run/docker.sock").model_copy(
        update={"ca_certificates": certificates}
    )
    for host in (HOST.model_copy(update={"ca_certificates": certificates}), existing):
        registered.resources.clear()
        declare(host)
        _, upload = registered.inputs("Container", "dev-1-app-config")["uploads"]
        assert upload == {"file": "/etc/gitlab-runner/certs/ca.crt", "content": "-----BEGIN 1\n-----BEGIN 2\n"}
        runner = config_toml(registered, "dev-1-app")["runners"][0]
        assert "/volumes/dev-1-app/certs/ca.crt:/etc/gitlab-runner/certs/ca.crt:ro" in runner["docker"]["volumes"]
        for machine in registered.of("Instance"):
            assert yaml.safe_load(plain(machine.inputs)["userData"])["ca_certs"]["trusted"] == list(certificates)


def test_managers_jobs_and_machines_go_through_the_proxy(registered: Registered) -> None:
    proxy = Proxy(https="http://proxy.example:3128", no_proxy=("gitlab.example",))
    existing = DockerHost(kind="docker", url="unix:///var/run/docker.sock", proxy=proxy)
    wanted = ["https_proxy=http://proxy.example:3128", "no_proxy=localhost,127.0.0.1,docker,gitlab.example"]
    for host in (HOST.model_copy(update={"proxy": proxy}), existing):
        registered.resources.clear()
        declare(host, app=Runner(project=1, tags=("a",), environment={"HTTPS_PROXY": "http://other.example"}))
        assert {*wanted, wanted[0].replace("https_proxy", "HTTPS_PROXY")} < set(
            registered.inputs("Container", "dev-1-app")["envs"]
        )
        environment = config_toml(registered, "dev-1-app")["runners"][0]["environment"]
        # What the runner says itself goes before.
        assert {*wanted, "HTTPS_PROXY=http://other.example"} < set(environment)
        for machine in registered.of("Instance"):
            assert yaml.safe_load(plain(machine.inputs)["userData"])["apt"] == {"https_proxy": proxy.https}


def test_without_a_proxy_no_variable_tells_of_one(registered: Registered) -> None:
    declare()
    assert "envs" not in registered.inputs("Container", "dev-1-app")


def test_a_manager_lets_jobs_end(registered: Registered) -> None:
    declare(app=Runner(project=1, tags=("a",), maximum_timeout=7200))
    manager = registered.inputs("Container", "dev-1-app")
    assert manager["stopSignal"] == "SIGQUIT"
    assert manager["destroyGraceSeconds"] == 7200
    assert manager["stopTimeout"] > 7200
    assert registered.inputs("Drain", "dev-1")["grace"] == 7200


def test_every_field_of_a_registration_is_written(registered: Registered) -> None:
    # The provider keeps what GitLab has for a field that is left out, so a removed setting would not take effect.
    declare()
    assert registered.inputs("UserRunner", "dev-app") == {
        "runnerType": "project_type",
        "projectId": 1,
        "description": "dev app",
        "tagLists": ["docker"],
        "untagged": False,
        "locked": True,
        "accessLevel": "not_protected",
        "paused": False,
        "maximumTimeout": 3600,
        "maintenanceNote": "",
    }


S3 = S3Cache.model_validate(
    {"kind": "s3", "server": "s3.example", "bucket": "b", "access_key": "the-access", "secret_key": "the-secret"}
)


def test_every_manager_knows_the_cache(registered: Registered) -> None:
    declare(cache=S3, endpoint=Endpoint("s3.example", False), app=RUNNER, team=RUNNER)
    for name in ("dev-1-app", "dev-1-team"):
        cache = config_toml(registered, name)["runners"][0]["cache"]
        assert (cache["Type"], cache["s3"]["AccessKey"], cache["s3"]["SecretKey"]) == ("s3", "the-access", "the-secret")
    # All that tells of it is a secret.
    upload = next(each for each in registered.of("Container") if each.name == "dev-1-app-config").inputs["uploads"]
    assert rpc._special_sig_key in upload or rpc._special_sig_key in upload[0]["content"]
    assert not registered.of("Ec2CredentialV3")


def test_a_cache_is_made_in_the_object_store(registered: Registered) -> None:
    made = ObjectStoreCache(kind="openstack", shared=True, path="ci")
    declare(cache=made, endpoint=Endpoint("cloud.example:8080", True))
    container = registered.inputs("objectstorage/container:Container", "dev")
    assert (container["name"], container["forceDestroy"]) == ("gitlab-runners-dev-cache", True)
    cache = config_toml(registered, "dev-1-app")["runners"][0]["cache"]
    assert cache == {
        "Type": "s3",
        "Path": "ci",
        "Shared": True,
        "s3": {
            "ServerAddress": "cloud.example:8080",
            "BucketName": "gitlab-runners-dev-cache",
            "BucketLocation": "us-east-1",
            "AccessKey": "made-access",
            "SecretKey": "made-secret",
            "AuthenticationType": "access-key",
            "Insecure": True,
        },
    }


def test_without_a_cache_nothing_tells_of_one(registered: Registered) -> None:
    declare()
    assert "cache" not in config_toml(registered, "dev-1-app")["runners"][0]


def test_a_token_that_may_only_manage_runners_is_enough(registered: Registered) -> None:
    # The provider would read the current user, which needs another scope.
    declare()
    provider = registered.inputs("pulumi:providers:gitlab", "dev")
    assert provider == {
        "earlyAuthCheck": "false",
        "baseUrl": "https://gitlab.example/api/v4/",
        "token": "glpat-secret",
    }


def test_a_token_of_its_own_registers_nothing(registered: Registered) -> None:
    outputs = declare(app=Runner.model_validate({"token": "glrt-given"}))
    assert not registered.of("UserRunner")
    assert not registered.of("pulumi:providers:gitlab")
    assert config_toml(registered, "dev-1-app")["runners"][0]["token"] == "glrt-given"
    assert outputs["runners"]["app"]["id"] is None


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    return said


@pytest.mark.parametrize(
    ("days", "word"), [(13, "expires on "), (-1, "has expired on "), (15, None), (None, None)], ids=str
)
@pytest.mark.usefixtures("registered")
def test_a_token_that_expires_soon_is_told_with_what_to_do(
    warnings: list[str], days: int | None, word: str | None
) -> None:
    declare(token_expiry=datetime.now(UTC) + timedelta(days=days) if days is not None else None)
    assert len(warnings) == (word is not None)
    for line in warnings:
        assert line.startswith(f"gitlab-runners:runners.app: its token {word}")
        assert "change rotation" in line


@pytest.mark.usefixtures("registered")
def test_how_soon_is_the_stacks_to_say(warnings: list[str]) -> None:
    runner = Runner(project=1, tags=("docker",), expiry_warning_days=30)
    declare(token_expiry=datetime.now(UTC) + timedelta(days=29), app=runner)
    assert len(warnings) == 1


@pytest.mark.parametrize(("days", "told"), [(29, True), (31, False), (None, False)])
@pytest.mark.usefixtures("registered")
def test_so_is_one_of_a_runners_own(warnings: list[str], days: int | None, told: bool) -> None:
    own = Runner.model_validate({"token": "glrt-given", "expiryWarningDays": 30})
    declare(token_expiry=datetime.now(UTC) + timedelta(days=days) if days is not None else None, app=own)
    assert len(warnings) == told
    for line in warnings:
        assert line.startswith("gitlab-runners:runners.app: its token expires on ")
        assert line.endswith("make another runner in GitLab and set token to the one that it gets")


@pytest.mark.parametrize("own", [False, True], ids=["made by the program", "given"])
def test_metrics_know_when_a_token_expires(registered: Registered, own: bool) -> None:
    expiry = datetime(2099, 1, 1, tzinfo=UTC)
    host = HOST.model_copy(update={"metrics_from": ("198.51.100.7/32",)})
    declare(host, token_expiry=expiry, app=Runner.model_validate({"token": "glrt-given"}) if own else RUNNER)
    labels = registered.inputs("Container", "dev-1-app-config")["labels"]
    assert {"label": "gitlab-runners.token-expiry", "value": "4070908800"} in labels


def test_a_configuration_says_nothing_of_it_where_nobody_asks(registered: Registered) -> None:
    declare(token_expiry=datetime(2099, 1, 1, tzinfo=UTC))
    labels = registered.inputs("Container", "dev-1-app-config")["labels"]
    assert "gitlab-runners.token-expiry" not in {label["label"] for label in labels}


def test_the_runner_cannot_rotate_its_token_itself(registered: Registered) -> None:
    declare()
    (runner,) = config_toml(registered, "dev-1-app")["runners"]
    # It rotates what these say, unless it is told not to (commands/multi.go, resetOneRunnerToken).
    assert not {"token_obtained_at", "token_expires_at"} & set(runner)
    assert runner["feature_flags"]["FF_DISABLE_AUTOMATIC_TOKEN_ROTATION"] is True


def test_an_existing_engine_gets_managers_and_no_machine(registered: Registered) -> None:
    outputs = declare(DockerHost(kind="docker", url="unix:///run/user/1000/docker.sock"))
    assert not registered.of("Instance")
    assert outputs["hosts"]["dev-1"]["dockerUrl"] == "unix:///run/user/1000/docker.sock"
    volumes = registered.inputs("Container", "dev-1-app")["volumes"]
    assert {"hostPath": "/run/user/1000/docker.sock", "containerPath": "/var/run/docker.sock"} in volumes


SHARED = Shared(
    Owner("payments", "prod"),
    openstack_config={"cloud": "prod", "password": "very-secret", "insecure": "true", "maxRetries": "3"},
    openstack={"cloud": "prod"},
    gitlab={"baseUrl": "https://gitlab.example/api/v4/"},
)


def test_all_that_a_teams_stack_makes_names_team_and_environment(registered: Registered) -> None:
    declare(HOST.model_copy(update={"tags": ("mine",), "floating_ip_pool": "public"}), shared=SHARED)
    named = {"team": "payments", "environment": "prod"}
    assert named.items() <= registered.inputs("Instance", "dev-1")["metadata"].items()
    for kind in ("Instance", "Port", "FloatingIp"):
        assert registered.inputs(kind, "dev-1")["tags"] == ["mine", "team=payments", "environment=prod"]
    assert registered.inputs("SecGroup", "dev")["tags"] == ["mine", "team=payments", "environment=prod"]
    for kind in ("Volume", "Container"):
        labels = {label["label"]: label["value"] for label in registered.inputs(kind, "dev-1-app")["labels"]}
        assert {f"gitlab-runners.{key}": value for key, value in named.items()}.items() <= labels.items()


def test_runners_of_two_stacks_with_one_description_differ(registered: Registered) -> None:
    described = Runner(project=1, tags=("docker",), description="Builds the shop")
    declare(shared=SHARED, app=described)
    assert registered.inputs("UserRunner", "dev-app")["description"] == "Builds the shop (dev)"


def test_a_stack_without_layers_names_neither(registered: Registered) -> None:
    declare()
    assert set(registered.inputs("Instance", "dev-1")["metadata"]) == {"pulumi-project", "pulumi-stack"}
    assert "tags" not in registered.inputs("Instance", "dev-1")
    assert not [label for label in registered.inputs("Volume", "dev-1-app")["labels"] if "team" in label["label"]]


def test_the_cloud_of_the_layers_reaches_all_that_speak_to_it(registered: Registered) -> None:
    declare(shared=SHARED)
    provider = registered.inputs("providers:openstack", "dev")
    assert (provider["cloud"], provider["insecure"], provider["maxRetries"]) == ("prod", "true", "3")
    for resource in registered.resources:
        if resource.typ.startswith("openstack:"):
            assert (resource.provider or "").endswith("::dev::dev-id"), resource.name
    assert registered.inputs("DeclaredRules", "dev")["cloud"] == {"cloud": "prod"}
    assert registered.inputs("Drain", "dev-1")["cloud"] == {"cloud": "prod"}
    assert registered.inputs("JobsEnded", "dev-app")["gitlab"] == {"baseUrl": "https://gitlab.example/api/v4/"}


def test_without_layers_the_engine_configures_the_cloud(registered: Registered) -> None:
    declare()
    assert not registered.of("providers:openstack")
    assert not {"cloud", "gitlab"} & {key for resource in registered.of("") for key in resource.inputs}
