"""One stack on a real OpenStack, real machines and real engines; every test goes on where the one before it stopped."""

import re
import shlex
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tests.acceptance.ground_stack import (
    METADATA,
    NETWORKS,
    PATIENCE_SECONDS,
    SSH_FROM,
    Ground,
    Machine,
    layers,
    wait_until,
)
from tests.engine.harness import Project
from tests.engine.load import COLUMNS, JOB_LABEL, Feed, assert_no_job_was_lost, row, show

pytestmark = pytest.mark.usefixtures("metadata_service")

AWAY_SECONDS = 60
# How many jobs the runner runs at once, once its limit has been changed, and for how long one sleeps under load.
SLOTS = 1
SECONDS_OF_A_JOB = (1, 5)
# Bytes of an IPv4 header and of ICMP's: what `ping -s` does not count.
PING_OVERHEAD = 28
# A host without Docker, with everything else that cloud-init installs.
PLAIN = {
    "image": "debian-13-plain",
    "docker": "distribution",
    "updates": {"rebootWindow": "02:00-05:00"},
    "metricsFrom": SSH_FROM,
}
UNITS = (
    *("docker.service", "block-metadata.service", "runner-metrics.socket"),
    *("prune-docker.timer", "update-engine-and-restart.timer"),
)
FETCH = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {METADATA} 80"


def table(title: str, rows: dict[str, Any]) -> None:
    """Prints figures for whoever reads the run."""
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<32} {value}")


def registrations(ground: Ground) -> set[int]:
    """Ids of the runners that GitLab knows."""
    return {runner.id for runner in ground.gitlab.runners_all.list(get_all=True)}


def run_job(ground: Ground, *script: str, **more: Any) -> str:
    """Trace of a job that must succeed; what it had is gone with it."""
    job = ground.wait_for_job(ground.put_job(script, **more))
    assert job["status"] == "success", job["trace"]
    # The runner tidies up after it has reported the job's end: a machine that is reset before would keep what is left.
    leftover = f"docker ps --all --quiet --filter label={JOB_LABEL}={job['id']}"
    wait_until(lambda: not ground.machine().run(leftover), "the job's containers to go")
    return str(job["trace"])


def is_back(ground: Ground, before: list[str]) -> Callable[[], bool]:
    """Whether the managers' containers of before run again."""
    return lambda: ground.machine().run("docker ps --quiet --filter label=gitlab-runners.stack").split() == before


def managers(machine: Machine) -> list[str]:
    """Ids of the managers' containers that run."""
    return machine.run("docker ps --quiet --filter label=gitlab-runners.stack").split()


@pytest.fixture(scope="session")
def first_boot() -> dict[str, float]:
    """How far the first machine was when, in seconds of the epoch."""
    return {}


def since(began: float, reached: dict[str, float]) -> dict[str, int]:
    """The same times in seconds since then."""
    return {name: round(at - began) for name, at in reached.items()}


def test_up_from_nothing_and_a_job_runs(ground: Ground, project: Project, first_boot: dict[str, float]) -> None:
    waiting = ground.put_job(["cat /sys/class/net/eth0/mtu"])
    began = time.time()
    project.up()
    ended = time.time()
    job = ground.wait_for_job(waiting)
    assert job["status"] == "success", job["trace"]
    assert f"\n{NETWORKS['runners']}\n" in job["trace"]
    first_boot.update(ground.boot(ground.machine()))
    taken, finished = (datetime.fromisoformat(job[key]).timestamp() for key in ("started_at", "finished_at"))
    more = {"runner online, takes the job": taken, "job finished": finished, "`pulumi up` ended": ended}
    table("Seconds from the start of `pulumi up`", since(began, first_boot | more))


def test_a_second_up_changes_nothing(project: Project) -> None:
    assert project.preview() == {}


def test_every_layer_has_the_networks_mtu(ground: Ground) -> None:
    found = layers(ground, ground.machine())
    table("MTU on the network runners", found)
    assert found == dict.fromkeys(found, NETWORKS["runners"])


