"""The files that the program writes, exactly."""

import itertools
import json
import re
import subprocess
import tomllib
from ipaddress import ip_network
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from renderers.cloud_init import CHECK_MTU, CloudInit, user_data
from renderers.config_toml import ConfigToml, Dind, Limits, RegistryLogin, config_toml
from renderers.daemon_json import daemon_json, dind_daemon_json
from renderers.metrics import METRICS_SCRIPT, prometheus_targets
from renderers.proxy import Proxy, proxy_environment
from renderers.prune import PRUNE_SCRIPT, PRUNE_SERVICE, PRUNE_TIMER, Prune
from renderers.registry_cache import registry_cache
from renderers.updates import UPDATE_SCRIPT, Updates, begins_at
from tests.configurations import PLAIN

MACHINE = CloudInit(
    user="debian",
    mtu=1450,
    install_docker=True,
    host_key_private="PRIVATE\nKEY\n",
    host_key_public="ssh-ed25519 AAAA",
    prune=Prune(older_than_hours=168, free_percent=20),
)
MANAGER = ConfigToml(
    **vars(PLAIN) | {"runner_id": 7, "volumes": ["/cache"], "environment": {"B": "2", "A": "1"}, "mtu": 1442}
)


def cloud_config(machine: CloudInit = MACHINE) -> dict[str, Any]:
    text = user_data(machine)
    assert text.startswith("#cloud-config\n")
    configuration: dict[str, Any] = yaml.safe_load(text)
    return configuration


def files(machine: CloudInit = MACHINE) -> dict[str, dict[str, str]]:
    return {file["path"]: file for file in cloud_config(machine)["write_files"]}


def test_dockerd_gets_the_mtu_for_its_bridge_and_for_later_networks() -> None:
    assert json.loads(daemon_json(1442)) == {
        "mtu": 1442,
        "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1442"}},
        "live-restore": True,
        "log-driver": "json-file",
        "log-opts": {"max-size": "10m", "max-file": "3"},
        "default-address-pools": [{"base": "172.16.0.0/12", "size": 24}],
    }


def test_an_old_dockerd_gets_no_key_that_it_does_not_know() -> None:
    assert "default-network-opts" not in json.loads(daemon_json(1442, network_options=False))


def test_docker_in_docker_gets_the_mtu_twice_and_nothing_else() -> None:
    assert json.loads(dind_daemon_json(1450)) == {
        "mtu": 1450,
        "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1450"}},
    }


def test_both_engines_get_ipv6_and_never_the_same_networks() -> None:
    outer, inner = json.loads(daemon_json(1450, ipv6=True)), json.loads(dind_daemon_json(1450, ipv6=True))
    networks = []
    for engine in (outer, inner):
        assert engine["ipv6"] is True
        # Both, or engines before 27.0 would neither translate nor keep networks apart, or not start.
        assert engine["ip6tables"] is engine["experimental"] is True
        ipv4, ipv6 = engine["default-address-pools"]
        assert ipv4 == {"base": "172.16.0.0/12", "size": 24}
        pool = ip_network(ipv6["base"])
        # As many as of IPv4, and engines before 27.0 cannot count beyond the last 64 bits.
        assert ipv6["size"] - pool.prefixlen == 24 - 12
        assert ipv6["size"] > 64
        networks += [ip_network(engine["fixed-cidr-v6"]), pool]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(networks, 2))
    assert all(str(network).startswith("fd") for network in networks)
    pools = {"default-address-pools": outer["default-address-pools"]}
    assert outer.items() >= (json.loads(daemon_json(1450)) | pools).items()
    assert inner.items() >= json.loads(dind_daemon_json(1450)).items()
    assert "mtu" not in json.loads(dind_daemon_json(None, ipv6=True))


def test_both_engines_get_the_mirrors() -> None:
    mirrors = ["https://mirror.example", "http://10.0.0.9:5000"]
    assert json.loads(daemon_json(1450, mirrors)) == json.loads(daemon_json(1450)) | {"registry-mirrors": mirrors}
    assert json.loads(dind_daemon_json(1450, mirrors)) == json.loads(dind_daemon_json(1450)) | {
        "registry-mirrors": mirrors
    }
    assert json.loads(dind_daemon_json(None, mirrors)) == {"registry-mirrors": mirrors}


