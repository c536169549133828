"""What is declared and rendered for runners whose jobs run on workers, through Pulumi's mocks."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pulumi.runtime import rpc

from components.worker_group import WorkerGroup
from settings import Autoscaler, AutoscalerPolicy, Runner, Ssh
from tests.certificates import certificate
from tests.unit import test_components
from tests.unit.test_components import HOST, RUNNER, Registered, config_toml, declare, plain

# The fixture of those tests, by its own name.
registered = test_components.registered

PLUGIN = "registry.example/fleeting-plugin-openstack:1.2.3"
SCALED = Runner(
    project=1,
    tags=("docker",),
    executor="autoscaler",
    autoscaler=Autoscaler(
        plugin=PLUGIN,
        max_instances=5,
        capacity_per_instance=2,
        policies=(
            AutoscalerPolicy(),
            AutoscalerPolicy(periods=("* 8-17 * * mon-fri",), timezone="Europe/Berlin", idle_count=3, idle_time=600),
        ),
    ),
)


def scaled(**changes: Any) -> Runner:
    assert SCALED.autoscaler is not None
    return SCALED.model_copy(update={"autoscaler": SCALED.autoscaler.model_copy(update=changes)})


def uploads(registered: Registered, name: str) -> dict[str, dict[str, Any]]:
    return {upload["file"]: upload for upload in registered.inputs("Container", f"{name}-config")["uploads"]}


def test_jobs_run_on_workers(registered: Registered) -> None:
    declare(HOST.model_copy(update={"metadata": {"rack": "1"}, "tags": ("mine",)}), app=SCALED, plain=RUNNER)
    configuration = config_toml(registered, "dev-1-app")
    (runner,) = configuration["runners"]
    scaler = runner["autoscaler"]
    assert (runner["executor"], configuration["concurrent"], runner["limit"]) == ("docker-autoscaler", 10, 10)
    # On the workers' own engines, with the same MTU.
    assert "host" not in runner["docker"]
    assert runner["docker"]["network_mtu"] == 1450
    assert (scaler["plugin"], scaler["capacity_per_instance"], scaler["max_instances"]) == (PLUGIN, 2, 5)
    assert (scaler["max_use_count"], scaler["delete_instances_on_shutdown"]) == (1, True)
    assert scaler["policy"] == [
        {"periods": ["* * * * *"], "timezone": "UTC", "idle_count": 0, "idle_time": "1200s"},
        {"periods": ["* 8-17 * * mon-fri"], "timezone": "Europe/Berlin", "idle_count": 3, "idle_time": "600s"},
    ]
    server = scaler["plugin_config"]["server_spec"]
    assert (server["imageRef"], server["flavorRef"]) == ("worker-image", "worker-flavor")
    assert server["networks"] == [{"uuid": "network-id"}]
    assert server["security_groups"] == ["dev-app-workers-id"]
    assert server["key_name"] == registered.inputs("Keypair", "dev-app-workers")["name"]
    assert server["metadata"] == {"rack": "1", "pulumi-project": "gitlab-runners", "pulumi-stack": "dev"}
    assert server["tags"] == ["mine"]
    # The other runner is what it was.
    assert "autoscaler" not in config_toml(registered, "dev-1-plain")["runners"][0]


def test_a_worker_is_set_up_as_the_hosts_are_but_without_a_secret(registered: Registered) -> None:
    pem = certificate()
    host = HOST.model_copy(update={"registry_mirrors": ("https://mirror.example",), "ca_certificates": (pem,)})
    declare(host, app=SCALED.model_copy(update={"builds": "dind"}))
    (runner,) = config_toml(registered, "dev-1-app")["runners"]
    written = runner["autoscaler"]["plugin_config"]["server_spec"]["user_data"]
    ours = registered.inputs("Instance", "dev-1")["userData"]
    worker, machine = yaml.safe_load(written), yaml.safe_load(ours)
    files = {entry["path"]: entry for entry in worker["write_files"]}
    assert {entry["path"]: entry for entry in machine["write_files"]}.items() <= files.items()
    assert (worker["runcmd"], worker["ca_certs"]) == (machine["runcmd"], machine["ca_certs"])
    assert "PRIVATE" in ours
    assert "PRIVATE" not in written
    # What containers of jobs mount is where they find it on a worker.
    mounted = {volume.partition(":")[0] for volume in runner["docker"]["volumes"] if volume.endswith(":ro")}
    assert mounted == {"/etc/gitlab-runner/dind-daemon.json", "/etc/gitlab-runner/certs/ca.crt"}
    assert mounted <= files.keys()
    assert json.loads(files["/etc/gitlab-runner/dind-daemon.json"]["content"])["mtu"] == 1450


def test_the_plugin_gets_a_login_that_makes_and_removes_servers_and_no_more(registered: Registered) -> None:
    declare(app=SCALED)
    credential = registered.inputs("ApplicationCredential", "dev-app-workers")
    assert credential["roles"] == ["member"]
    assert {rule["service"] for rule in credential["accessRules"]} == {"compute", "image"}
    assert {"service": "compute", "method": "DELETE", "path": "/compute/v2.1/servers/*"} in credential["accessRules"]
    files = uploads(registered, "dev-1-app")
    assert yaml.safe_load(files["/etc/gitlab-runner/clouds.yaml"]["content"])["clouds"]["workers"] == {
        "auth_type": "v3applicationcredential",
        "auth": {
            "auth_url": "https://keystone.example/v3",
            "application_credential_id": "dev-app-workers-id",
            "application_credential_secret": "made-secret",
        },
        "interface": "public",
        "region_name": "one",
        "cacert": "/etc/gitlab-runner/cloud-ca.crt",
    }
    assert files["/etc/gitlab-runner/cloud-ca.crt"]["content"] == "CA\n"
    for file in ("clouds.yaml", "worker-key"):
        assert files[f"/etc/gitlab-runner/{file}"]["permissions"] == "0600"
    # What Pulumi keeps of them is encrypted.
    raw = next(each for each in registered.of("Container") if each.name == "dev-1-app-config").inputs["uploads"]
    assert rpc._special_sig_key in json.dumps(raw)


def test_a_credential_may_have_no_rules(registered: Registered) -> None:
    declare(app=scaled(access_rules=False, roles=()))
    assert not {"accessRules", "roles"} & set(registered.inputs("ApplicationCredential", "dev-app-workers"))


def test_only_the_hosts_of_the_stack_get_into_a_worker(registered: Registered) -> None:
    declare(HOST.model_copy(update={"ssh": Ssh(port=2222)}), app=SCALED)
    rules = [plain(rule.inputs) for rule in registered.of("SecGroupRule") if "workers" in rule.name]
    inbound = [rule for rule in rules if rule["direction"] == "ingress"]
    assert {(rule["ethertype"], rule["remoteGroupId"], rule["portRangeMin"]) for rule in inbound} == {
        ("IPv4", "dev-id", 2222),
        ("IPv6", "dev-id", 2222),
    }
    assert all(rule.get("remoteIpPrefix") is None for rule in inbound)


def test_the_manager_of_workers_has_no_engine_and_installs_its_plugin_first(registered: Registered) -> None:
    declare(app=SCALED)
    container = registered.inputs("docker:index/container:Container", "dev-1-app")
    assert [volume["containerPath"] for volume in container["volumes"]] == ["/etc/gitlab-runner"]
    assert "FLEETING_PLUGIN_PATH=/etc/gitlab-runner/fleeting" in container["envs"]
    assert "fleeting install &&" in container["entrypoints"][-1]


def test_each_manager_has_workers_of_its_own_and_removes_them(registered: Registered) -> None:
    declare(HOST.model_copy(update={"count": 2}), app=SCALED)
    groups = set()
    for name in ("dev-1-app", "dev-2-app"):
        (runner,) = config_toml(registered, name)["runners"]
        groups.add(runner["autoscaler"]["plugin_config"]["name"])
        assert registered.inputs("Workers", name)["group"] in groups
    assert len(groups) == 2


@pytest.fixture
def generation(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> Callable[[Runner], str]:
    """What replaces a runner's managers when it changes."""
    found: list[str] = []
    original: Any = WorkerGroup.generation

    def noted(text: str) -> str:
        found.append(text)
        return text

    monkeypatch.setattr(WorkerGroup, "generation", property(lambda group: original.fget(group).apply(noted)))

    def _generation(runner: Runner) -> str:
        registered.resources.clear()
        declare(app=runner)
        return found[-1]

    return _generation


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"policies": (AutoscalerPolicy(idle_count=9),)}, True),
        ({"max_instances": 6}, False),
        ({"plugin": f"{PLUGIN}4"}, False),
        ({"max_use_count": 9}, False),
    ],
    ids=["policies", "instances", "plugin", "use"],
)
def test_what_a_manager_reads_only_when_it_starts_makes_a_new_one(
    generation: Callable[[Runner], str], change: dict[str, Any], *, same: bool
) -> None:
    before = generation(SCALED)
    assert (generation(scaled(**change)) == before) is same


def _kinds(value: Any) -> set[str]:
    """The types of the file of keys that a value fits."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer"}
    if isinstance(value, str):
        return {"string"} | ({"duration"} if re.fullmatch(r"[0-9]+[smh]", value) else set())
    if isinstance(value, list):
        return {"tables"} if value and isinstance(value[0], dict) else {"strings"}
    return {"table", "map of string"}


def test_only_keys_that_the_runner_and_the_plugin_know_are_written(registered: Registered) -> None:
    lines = Path(__file__).with_name("autoscaler_keys.tsv").read_text().splitlines()
    known = dict(line.split("\t") for line in lines if not line.startswith("#"))
    declare(HOST.model_copy(update={"tags": ("mine",)}), app=SCALED)

    def check(table: dict[str, Any], path: str) -> None:
        for key, value in table.items():
            name = f"{path}.{key}"
            assert known[name] in _kinds(value), name
            for each in value if known[name] == "tables" else [value] if known[name] == "table" else []:
                check(each, f"{name}[]" if known[name] == "tables" else name)

    check(config_toml(registered, "dev-1-app")["runners"][0]["autoscaler"], "autoscaler")
