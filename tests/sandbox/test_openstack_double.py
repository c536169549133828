"""What only the double has to keep: how its servers meet their machines, and what a real cloud's operator would set."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openstack
import pytest
import requests
from openstack.exceptions import BadRequestException, ConflictException, HttpException, NotFoundException, SDKException

from tests.sandbox.inprocess import TIMEOUT_S, InProcess

# A Connection of openstacksdk. By its types every finder may give None, which each test would have to rule out.
Cloud = Any

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEv8hWzTPEAg0ErCCOPMFGuVhvMBcSkJ2hKkxUHZRwSw contract"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[InProcess]:
    with InProcess(tmp_path / "store.sqlite") as running:
        yield running


@pytest.fixture
def cloud(sandbox: InProcess) -> Cloud:
    return sandbox.connect()


def _order(cloud: Cloud, **attributes: Any) -> Any:
    """A new server, as asked for."""
    network = cloud.network.find_network("runners", ignore_missing=False)
    image = cloud.image.find_image("debian-13", ignore_missing=False)
    flavor = cloud.compute.find_flavor("m1.small", ignore_missing=False)
    defaults = {"name": "runner-1", "image_id": image.id, "flavor_id": flavor.id, "networks": [{"uuid": network.id}]}
    return cloud.compute.create_server(**(defaults | attributes))


def _boot(cloud: Cloud, **attributes: Any) -> Any:
    return cloud.compute.wait_for_server(_order(cloud, **attributes), wait=TIMEOUT_S, interval=0.02)


def _status_of(cloud: Cloud, server: Any, status: str) -> Any:
    return cloud.compute.wait_for_server(server, status=status, wait=TIMEOUT_S, interval=0.02)


# Logging in


def _tokens(sandbox: InProcess, auth: dict[str, Any]) -> requests.Response:
    return requests.post(f"{sandbox.auth_url}/v3/auth/tokens", json={"auth": auth}, timeout=TIMEOUT_S)


def test_a_wrong_password_a_wrong_project_and_a_wrong_token_are_refused(sandbox: InProcess) -> None:
    for wrong in ({"password": "wrong"}, {"project_name": "no-such-project"}, {"username": "nobody"}):
        with pytest.raises(SDKException, match=r"requires authentication. \(HTTP 401\)"):
            sandbox.connect(**wrong).authorize()
    answer = requests.get(sandbox.auth_url.replace("identity", "compute/v2.1/servers"), timeout=TIMEOUT_S)
    assert (answer.status_code, answer.json()["error"]["title"]) == (401, "Unauthorized")


def test_an_application_credential_logs_in(sandbox: InProcess) -> None:
    credentials = sandbox.credentials
    connection: Cloud = openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        auth_type="v3applicationcredential",
        auth={
            "auth_url": sandbox.auth_url,
            "application_credential_id": credentials.application_credential_id,
            "application_credential_secret": credentials.application_credential_secret,
        },
    )
    assert connection.network.find_network("runners")
    assert [project.name for project in connection.identity.projects(name="sandbox")] == [credentials.project]


def test_an_application_credential_is_made_used_and_deleted(sandbox: InProcess, cloud: Cloud) -> None:
    user = cloud.current_user_id
    made = cloud.identity.create_application_credential(user, "runners")
    identity = {"methods": ["application_credential"], "application_credential": {"id": made.id, "secret": made.secret}}
    assert _tokens(sandbox, {"identity": identity}).status_code == 201
    cloud.identity.delete_application_credential(user, made.id)
    assert _tokens(sandbox, {"identity": identity}).status_code == 401


def test_projects_do_not_see_each_others_resources(sandbox: InProcess, cloud: Cloud) -> None:
    server = _boot(cloud)
    other = sandbox.connect(project_name="sandbox-other")
    assert list(other.compute.servers()) == []
    with pytest.raises(NotFoundException):
        other.compute.get_server(server.id)
    assert [network.name for network in other.network.networks()] == ["public"]


# Servers and machines


def test_a_server_is_in_build_first_and_its_machine_gets_what_was_ordered(sandbox: InProcess, cloud: Cloud) -> None:
    cloud.compute.create_keypair(name="operator", public_key=PUBLIC_KEY)
    data = base64.b64encode(b"#cloud-config\n").decode()
    ordered = _order(cloud, key_name="operator", user_data=data)
    assert ordered.status in (None, "BUILD")
    server = _status_of(cloud, ordered, "ACTIVE")
    machine = sandbox.machines.running[server.id]
    assert (machine.name, machine.user_data, machine.authorized_keys) == ("runner-1", "#cloud-config\n", [PUBLIC_KEY])
    assert machine.addresses == [entry["addr"] for entry in server.addresses["runners"]]
    assert machine.addresses[0].startswith("127.")


def test_a_machine_answers_under_its_floating_ip_while_it_has_one(sandbox: InProcess, cloud: Cloud) -> None:
    server = _boot(cloud)
    port = next(cloud.network.ports(device_id=server.id))
    floating = cloud.network.create_ip(floating_network_id=cloud.network.find_network("public").id, port_id=port.id)
    fixed = port.fixed_ips[0]["ip_address"]
    assert cloud.network.get_ip(floating.id).status == "ACTIVE"
    assert sandbox.machines.running[server.id].addresses == [fixed, floating.floating_ip_address]
    cloud.network.update_ip(floating, port_id=None)
    assert sandbox.machines.running[server.id].addresses == [fixed]


def test_a_machine_that_does_not_boot_is_a_server_in_error_with_a_fault(sandbox: InProcess, cloud: Cloud) -> None:
    sandbox.machines.refuse_to_boot = "the address is taken"
    server = _status_of(cloud, _order(cloud), "ERROR")
    assert server.fault["details"] == "the address is taken"
    sandbox.machines.refuse_to_boot = ""
    cloud.compute.rebuild_server(server, image=server.image["id"])
    _status_of(cloud, server, "ACTIVE")
    assert cloud.compute.get_server(server.id).fault is None


def test_an_address_given_back_is_not_given_out_again_at_once(cloud: Cloud) -> None:
    server = _boot(cloud)
    cloud.compute.delete_server(server)
    cloud.compute.wait_for_delete(server, wait=TIMEOUT_S, interval=0.02)
    assert _boot(cloud).addresses != server.addresses


def test_deleting_and_rebuilding_a_server_wipe_its_machine(sandbox: InProcess, cloud: Cloud) -> None:
    server = _boot(cloud)
    cloud.compute.rebuild_server(server, image=cloud.image.find_image("ubuntu-24.04").id)
    rebuilt = _status_of(cloud, server, "ACTIVE")
    assert rebuilt.image["id"] == cloud.image.find_image("ubuntu-24.04").id
    assert sandbox.machines.wiped == [server.id]
    cloud.compute.delete_server(server)
    cloud.compute.wait_for_delete(server, wait=TIMEOUT_S, interval=0.02)
    assert sandbox.machines.wiped == [server.id, server.id]


def test_a_stopped_server_has_no_machine(sandbox: InProcess, cloud: Cloud) -> None:
    server = _boot(cloud)
    cloud.compute.stop_server(server)
    _status_of(cloud, server, "SHUTOFF")
    assert not sandbox.machines.running
    cloud.compute.start_server(server)
    _status_of(cloud, server, "ACTIVE")
    assert list(sandbox.machines.running) == [server.id]


def test_a_resize_is_confirmed_or_reverted(cloud: Cloud) -> None:
    server = _boot(cloud)
    medium = cloud.compute.find_flavor("m1.medium")
    cloud.compute.resize_server(server, medium.id)
    server = _status_of(cloud, server, "VERIFY_RESIZE")
    assert server.flavor.original_name == "m1.medium"
    cloud.compute.revert_server_resize(server)
    assert _status_of(cloud, server, "ACTIVE").flavor.original_name == "m1.small"
    cloud.compute.resize_server(server, medium.id)
    cloud.compute.confirm_server_resize(_status_of(cloud, server, "VERIFY_RESIZE"))
    assert cloud.compute.get_server(server.id).status == "ACTIVE"
    with pytest.raises(BadRequestException, match="instances must change flavor"):
        cloud.compute.resize_server(server, medium.id)


def test_a_server_boots_from_a_volume_made_of_an_image(cloud: Cloud) -> None:
    image = cloud.image.find_image("debian-13")
    root = {"source_type": "image", "destination_type": "volume", "uuid": image.id, "boot_index": 0}
    server = _boot(cloud, image_id="", block_device_mapping=[root | {"volume_size": 20, "delete_on_termination": True}])
    assert server.image in (None, "") or not server.image.get("id")
    assert [volume["delete_on_termination"] for volume in server.attached_volumes] == [True]
    with pytest.raises(BadRequestException, match="non-zero size"):
        _order(cloud, image_id="", block_device_mapping=[root])
    with pytest.raises(BadRequestException, match="Boot sequence"):
        _order(cloud, image_id=image.id, block_device_mapping=[root | {"volume_size": 20}])
    with pytest.raises(BadRequestException, match="failed to get image"):
        _order(cloud, image_id="", block_device_mapping=[root | {"volume_size": 20, "uuid": "nothing"}])


def test_the_console_shows_what_the_machine_wrote(cloud: Cloud) -> None:
    server = _boot(cloud)
    assert cloud.compute.get_server_console_output(server, length=1) == {"output": f"{server.id} login:\n"}


def test_interfaces_come_and_go(sandbox: InProcess, cloud: Cloud) -> None:
    server = _boot(cloud)
    port = cloud.network.create_port(network_id=cloud.network.find_network("runners-geneve").id)
    cloud.compute.create_server_interface(server, port_id=port.id)
    assert set(cloud.compute.get_server(server.id).addresses) == {"runners", "runners-geneve"}
    assert port.fixed_ips[0]["ip_address"] in sandbox.machines.running[server.id].addresses
    cloud.compute.delete_server_interface(port.id, server=server)
    assert len(sandbox.machines.running[server.id].addresses) == 1
    assert cloud.network.get_port(port.id).device_id == ""


def test_a_choice_of_networks_has_to_be_made(cloud: Cloud) -> None:
    with pytest.raises(ConflictException, match="Multiple possible networks found"):
        _order(cloud, networks="auto")


def test_security_groups_of_a_server_change_on_its_ports(cloud: Cloud) -> None:
    server = _boot(cloud)
    group = cloud.network.create_security_group(name="fleet")
    cloud.compute.add_security_group_to_server(server, group)
    assert [each["name"] for each in cloud.compute.get_server(server.id).security_groups] == ["default", "fleet"]
    cloud.compute.remove_security_group_from_server(server, group)
    assert [each["name"] for each in cloud.compute.get_server(server.id).security_groups] == ["default"]


# Quotas


def test_quotas_are_enforced(cloud: Cloud) -> None:
    project = cloud.current_project_id
    cloud.network.update_quota(project, ports=1, security_groups=2)
    cloud.compute.update_quota_set(project, instances=1)
    _boot(cloud)
    cloud.network.create_security_group(name="fleet")
    with pytest.raises(ConflictException, match="Quota exceeded for resources: \\['security_group'\\]"):
        cloud.network.create_security_group(name="fleet")
    with pytest.raises(HttpException, match="Quota exceeded for instances") as error:
        _order(cloud)
    assert error.value.status_code == 403
    details = cloud.network.get_quota(project, details=True)
    assert (details.ports["limit"], details.ports["used"]) == (1, 1)
    absolute = cloud.compute.get_limits().absolute
    assert (absolute.instances, absolute.instances_used) == (1, 1)


# A new process


def test_servers_boot_again_in_a_new_process(tmp_path: Path) -> None:
    with InProcess(tmp_path / "store.sqlite") as before:
        cloud = before.connect()
        running, stopped = _boot(cloud), _boot(cloud, name="stopped")
        cloud.compute.stop_server(stopped)
        _status_of(cloud, stopped, "SHUTOFF")
        password = before.credentials.password
    with InProcess(tmp_path / "store.sqlite") as after:
        assert list(after.machines.running) == [running.id]
        assert after.credentials.password == password
        cloud = after.connect()
        statuses = {server.name: server.status for server in cloud.compute.servers()}
        assert statuses == {"runner-1": "ACTIVE", "stopped": "SHUTOFF"}