def test_config_toml_exactly() -> None:
    assert config_toml(MANAGER) == dedent("""\
        concurrent = 4
        check_interval = 3
        log_level = "info"
        log_format = "json"

        [[runners]]
        name = "dev-1-app"
        url = "https://gitlab.example"
        token = "glrt-token"
        executor = "docker"
        limit = 2
        environment = [
            "A=1",
            "B=2",
        ]
        id = 7

        [runners.feature_flags]
        FF_NETWORK_PER_BUILD = true
        FF_DISABLE_AUTOMATIC_TOKEN_ROTATION = true

        [runners.docker]
        image = "debian:13-slim"
        privileged = false
        security_opt = [
            "no-new-privileges:true",
        ]
        network_mtu = 1442
        volumes = [
            "/cache",
        ]
    """)


def test_logins_are_what_docker_has_in_its_configuration_file() -> None:
    logins = {
        "registry.example:5000": RegistryLogin("robot", "pass: word"),
        "docker.io": RegistryLogin("me", "token"),
    }
    runner = tomllib.loads(config_toml(ConfigToml(**vars(MANAGER) | {"registry_logins": logins})))["runners"][0]
    name, _, value = next(each for each in runner["environment"] if "AUTH" in each).partition("=")
    assert name == "DOCKER_AUTH_CONFIG"
    assert json.loads(value) == {
        "auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6dG9rZW4="},
            "registry.example:5000": {"auth": "cm9ib3Q6cGFzczogd29yZA=="},
        }
    }
    assert "pass" not in repr(logins)


def test_docker_in_docker_makes_only_its_services_privileged() -> None:
    runner = tomllib.loads(config_toml(ConfigToml(**vars(MANAGER) | {"dind": Dind("/volume/dind.json")})))["runners"][0]
    docker = runner["docker"]
    assert docker["privileged"] is False
    assert docker["services_privileged"] is True
    assert docker["allowed_privileged_services"]
    assert docker["volumes"] == ["/cache", "/certs/client", "/volume/dind.json:/etc/docker/daemon.json:ro"]
    assert "DOCKER_TLS_CERTDIR=/certs" in runner["environment"]


def rendered(**changed: Any) -> dict[str, Any]:
    """[[runners]] of a config.toml."""
    runner: dict[str, Any] = tomllib.loads(config_toml(ConfigToml(**vars(MANAGER) | changed)))["runners"][0]
    return runner


def test_rootless_builds_may_make_namespaces_and_nothing_is_privileged() -> None:
    docker = rendered(rootless=True, allowed_images=["quay.io/buildah/stable:*"])["docker"]
    assert docker == {
        "image": "debian:13-slim",
        "privileged": False,
        "security_opt": ["seccomp:unconfined", "apparmor:unconfined"],
        "allowed_images": ["quay.io/buildah/stable:*"],
        "network_mtu": 1442,
        "volumes": ["/cache"],
    }


def test_images_with_sudo_may_be_let_gain_privileges() -> None:
    assert "security_opt" not in rendered(no_new_privileges=False)["docker"]


def test_managers_helpers_and_docker_in_docker_trust_further_cas() -> None:
    for_helpers = "/volume/certs/ca.crt:/etc/gitlab-runner/certs/ca.crt:ro"
    runner = rendered(ca_file="/volume/certs/ca.crt")
    assert runner["tls-ca-file"] == "/etc/gitlab-runner/certs/ca.crt"
    assert runner["docker"]["volumes"] == ["/cache", for_helpers]
    assert rendered(ca_file="/volume/certs/ca.crt", dind=Dind(None))["docker"]["volumes"] == [
        "/cache",
        "/certs/client",
        for_helpers,
        "/volume/certs/ca.crt:/etc/ssl/certs/gitlab-runners.crt:ro",
    ]


def test_what_jobs_may_use_exactly() -> None:
    docker = rendered(
        pull_policies=["always"],
        allowed_images=["debian:*"],
        allowed_services=["postgres:*"],
        allowed_pull_policies=["always", "if-not-present"],
        services_limit=0,
        job_limits=Limits("2g", "1.5"),
        service_limits=Limits("512m", "0.5"),
    )["docker"]
    assert docker == {
        "image": "debian:13-slim",
        "privileged": False,
        "security_opt": ["no-new-privileges:true"],
        "pull_policy": ["always"],
        "allowed_images": ["debian:*"],
        "allowed_services": ["postgres:*"],
        "allowed_pull_policies": ["always", "if-not-present"],
        "services_limit": 0,
        "memory": "2g",
        "cpus": "1.5",
        "service_memory": "512m",
        "service_cpus": "0.5",
        "network_mtu": 1442,
        "volumes": ["/cache"],
    }