def test_a_packet_of_the_mtu_passes_and_no_larger_one(ground: Ground) -> None:
    machine = ground.machine()
    job = ground.put_job(["until [ -e /tmp/done ]; do sleep 1; done"])
    ground.wait_for_job(job, "running")
    build = machine.job_container()
    process = machine.run(f"docker inspect --format '{{{{.State.Pid}}}}' {build}")
    neighbour = ground.gateways["runners"]
    ping = f"sudo nsenter --target {process} --net ping -c 2 -W 5 -M do -s {{}} {neighbour}"
    size = NETWORKS["runners"] - PING_OVERHEAD
    assert machine.succeeds(ping.format(size))
    assert not machine.succeeds(ping.format(size + 1))
    machine.run(f"docker exec {build} touch /tmp/done")
    assert ground.wait_for_job(job)["status"] == "success"


def test_cloud_init_and_dockerd_find_no_fault(ground: Ground) -> None:
    assert_no_fault_was_found(ground.machine())


def assert_no_fault_was_found(machine: Machine) -> None:
    """By cloud-init in the user_data and at boot, and by dockerd in its configuration."""
    status = machine.run("cloud-init status --long", check=False)
    assert re.search(r"^status: done$", status, re.MULTILINE), status
    assert re.search(r"^errors: \[\]$", status, re.MULTILINE), status
    assert re.search(r"^recoverable_errors: \{\}$", status, re.MULTILINE), status
    assert "Valid schema" in machine.run("sudo cloud-init schema --system")
    assert machine.succeeds("sudo dockerd --validate --config-file=/etc/docker/daemon.json")


def test_the_host_key_is_the_expected_one_and_another_is_refused(ground: Ground, project: Project) -> None:
    machine = ground.machine()
    key = "/etc/ssh/ssh_host_ed25519_key"
    machine.run(f"sudo cp {key} /root/key; sudo ssh-keygen -q -t ed25519 -N '' -f /root/other")
    # The program's shared connection ends like this one: what stands is not checked again.
    machine.run(f"sudo sh -c 'cp /root/other {key}; systemctl restart ssh; pkill sshd-session'", check=False)
    project.configure(lambda config: config["runners"]["app"].update(limit=1))
    refused = project.try_up()
    assert refused.status != 0
    assert "another SSH host key" in refused.output
    machine.run(f"sudo cp /root/key {key}; sudo rm /root/key /root/other*; sudo systemctl restart ssh")
    project.up()
    assert project.preview() == {}


def test_the_security_group_has_the_declared_rules_and_no_other(ground: Ground) -> None:
    (server,) = ground.openstack.compute.servers()
    (port,) = ground.openstack.network.ports(device_id=server.id)
    (group,) = [ground.openstack.network.get_security_group(id_) for id_ in port.security_group_ids]
    rules = {
        (rule["direction"], rule["ethertype"], rule["protocol"], rule["port_range_min"], rule["remote_ip_prefix"])
        for rule in group.security_group_rules
    }
    assert rules == {
        ("egress", "IPv4", None, None, None),
        ("egress", "IPv6", None, None, None),
        *(("ingress", "IPv4", "tcp", 22, network) for network in SSH_FROM),
    }


def answer_of_metadata(ground: Ground) -> str:
    """What a container on a network such as the runner makes for each job gets from the metadata service, which its
    machine reaches."""
    machine = ground.machine()
    fetch = f"import urllib.request as r; print(r.urlopen('http://{METADATA}/', timeout=5).read())"
    assert "secrets" in machine.run(f"python3 -c {shlex.quote(fetch)}")
    image = ground.environment["SANDBOX_JOB_IMAGE"]
    machine.run("docker network create like-a-jobs")
    answer = machine.run(
        f"docker run --rm --network like-a-jobs {image} sh -c {shlex.quote(f'{FETCH} || echo nothing')}"
    )
    machine.run("docker network rm like-a-jobs")
    return answer


def test_jobs_do_not_reach_the_metadata_service_even_after_dockerd_restarts(ground: Ground) -> None:
    machine = ground.machine()
    assert "nothing came" in run_job(ground, f"{FETCH} || echo nothing came")
    machine.run("sudo systemctl restart docker")
    wait_until(lambda: machine.succeeds("docker version"), "dockerd")
    assert answer_of_metadata(ground) == "nothing"
    # And a job would reach it, were it not for the unit.
    machine.run(f"sudo iptables -w -t raw -D PREROUTING -d {METADATA} -j DROP")
    assert "secrets" in answer_of_metadata(ground)
    machine.run("sudo systemctl restart block-metadata")
    assert answer_of_metadata(ground) == "nothing"


