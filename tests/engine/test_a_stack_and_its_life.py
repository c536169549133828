"""One stack from its first preview to its end, on the same machine throughout.

Every test goes on where the one before it stopped.
"""

import base64
import json
import re
from typing import Any

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox, restarted, wait_until

TOKEN = re.compile(r"glrt-[\w.-]{20}")
# One worker runs them all, in this order.
pytestmark = [pytest.mark.docker, pytest.mark.plans, pytest.mark.xdist_group("life")]


def test_preview_of_a_new_stack_creates_everything(project: Project) -> None:
    assert project.preview() == {
        "SecGroup sandbox": "create",
        "SecGroupRule sandbox-out-ipv4": "create",
        "SecGroupRule sandbox-out-ipv6": "create",
        "SecGroupRule sandbox-ssh-127.0.0.0/8": "create",
        "DeclaredRules sandbox": "create",
        "Keypair sandbox": "create",
        "HostKey sandbox-1": "create",
        "Port sandbox-1": "create",
        "Instance sandbox-1": "create",
        "FloatingIp sandbox-1": "create",
        "FloatingIpAssociate sandbox-1": "create",
        "docker sandbox-1": "create",
        "Drain sandbox-1": "create",
        "Handover sandbox-1": "create",
        "gitlab sandbox": "create",
        "UserRunner sandbox-app": "create",
        "UserRunner sandbox-team": "create",
        "JobsEnded sandbox-app": "create",
        "JobsEnded sandbox-team": "create",
        **{
            f"{type_} sandbox-1-{runner}": "create"
            for runner in ("app", "team")
            for type_ in ("RemoteImage", "Volume", "Container")
        },
        "Container sandbox-1-app-config": "create",
        "Container sandbox-1-team-config": "create",
    }


def test_up_makes_it_and_a_job_runs(project: Project, sandbox: Sandbox) -> None:
    sandbox.control("DELETE", "ssh")
    project.up()
    # The program's master connection, and a Docker client's own when the master has just ended.
    assert len(sandbox.control("GET", "ssh")) <= 2
    assert sandbox.inventory() == NOTHING | {
        "servers": 1,
        "key pairs": 1,
        "ports": 1,
        "floating IPs": 1,
        "security groups": 1,
        "security group rules": 3,
        "runners": 2,
        "containers": 4,
        "volumes": 2,
    }
    job = sandbox.wait_for_job(sandbox.put_job(["echo the answer is $((6 * 7))", "cat /sys/class/net/eth0/mtu"]))
    assert job["status"] == "success", job["trace"]
    assert "the answer is 42" in job["trace"]
    assert "\n1450\n" in job["trace"]


def test_outputs_lead_to_everything(project: Project, sandbox: Sandbox) -> None:
    outputs = project.outputs()
    (server,) = sandbox.openstack.compute.servers()
    addresses = [address["addr"] for network in server.addresses.values() for address in network]
    assert outputs["hosts"]["sandbox-1"]["addresses"] == addresses
    assert outputs["hosts"]["sandbox-1"]["mtu"] == 1450
    app = outputs["runners"]["app"]
    assert sandbox.gitlab.runners.get(app["id"]).description == "sandbox app"
    assert app["page"].endswith(f"/team-a/app/-/runners/{app['id']}")
    assert set(app["containers"]) <= {container.name for container in sandbox.managers()}


def test_a_second_up_changes_nothing(project: Project, sandbox: Sandbox) -> None:
    managers = sandbox.managers()
    assert project.preview() == {}
    project.up()
    assert not restarted(managers, sandbox.managers())


def test_what_could_be_safer_is_told(project: Project) -> None:
    shown = project.run("preview", "--stack=sandbox", config=True).output.partition("Diagnostics:")[2]
    assert [line.strip() for line in shown.splitlines() if "gitlab-runners:" in line] == [
        "warning: gitlab-runners:runners.team: builds: dind: takes jobs of every project of a group; "
        "better: project, locked: true and protected: true"
    ]


def test_tokens_stand_nowhere_in_plain_text(project: Project, sandbox: Sandbox) -> None:
    state = json.dumps(project.export())
    assert "UserRunner" in state
    assert not TOKEN.search(state)
    assert "OPENSSH PRIVATE KEY" not in state
    assert not TOKEN.search(json.dumps(project.outputs()))
    assert not TOKEN.search(project.run("preview", "--stack=sandbox", "--json", config=True).output)
    assert not TOKEN.search(project.run("preview", "--stack=sandbox", "--diff", config=True).output)
    (server,) = sandbox.openstack.compute.servers()
    user_data = base64.b64decode(server.user_data).decode()
    assert user_data.startswith("#cloud-config")
    assert not TOKEN.search(user_data)
    for container in sandbox.docker.containers.list(all=True):
        inspected = json.dumps(container.attrs)
        assert "gitlab-runner" in inspected
        assert not TOKEN.search(inspected)
    # The test would find one: this is where it belongs.
    (manager, *_) = sandbox.managers()
    assert TOKEN.search(config_toml(manager))