def test_further_keys_are_added_to_what_is_there() -> None:
    more = {
        "output_limit": 8192,
        "feature_flags": {"FF_USE_FASTZIP": True},
        "docker": {"shm_size": 300000000, "services": [{"name": "postgres:17"}]},
        "cache": {"Type": "s3", "s3": {"BucketName": "cache"}},
    }
    plain, runner = rendered(), rendered(advanced=more)
    assert runner == plain | {
        "output_limit": 8192,
        "feature_flags": plain["feature_flags"] | {"FF_USE_FASTZIP": True},
        "docker": plain["docker"] | {"shm_size": 300000000, "services": [{"name": "postgres:17"}]},
        "cache": {"Type": "s3", "s3": {"BucketName": "cache"}},
    }


def test_further_global_keys_are_added() -> None:
    more = {"listen_address": ":9252", "session_server": {"session_timeout": 1800}}
    plain = tomllib.loads(config_toml(MANAGER))
    assert tomllib.loads(config_toml(ConfigToml(**vars(MANAGER) | {"advanced_global": more}))) == plain | more


def test_the_networks_of_jobs_have_ipv6_where_the_host_has() -> None:
    assert rendered(ipv6=True)["docker"] == rendered()["docker"] | {"enable_ipv6": True}


def test_without_an_mtu_docker_keeps_its_own() -> None:
    docker = tomllib.loads(config_toml(ConfigToml(**vars(MANAGER) | {"mtu": None})))["runners"][0]["docker"]
    assert "network_mtu" not in docker


def test_text_that_needs_quoting_survives() -> None:
    environment = {"GREETING": 'say "hi"\\n', "EMPTY": ""}
    text = config_toml(ConfigToml(**vars(MANAGER) | {"environment": environment}))
    assert tomllib.loads(text)["runners"][0]["environment"] == ["EMPTY=", 'GREETING=say "hi"\\n']


def test_cloud_init_writes_dockers_configuration_before_docker_is_there() -> None:
    assert files()["/etc/docker/daemon.json"]["content"] == daemon_json(1450)
    assert cloud_config()["packages"] == ["docker.io"]


def test_old_and_new_engines_of_a_machine_get_the_mirrors() -> None:
    written = files(CloudInit(**vars(MACHINE) | {"registry_mirrors": ["https://mirror.example"]}))
    for name in ("daemon.json", "daemon-before-24.json"):
        assert json.loads(written[f"/etc/docker/{name}"]["content"])["registry-mirrors"] == ["https://mirror.example"]


def test_the_machine_trusts_further_cas() -> None:
    assert "ca_certs" not in cloud_config()
    certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    trusted = cloud_config(CloudInit(**vars(MACHINE) | {"ca_certificates": [certificate]}))["ca_certs"]
    assert trusted == {"trusted": [certificate]}


def test_a_machine_with_a_cache_asks_it_first_and_has_its_address_before_docker() -> None:
    machine = CloudInit(**vars(MACHINE) | {"registry_cache": True, "registry_mirrors": ["https://mirror.example"]})
    written = files(machine)
    for name in ("daemon.json", "daemon-before-24.json"):
        configuration = json.loads(written[f"/etc/docker/{name}"]["content"])
        assert configuration["registry-mirrors"] == ["http://169.254.171.1:5000", "https://mirror.example"]
    unit = written["/etc/systemd/system/registry-cache-address.service"]["content"]
    assert "Before=docker.service" in unit
    assert "ip address replace 169.254.171.1/32 dev lo" in unit
    assert ["systemctl", "enable", "--now", "registry-cache-address.service"] in cloud_config(machine)["runcmd"]


def test_the_cache_listens_on_that_address_alone() -> None:
    configuration = yaml.safe_load(registry_cache("https://registry-1.docker.io"))
    assert configuration["http"] == {"addr": "169.254.171.1:5000"}
    assert configuration["proxy"] == {"remoteurl": "https://registry-1.docker.io"}
    assert configuration["storage"]["delete"] == {"enabled": True}
    login = yaml.safe_load(registry_cache("https://registry-1.docker.io", "me", "token"))["proxy"]
    assert (login["username"], login["password"]) == ("me", "token")


