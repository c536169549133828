"""A runner whose jobs run on workers: all that its plugin needs is there, and nothing stays of what it made."""

import tomllib
from collections.abc import Iterator
from typing import Any

import openstack
import pytest
import yaml
from openstack.exceptions import HttpException

from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]

SCALER = {"plugin": "registry.example/fleeting-plugin-openstack:1.2.3", "maxInstances": 5}


def credentials(sandbox: Sandbox) -> list[str]:
    """Names of application credentials that were made for workers."""
    cloud: Any = sandbox.openstack
    found = cloud.identity.application_credentials(cloud.current_user_id)
    return [credential.name for credential in found if "workers" in credential.name]


@pytest.fixture
def fresh(fresh: Project, sandbox: Sandbox) -> Iterator[Project]:
    fresh.configure(lambda config: config["runners"]["app"].update(executor="autoscaler", autoscaler=dict(SCALER)))
    yield fresh
    fresh.destroy()
    assert sandbox.inventory() == NOTHING
    assert credentials(sandbox) == []


def files(sandbox: Sandbox) -> dict[str, str]:
    """The files of the manager, as it sees them."""
    manager: Any = sandbox.managers()[0]
    names = ("config.toml", "clouds.yaml", "worker-key")
    return {name: manager.exec_run(["cat", f"/etc/gitlab-runner/{name}"]).output.decode() for name in names}


def login(sandbox: Sandbox) -> Any:
    """The cloud, as the plugin may use it."""
    cloud = yaml.safe_load(files(sandbox)["clouds.yaml"])["clouds"]["workers"]
    return openstack.connect(load_yaml_config=False, load_envvars=False, **cloud)


def make_worker(sandbox: Sandbox) -> None:
    """What the plugin does, with the specification that it is given."""
    (runner,) = tomllib.loads(files(sandbox)["config.toml"])["runners"]
    plugin = runner["autoscaler"]["plugin_config"]
    server = plugin["server_spec"] | {"name": "worker-1"}
    server["metadata"] |= {"fleeting-cluster": plugin["name"]}
    server["security_groups"] = [{"name": group} for group in server["security_groups"]]
    server.pop("user_data")
    made = login(sandbox).compute.post("/servers", json={"server": server}, microversion="2.79")
    assert made.status_code == 202, made.text


def test_the_plugin_may_do_its_work_and_what_it_leaves_goes_with_its_manager(fresh: Project, sandbox: Sandbox) -> None:
    fresh.up()
    assert len(credentials(sandbox)) == 1
    assert fresh.preview() == {}
    make_worker(sandbox)
    (worker,) = [server for server in sandbox.openstack.compute.servers() if server.name == "worker-1"]
    assert [group["name"] for group in worker.security_groups] == ["sandbox-app-workers"]
    cloud = login(sandbox)
    assert cloud.compute.get(f"/servers/{worker.id}").status_code == 200
    for refused in (cloud.network.networks, cloud.compute.keypairs):
        with pytest.raises(HttpException):
            next(refused())
    # Policies are read again; for all else there is a new manager, and the workers of the old one go with it.
    (manager,) = sandbox.managers()
    fresh.configure(lambda config: config["runners"]["app"]["autoscaler"].update(policies=[{"idleCount": 2}]))
    assert fresh.preview() == {"Container sandbox-1-app-config": "replace"}
    fresh.up()
    assert [each.id for each in sandbox.managers()] == [manager.id]
    fresh.configure(lambda config: config["runners"]["app"]["autoscaler"].update(maxInstances=6))
    fresh.up()
    assert [each.id for each in sandbox.managers()] != [manager.id]
    assert [server.name for server in sandbox.openstack.compute.servers()] == ["sandbox-1"]
    make_worker(sandbox)
    written = files(sandbox)
    secret = yaml.safe_load(written["clouds.yaml"])["clouds"]["workers"]["auth"]["application_credential_secret"]
    secrets = [secret, *written["worker-key"].splitlines()[1:3]]
    state = str(fresh.run("stack", "export", f"--stack={fresh.stack}").output)
    assert not [secret for secret in secrets if secret in state]


@pytest.mark.parametrize("path", ["/application_credentials$", "/os-keypairs$"], ids=["credential", "key pair"])
def test_a_lost_answer_leaves_no_second_one(fresh: Project, sandbox: Sandbox, path: str) -> None:
    # The host's own key pair is made first.
    sandbox.control("POST", "faults", {"do": "lose", "method": "POST", "path": path, "n": 1 + ("keypairs" in path)})
    failed = fresh.try_up()
    sandbox.control("DELETE", "faults")
    assert failed.errors, failed.output
    fresh.up()
    assert len(credentials(sandbox)) == 1
    assert sandbox.inventory()["key pairs"] == 2