def config_toml(manager: Any) -> str:
    """The manager's configuration, read as Docker hands out files."""
    stream, _ = manager.get_archive("/etc/gitlab-runner/config.toml")
    return b"".join(stream).decode(errors="replace")


def test_a_changed_configuration_restarts_nothing(project: Project, sandbox: Sandbox) -> None:
    managers = sandbox.managers()
    running = sandbox.put_job(["sleep 5", "echo done"])
    sandbox.wait_for_job(running, "running")
    changed = {"environment": {"GREETING": "hello"}, "limit": 1, "jobLimits": {"memory": "256m", "cpus": 0.5}}
    project.configure(lambda config: config["runners"]["app"].update(changed))
    assert project.preview() == {"Container sandbox-1-app-config": "replace"}
    project.up()
    assert not restarted(managers, sandbox.managers())
    wait_until(lambda: any("GREETING" in config_toml(manager) for manager in sandbox.managers()), "the new file")

    def greeted() -> bool:
        return "hello" in sandbox.wait_for_job(sandbox.put_job(["echo $GREETING"]))["trace"]

    # The manager looks at its file every three seconds.
    wait_until(greeted, "a job with the new environment")
    assert sandbox.wait_for_job(running)["status"] == "success"


def test_a_job_is_confined_and_limited(project: Project, sandbox: Sandbox) -> None:
    job = sandbox.put_job(["grep NoNewPrivs /proc/self/status", "sleep 5"])
    labels = [f"com.gitlab.gitlab-runner.{label}" for label in (f"job.id={job}", "type=build")]
    filters: dict[str, str | list[str] | bool] = {"label": labels}

    def containers() -> list[Any]:
        return sandbox.docker.containers.list(filters=filters)

    wait_until(lambda: bool(containers()), "the job's container")
    limits = containers()[0].attrs["HostConfig"]
    assert (limits["Memory"], limits["NanoCpus"], limits["Privileged"]) == (256 << 20, 500_000_000, False)
    assert "NoNewPrivs:\t1" in sandbox.wait_for_job(job)["trace"]


def test_what_gitlab_keeps_is_changed_in_place(project: Project, sandbox: Sandbox) -> None:
    project.configure(
        lambda config: config["runners"]["app"].update(paused=True, tags=["docker", "linux"], maximumTimeout=1800)
    )
    assert project.preview()["UserRunner sandbox-app"] == "update"
    project.up()
    runner = sandbox.gitlab.runners.get(project.outputs()["runners"]["app"]["id"])
    assert (runner.paused, sorted(runner.tag_list), runner.maximum_timeout) == (True, ["docker", "linux"], 1800)
    project.configure(
        lambda config: config["runners"]["app"].update(paused=False, tags=["docker"], maximumTimeout=3600)
    )
    project.up()


def test_a_network_more_from_which_ssh_is_allowed_is_one_rule_more(project: Project) -> None:
    project.configure(lambda config: config["host"]["sshFrom"].append("198.51.100.0/24"))
    assert project.preview() == {
        "SecGroupRule sandbox-ssh-198.51.100.0/24": "create",
        "DeclaredRules sandbox": "update",
    }
    project.configure(lambda config: config["host"]["sshFrom"].pop())


def test_refresh_finds_what_was_changed_by_hand_and_up_mends_it(project: Project, sandbox: Sandbox) -> None:
    cloud = sandbox.openstack.network
    (group,) = [group for group in cloud.security_groups() if group.name == "sandbox"]
    (rule,) = [rule for rule in cloud.security_group_rules(security_group_id=group.id) if rule.direction == "ingress"]
    cloud.delete_security_group_rule(rule)
    cloud.create_security_group_rule(
        security_group_id=group.id, direction="ingress", ether_type="IPv4", remote_ip_prefix="0.0.0.0/0"
    )
    runner = sandbox.gitlab.runners.get(project.outputs()["runners"]["app"]["id"])
    runner.tag_list = ["changed-by-hand"]
    runner.save()
    (manager,) = [manager for manager in sandbox.managers() if "-team" in (manager.name or "")]
    manager.remove(force=True, v=True)
    found = project.refresh()
    assert found["SecGroupRule sandbox-ssh-127.0.0.0/8"] == "delete"
    assert found["UserRunner sandbox-app"] == "update"
    assert found["Container sandbox-1-team"] == "delete"
    assert project.preview()["DeclaredRules sandbox"] == "update"
    assert "ingress IPv4 any from 0.0.0.0/0" in json.dumps(project.export())
    project.up()
    assert [rule.remote_ip_prefix for rule in cloud.security_group_rules(security_group_id=group.id)].count(None) == 2
    assert sandbox.inventory()["security group rules"] == 3
    assert project.preview() == {}
    assert sandbox.gitlab.runners.get(runner.id).tag_list == ["docker"]
    assert len(sandbox.managers()) == 2


def test_destroy_lets_the_job_end_and_leaves_nothing(project: Project, sandbox: Sandbox) -> None:
    running = sandbox.put_job(["sleep 5", "echo done"])
    sandbox.wait_for_job(running, "running")
    project.destroy()
    assert sandbox.wait_for_job(running)["status"] == "success"
    assert sandbox.inventory() == NOTHING
    assert not sandbox.docker.volumes.list()