def test_programs_find_the_proxy_in_either_spelling() -> None:
    assert proxy_environment(None) == {}
    assert proxy_environment(Proxy("http://proxy.example:3128", None, [".example.com", "10.0.0.0/8"])) == {
        "http_proxy": "http://proxy.example:3128",
        "HTTP_PROXY": "http://proxy.example:3128",
        "no_proxy": "localhost,127.0.0.1,docker,.example.com,10.0.0.0/8",
        "NO_PROXY": "localhost,127.0.0.1,docker,.example.com,10.0.0.0/8",
    }


def test_a_cache_on_the_machine_is_reached_without_the_proxy() -> None:
    proxy = Proxy("http://proxy.example:3128", None, [".example.com"])
    machine = CloudInit(**vars(MACHINE) | {"proxy": proxy, "registry_cache": True})
    direct = "no_proxy=localhost,127.0.0.1,docker,169.254.171.1,.example.com"
    assert direct in files(machine)["/etc/systemd/system/docker.service.d/20-proxy.conf"]["content"]
    mirrored = CloudInit(**vars(MACHINE) | {"proxy": proxy, "registry_mirrors": ["https://mirror.example"]})
    assert "169.254.171.1" not in files(mirrored)["/etc/systemd/system/docker.service.d/20-proxy.conf"]["content"]


def test_the_machines_engine_and_packages_go_through_the_proxy() -> None:
    assert "apt" not in cloud_config()
    machine = CloudInit(**vars(MACHINE) | {"proxy": Proxy("http://proxy.example:3128", "http://proxy.example:3129")})
    assert cloud_config(machine)["apt"] == {
        "http_proxy": "http://proxy.example:3128",
        "https_proxy": "http://proxy.example:3129",
    }
    assert files(machine)["/etc/systemd/system/docker.service.d/20-proxy.conf"]["content"] == dedent("""\
        [Service]
        Environment="http_proxy=http://proxy.example:3128"
        Environment="HTTP_PROXY=http://proxy.example:3128"
        Environment="https_proxy=http://proxy.example:3129"
        Environment="HTTPS_PROXY=http://proxy.example:3129"
        Environment="no_proxy=localhost,127.0.0.1,docker"
        Environment="NO_PROXY=localhost,127.0.0.1,docker"
    """)


def test_an_image_with_docker_installs_nothing() -> None:
    configuration = cloud_config(CloudInit(**vars(MACHINE) | {"install_docker": False}))
    assert "packages" not in configuration
    assert "package_update" not in configuration


def test_the_operator_may_use_docker() -> None:
    configuration = cloud_config(CloudInit(**vars(MACHINE) | {"user": "ubuntu"}))
    assert configuration["users"] == ["default", {"name": "ubuntu", "groups": ["docker"]}]
    assert configuration["groups"] == ["docker"]


@pytest.mark.parametrize("given", ["PRIVATE\nKEY", "PRIVATE\nKEY\n"])
def test_the_host_key_ends_with_a_newline(given: str) -> None:
    # Without it sshd does not read the key.
    keys = cloud_config(CloudInit(**vars(MACHINE) | {"host_key_private": given}))["ssh_keys"]
    assert keys == {"ed25519_private": "PRIVATE\nKEY\n", "ed25519_public": "ssh-ed25519 AAAA"}


def test_containers_are_kept_from_the_metadata_service() -> None:
    unit = files()["/etc/systemd/system/block-metadata.service"]["content"]
    assert "-t raw -I PREROUTING -d 169.254.169.254 -j DROP" in unit
    assert ["systemctl", "enable", "--now", "block-metadata.service"] in cloud_config()["runcmd"]


IPV6 = CloudInit(**vars(MACHINE) | {"ipv6": True, "metrics": True})


def test_so_they_are_over_ipv6() -> None:
    unit = files(IPV6)["/etc/systemd/system/block-metadata.service"]["content"]
    assert "\nExecStart=/bin/sh -c 'ip6tables -w -t raw -C PREROUTING -d fe80::a9fe:a9fe -j DROP \\\n" in unit
    assert "iptables -w -t raw -I PREROUTING -d 169.254.169.254 -j DROP" in unit
    assert "ip6tables" in files(IPV6)["/etc/systemd/system/runner-metrics.socket"]["content"]


def test_old_and_new_engines_of_a_machine_get_ipv6() -> None:
    written = files(IPV6)
    for name in ("daemon.json", "daemon-before-24.json"):
        assert json.loads(written[f"/etc/docker/{name}"]["content"])["ipv6"] is True


def test_without_ipv6_nothing_tells_of_it() -> None:
    plain = user_data(CloudInit(**vars(IPV6) | {"ipv6": False}))
    assert not re.search("ipv6|ip6tables|fe80", plain)