def test_runners_come_back_when_dockerd_was_away(ground: Ground, first_boot: dict[str, float]) -> None:
    machine = ground.machine()
    before = managers(machine)
    machine.run("sudo systemctl stop docker.socket docker")
    back_at = time.monotonic() + AWAY_SECONDS
    print_what_user_data_adds(ground, machine, first_boot)
    time.sleep(max(0, back_at - time.monotonic()))
    machine.run("sudo systemctl start docker.socket docker")
    wait_until(lambda: machine.succeeds("docker version"), "dockerd")
    run_job(ground, "echo back")
    assert managers(machine) == before


def print_what_user_data_adds(ground: Ground, machine: Machine, first_boot: dict[str, float]) -> None:
    """Boots a machine without user_data, and prints its times beside those of the first one."""
    with ground.machine_without_user_data(machine) as bare:
        wait_until(lambda: "done" in bare.run("cloud-init status --wait", check=False), "the machine to boot")
        reached = ground.boot(bare)
    plain, ours = (since(boot["VM asked for"], boot) for boot in (reached, first_boot))
    table(
        "Seconds from the request for a machine: with this stack's user_data, without any",
        {name: f"{ours[name]:>5}{plain[name]:>5}" for name in plain},
    )


def test_runners_come_back_when_the_machine_reboots_and_nothing_else_changes(ground: Ground, project: Project) -> None:
    machine = ground.machine()
    before = managers(machine)
    files = "sudo sh -c 'sha256sum /etc/docker/* /etc/ssh/ssh_host_* /etc/ssh/sshd_config.d/* /usr/local/*bin/*'"
    digests = machine.run(files)
    # What the last job's containers left would be there again, if their removal had not reached the disk.
    booted = machine.run("sync; cat /proc/sys/kernel/random/boot_id")
    ground.openstack.compute.reboot_server(machine.id, "HARD")
    wait_until(
        lambda: machine.run("cat /proc/sys/kernel/random/boot_id", check=False) not in ("", booted),
        "the machine to boot again",
    )
    machine.run("cloud-init status --wait")
    wait_until(is_back(ground, before), "the managers")
    run_job(ground, "echo back")
    assert answer_of_metadata(ground) == "nothing"
    assert machine.run(files) == digests
    assert project.preview() == {}


def test_refresh_finds_what_was_changed_by_hand(ground: Ground, project: Project) -> None:
    machine = ground.machine()
    (container,) = machine.run("docker ps --quiet --filter label=gitlab-runners.runner=images").split()
    machine.run(f"docker stop --time 30 {container}")
    runner = ground.gitlab.runners.get(project.outputs()["runners"]["app"]["id"])
    runner.tag_list = ["edited"]
    runner.save()
    (server,) = ground.openstack.compute.servers()
    (port,) = ground.openstack.network.ports(device_id=server.id)
    (group,) = port.security_group_ids
    ground.openstack.network.create_security_group_rule(
        security_group_id=group, direction="ingress", ether_type="IPv4", remote_ip_prefix="0.0.0.0/0"
    )
    assert project.refresh() == {"Container sandbox-1-images": "update", "UserRunner sandbox-app": "update"}
    project.up()
    rules = ground.openstack.network.security_group_rules(security_group_id=group)
    assert "0.0.0.0/0" not in [rule.remote_ip_prefix for rule in rules]
    assert len(managers(machine)) == 2
    assert ground.gitlab.runners.get(runner.id).tag_list == ["docker"]


def test_no_job_is_lost_while_the_managers_image_and_configuration_change(ground: Ground, project: Project) -> None:
    machine = ground.machine()
    before, manager = set(managers(machine)), project.config["gitlab-runners:manager"]
    machine.run(f"docker tag {manager['image']}:{manager['version']} {manager['image']}:next")
    feed = Feed(ground, SLOTS, SECONDS_OF_A_JOB)
    print()
    show(COLUMNS)

    def another_image() -> None:
        project.configure(lambda config: config["manager"].update(version="next"))
        project.up()

    def another_configuration() -> None:
        project.configure(lambda config: config["runners"]["app"].update(jobLimits={"memory": "256m"}))
        project.up()

    try:
        with machine.engine() as engine:
            rows = [
                row("image or version", feed, engine, another_image),
                row("config.toml", feed, engine, another_configuration),
            ]
    finally:
        feed.stop()
    for each in rows:
        assert_no_job_was_lost(each)
        assert each["gap"] == 0, each
    assert not before & set(managers(machine))
    wait_until(lambda: {job["status"] for job in feed.jobs()} <= {"success", "canceled"}, "the last jobs")
    # The machine that comes next has no such tag.
    project.configure(lambda config: config["manager"].update(version=manager["version"]))


