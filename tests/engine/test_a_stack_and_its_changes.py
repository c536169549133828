"""What comes and goes in a stack that runs: registrations, runners, managers, the machine.

Every test goes on where the one before it stopped.
"""

import pytest

from tests.engine.harness import Project, Sandbox, restarted

# One worker runs them all, in this order.
pytestmark = [
    pytest.mark.docker,
    pytest.mark.plans,
    pytest.mark.xdist_group("changes"),
    pytest.mark.usefixtures("running_stack"),
]


@pytest.fixture(scope="module")
def running_stack(project: Project) -> None:
    project.up()


def test_a_token_is_rotated_and_the_old_registration_stays_for_its_jobs(project: Project, sandbox: Sandbox) -> None:
    managers = sandbox.managers()
    old = project.outputs()["runners"]["app"]["id"]
    project.configure(lambda config: config["runners"]["app"].update(rotation=1))
    assert project.preview() == {
        "UserRunner sandbox-app": "replace",
        "JobsEnded sandbox-app": "replace",
        "Container sandbox-1-app-config": "replace",
    }
    sandbox.control("DELETE", "requests")
    running = sandbox.put_job(["sleep 12", "echo done"])
    sandbox.wait_for_job(running, "running")
    project.up()
    new = project.outputs()["runners"]["app"]["id"]
    assert new != old
    assert not restarted(managers, sandbox.managers())
    assert sandbox.job(running)["status"] == "success"
    ended = f"/api/v4/jobs/{running}"
    calls = [(call["method"], call["path"]) for call in sandbox.control("GET", "requests")]
    updates = [number for number, call in enumerate(calls) if call == ("PUT", ended)]
    assert updates[-1] < calls.index(("DELETE", f"/api/v4/runners/{old}"))
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["runner"] == new
    assert project.preview() == {}


def test_a_runner_more_and_a_runner_less_leave_the_others_alone(project: Project, sandbox: Sandbox) -> None:
    managers = sandbox.managers()
    extra = {"project": 101, "tags": ["web"], "image": "unused", "pullPolicies": ["never"]}
    project.configure(lambda config: config["runners"].update(web=extra))
    created = {
        "UserRunner sandbox-web": "create",
        "JobsEnded sandbox-web": "create",
        "RemoteImage sandbox-1-web": "create",
        "Volume sandbox-1-web": "create",
        "Container sandbox-1-web-config": "create",
        "Container sandbox-1-web": "create",
    }
    handover = {"Handover sandbox-1": "update"}
    assert project.preview() == created | handover
    project.up()
    assert len(sandbox.managers()) == len(managers) + 1
    project.configure(lambda config: config["runners"].pop("web"))
    assert project.preview() == dict.fromkeys(created, "delete") | handover
    project.up()
    assert {manager.name for manager in sandbox.managers()} == {manager.name for manager in managers}
    assert len(sandbox.gitlab.runners_all.list(get_all=True)) == 2


def test_another_runner_image_starts_a_manager_and_lets_the_old_one_end_its_job(
    project: Project, sandbox: Sandbox
) -> None:
    image = sandbox.docker.images.get(sandbox.environment["SANDBOX_RUNNER_IMAGE"])
    image.tag("gitlab-runners-sandbox/gitlab-runner", "next")
    managers = sandbox.managers()
    runner = project.outputs()["runners"]["app"]["id"]
    running = sandbox.put_job(["sleep 6", "echo done"])
    sandbox.wait_for_job(running, "running")
    project.configure(lambda config: config["manager"].update(version="next"))
    assert project.preview() == {
        f"{type_} sandbox-1-{name}": "replace"
        for name in ("app", "team")
        for type_ in ("RemoteImage", "Volume", "Container")
    } | {f"Container sandbox-1-{name}-config": "replace" for name in ("app", "team")} | {"Handover sandbox-1": "update"}
    project.up()
    job = sandbox.wait_for_job(running)
    assert job["status"] == "success", job["trace"]
    assert len(sandbox.managers()) == 2
    assert restarted(managers, sandbox.managers()) == {manager.name for manager in managers}
    assert len(sandbox.gitlab.runners_all.list(get_all=True)) == 2
    after = sandbox.wait_for_job(sandbox.put_job(["echo done"]))
    assert after["runner"] == runner
    # Two managers that run side by side must not share a system id, and with it their jobs' folders.
    assert after["system_id"] != job["system_id"]


def test_another_machine_takes_over_before_the_old_one_goes(project: Project, sandbox: Sandbox) -> None:
    (old,) = sandbox.openstack.compute.servers()
    sandbox.control("DELETE", "requests")
    runners = {runner.id for runner in sandbox.gitlab.runners_all.list(get_all=True)}
    running = sandbox.put_job(["sleep 8", "echo done"])
    sandbox.wait_for_job(running, "running")
    project.configure(lambda config: config["host"].update(mtu=1400))
    plan = project.preview()
    on_machine = ("Port", "Instance", "FloatingIp", "FloatingIpAssociate", "docker", "Drain")
    assert plan == {
        **{f"{type_} sandbox-1": "replace" for type_ in on_machine},
        **{
            f"{type_} sandbox-1-{runner}": "replace"
            for runner in ("app", "team")
            for type_ in ("RemoteImage", "Volume", "Container")
        },
        "Container sandbox-1-app-config": "replace",
        "Container sandbox-1-team-config": "replace",
        "Handover sandbox-1": "update",
    }
    project.up()
    job = sandbox.wait_for_job(running)
    assert job["status"] == "success", job["trace"]
    (new,) = sandbox.openstack.compute.servers()
    assert new.id != old.id
    calls = [(call["method"], call["path"].rpartition("/")[2]) for call in sandbox.requests()]
    assert calls.index(("POST", "servers")) < calls.index(("DELETE", old.id))
    assert {runner.id for runner in sandbox.gitlab.runners_all.list(get_all=True)} == runners
    assert sandbox.inventory()["ports"] == 1
    assert sandbox.inventory()["floating IPs"] == 1
    after = sandbox.wait_for_job(sandbox.put_job(["cat /sys/class/net/eth0/mtu"]))
    assert "\n1400\n" in after["trace"]
    assert project.preview() == {}