@pytest.mark.parametrize(("before", "after"), [("1", "2"), ("0", "0"), ("2", "2")])
def test_a_machine_that_forwards_keeps_its_own_ipv6_routes(tmp_path: Path, before: str, after: str) -> None:
    interfaces = {"eth0": True, "docker0": False}
    for name, is_device in interfaces.items():
        (tmp_path / "class" / name / ("device" if is_device else "bridge")).mkdir(parents=True)
        (tmp_path / "conf" / name).mkdir(parents=True)
        (tmp_path / "conf" / name / "accept_ra").write_text(f"{before}\n")
    # An interface without IPv6.
    (tmp_path / "class" / "eth1" / "device").mkdir(parents=True)
    script = files(IPV6)["/usr/local/sbin/keep-ipv6-routes"]["content"]
    script = script.replace("/sys/class/net", str(tmp_path / "class"))
    script = script.replace("/proc/sys/net/ipv6/conf", str(tmp_path / "conf"))
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    settings = {name: (tmp_path / "conf" / name / "accept_ra").read_text().strip() for name in interfaces}
    # A container must not tell the machine its routes.
    assert settings == {"eth0": after, "docker0": before}


def test_the_machine_prunes_on_a_timer() -> None:
    written = files()
    assert "until=168h" in written[PRUNE_SCRIPT]["content"]
    assert ">= 20 {" in written[PRUNE_SCRIPT]["content"]
    assert written["/etc/systemd/system/prune-docker.service"]["content"] == PRUNE_SERVICE
    assert written["/etc/systemd/system/prune-docker.timer"]["content"] == PRUNE_TIMER
    # The script keeps its finds in the folder that systemd makes for it.
    assert "StateDirectory=" in PRUNE_SERVICE
    assert cloud_config()["runcmd"][-1] == ["systemctl", "enable", "--now", "prune-docker.timer"]


def test_a_machine_may_keep_everything() -> None:
    machine = CloudInit(**vars(MACHINE) | {"prune": None})
    assert "prune" not in user_data(machine)


UPDATED = CloudInit(**vars(MACHINE) | {"updates": Updates("02:00-05:00", 2)})


def test_updates_are_unattended_but_the_engines_wait_for_the_window() -> None:
    written, configuration = files(UPDATED), cloud_config(UPDATED)
    apt = written["/etc/apt/apt.conf.d/52gitlab-runners"]["content"]
    assert 'APT::Periodic::Unattended-Upgrade "1";' in apt
    assert 'Package-Blacklist { "docker.io$"; "docker-cli$"; "containerd$"; "runc$"; };' in apt
    timer = written["/etc/systemd/system/update-engine-and-restart.timer"]["content"]
    assert "\nOnCalendar=*-*-* 03:51:00 UTC\n" in timer
    assert written[UPDATE_SCRIPT]["permissions"] == "0755"
    assert configuration["packages"] == ["docker.io", "unattended-upgrades"]
    assert ["systemctl", "enable", "--now", "update-engine-and-restart.timer"] in configuration["runcmd"]


def test_an_image_with_docker_is_updated_too() -> None:
    configuration = cloud_config(CloudInit(**vars(UPDATED) | {"install_docker": False}))
    assert configuration["package_update"] is True
    assert configuration["packages"] == ["unattended-upgrades"]


def test_a_machine_is_not_updated_unless_the_stack_says_so() -> None:
    assert "upgrade" not in user_data(MACHINE)


@pytest.mark.parametrize(
    ("window", "first", "second"),
    [("02:00-05:00", "02:00", "03:51"), ("23:30-00:30", "23:30", "00:07"), ("00:00-00:01", "00:00", "00:00")],
)
def test_machines_begin_within_the_window(window: str, first: str, second: str) -> None:
    assert [begins_at(Updates(window, number)) for number in (1, 2)] == [first, second]


def test_however_many_machines_there_are_they_begin_apart() -> None:
    minutes = [
        60 * int(time[:2]) + int(time[3:]) for time in (begins_at(Updates("00:00-23:59", n)) for n in range(1, 13))
    ]
    for count in range(2, 13):
        begun = sorted(minutes[:count])
        # Twelve of them would be two hours apart at best.
        assert min(later - earlier for earlier, later in itertools.pairwise(begun)) * count >= 24 * 60 * 0.38


METRICS = CloudInit(**vars(MACHINE) | {"metrics": True})