def test_without_the_daemons_setting_the_measurement_fails(ground: Ground) -> None:
    machine = ground.machine()
    machine.run("sudo cp /etc/docker/daemon.json /root/kept; echo '{}' | sudo tee /etc/docker/daemon.json")
    machine.run("sudo systemctl restart docker")
    wait_until(lambda: machine.succeeds("docker version"), "dockerd")
    image = ground.environment["SANDBOX_JOB_IMAGE"]
    assert machine.container(image=image) == 1500
    machine.run("docker network create user-made")
    assert machine.container("--network user-made", image=image) == 1500
    machine.run("docker network rm user-made")
    machine.run("sudo mv /root/kept /etc/docker/daemon.json; sudo systemctl restart docker")
    wait_until(lambda: machine.succeeds("docker version"), "dockerd")


def test_another_machine_takes_over_while_a_job_runs(ground: Ground, project: Project) -> None:
    """Another flavor, network and image, on which cloud-init has all to install: the registration stays."""
    before, known = ground.machine(), registrations(ground)
    job = ground.put_job(["sleep 30", "echo done"])
    ground.wait_for_job(job, "running")
    project.configure(lambda config: config["host"].update(flavor="m1.medium", network="runners-1442", **PLAIN))
    plan = project.preview()
    assert {plan[f"{type_} sandbox-1"] for type_ in ("Port", "Instance", "docker", "Drain")} == {"replace"}
    assert not [name for name in plan if name.startswith("UserRunner")]
    project.up()
    assert ground.job(job)["status"] == "success"
    assert ground.machine().id != before.id
    assert registrations(ground) == known
    found = layers(ground, ground.machine())
    table("MTU on the network runners-1442", found)
    assert found == dict.fromkeys(found, NETWORKS["runners-1442"])


def test_what_cloud_init_installed_works(ground: Ground, project: Project) -> None:
    machine = ground.machine()
    assert_no_fault_was_found(machine)
    boot = ground.boot(machine)
    table("Seconds from the request for a machine that installs Docker", since(boot["VM asked for"], boot))
    assert machine.run(f"systemctl is-enabled {' '.join(UNITS)}").split() == ["enabled"] * len(UNITS)
    assert machine.run(f"systemctl is-active {' '.join(UNITS)}").split() == ["active"] * len(UNITS)
    assert "\nnode_network_mtu_bytes" in metrics(machine, "")
    assert "\ngitlab_runner_version_info" in metrics(machine, "/app")
    assert answer_of_metadata(ground) == "nothing"
    assert project.preview() == {}


def metrics(machine: Machine, runner: str) -> str:
    """What Prometheus would read, of the machine or of a runner there."""
    with urllib.request.urlopen(f"http://{machine.address}:9252/metrics{runner}", timeout=PATIENCE_SECONDS) as answer:
        return str(answer.read().decode())


def test_destroy_drains_and_leaves_nothing(ground: Ground, project: Project) -> None:
    job = ground.put_job(["sleep 15", "echo done"])
    ground.wait_for_job(job, "running")
    project.destroy()
    assert ground.job(job)["status"] == "success"
    assert_nothing_is_left(ground)


def test_a_lower_mtu_holds_at_every_layer(ground: Ground, project: Project) -> None:
    project.configure(lambda config: config["host"].update(mtu=1400, image="debian-13", docker="preinstalled"))
    project.up()
    found = layers(ground, ground.machine())
    table("MTU on the network runners-1442 with host.mtu: 1400", found)
    assert found.pop("machine's interface") == NETWORKS["runners-1442"]
    assert found == dict.fromkeys(found, 1400)


def test_destroy_ends_well_when_the_machine_is_gone(ground: Ground, project: Project) -> None:
    ground.openstack.compute.delete_server(ground.machine().id)
    wait_until(lambda: not list(ground.openstack.compute.servers()), "the machine to go")
    project.destroy()
    assert_nothing_is_left(ground)


def assert_nothing_is_left(ground: Ground) -> None:
    """In no cloud; containers and volumes went with their machine."""
    assert not registrations(ground)
    assert ground.openstack_inventory() == dict.fromkeys(ground.openstack_inventory(), 0)