def test_one_port_of_the_machine_serves_all_metrics_but_not_to_jobs() -> None:
    written = files(METRICS)
    socket = written["/etc/systemd/system/runner-metrics.socket"]["content"]
    assert "\nListenStream=9252\nAccept=yes\n" in socket
    for bridge in ("docker0", "br-+"):
        rule = f"PREROUTING -i {bridge} -p tcp --dport 9252 -m addrtype --dst-type LOCAL -j DROP"
        assert f"iptables -w -t raw -C {rule} || iptables -w -t raw -I {rule}" in socket
    assert ["systemctl", "enable", "--now", "runner-metrics.socket"] in cloud_config(METRICS)["runcmd"]


def test_the_node_exporter_is_reached_through_that_port_alone() -> None:
    assert cloud_config(METRICS)["packages"] == ["docker.io", "prometheus-node-exporter"]
    drop_in = files(METRICS)["/etc/systemd/system/prometheus-node-exporter.service.d/10-listen.conf"]["content"]
    assert "--web.listen-address=127.0.0.1:9100" in drop_in


def test_an_image_with_docker_brings_its_node_exporter() -> None:
    assert "packages" not in cloud_config(CloudInit(**vars(METRICS) | {"install_docker": False}))


def test_targets_are_in_the_form_of_file_sd() -> None:
    assert prometheus_targets("dev", {"dev-1": "2001:db8::5"}, ["app"]) == [
        {"targets": ["[2001:db8::5]:9252"], "labels": {"stack": "dev", "instance": "dev-1"}},
        {
            "targets": ["[2001:db8::5]:9252"],
            "labels": {
                "stack": "dev",
                "instance": "dev-1",
                "gitlab_runner": "app",
                "__metrics_path__": "/metrics/app",
            },
        },
    ]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "502 Bad Gateway"),
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("GET /metrics/$(id) HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("GET /metrics/app/../../debug/pprof HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("GET /debug/jobs/list HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\nbody", "405 Method Not Allowed"),
        ("GET /metrics/app HTTP/1.1\r\n\r\n", "502 Bad Gateway"),
    ],
)
def test_the_metrics_port_gives_out_metrics_and_nothing_else(tmp_path: Path, request_: str, status: str) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\n")
    (tmp_path / "docker").chmod(0o755)
    # No node exporter here, and no manager: whatever answers on this machine's port is not asked.
    script = tmp_path / "serve-metrics"
    script.write_text(files(METRICS)[METRICS_SCRIPT]["content"].replace("/dev/tcp/", "/dev/null/"))
    path = f"{tmp_path}:/usr/bin:/bin"
    answer = subprocess.run(
        ["bash", script], input=request_.encode(), env={"PATH": path}, capture_output=True, check=True
    ).stdout.decode()
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.0 {status}\r\n")
    assert f"Content-Length: {len(body)}" in head


def test_scripts_are_executable_and_valid_shell(tmp_path: Path) -> None:
    everything = CloudInit(**vars(METRICS) | {"updates": Updates("02:00-05:00", 1), "ipv6": True})
    scripts = [file for file in files(everything).values() if file["content"].startswith("#!/bin/")]
    assert len(scripts) == 6
    for script in scripts:
        assert script["permissions"] == "0755"
        path = tmp_path / "script"
        path.write_text(script["content"])
        shell = script["content"].splitlines()[0].removeprefix("#!")
        subprocess.run([shell, "-n", path], check=True)


@pytest.mark.parametrize(("mtu", "status"), [(1500, 0), (1450, 0), (1449, 1)])
def test_the_machine_checks_that_its_interface_carries_the_mtu(tmp_path: Path, mtu: int, status: int) -> None:
    # The script looks at the interface of the default route: give it one.
    (tmp_path / "ip").write_text("#!/bin/sh\necho 'default via 192.0.2.1 dev test0 proto static'\n")
    (tmp_path / "cat").write_text(f'#!/bin/sh\n[ "$1" = /sys/class/net/test0/mtu ] && echo {mtu}\n')
    for name in ("ip", "cat"):
        (tmp_path / name).chmod(0o755)
    script = tmp_path / CHECK_MTU
    script.write_text(files()[f"/usr/local/bin/{CHECK_MTU}"]["content"])
    result = subprocess.run(
        ["sh", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == status
    assert bool(result.stderr) == bool(status)
    if status:
        assert "interface test0 has MTU 1449, but Docker was given 1450" in result.stderr


def test_rendering_is_repeatable() -> None:
    assert user_data(MACHINE) == user_data(MACHINE)
