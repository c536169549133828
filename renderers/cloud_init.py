"""user_data of a virtual machine, as cloud-config.

It holds no token and nothing that changes often: a change replaces the machine, and a job that found a way to the
metadata service could read it. The one private thing in it is the machine's own SSH host key: it opens nothing, and it
lets the very first connection be checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any

import yaml

from renderers.daemon_json import daemon_json
from renderers.docker_volume import GROW_TIMER, START_ON_VOLUME, DockerVolume, docker_volume_files
from renderers.metrics import (
    METRICS_SCRIPT,
    METRICS_SERVER,
    METRICS_SOCKET_UNIT,
    NODE_EXPORTER_PACKAGE,
    metrics_units,
)
from renderers.proxy import Proxy, proxy_drop_in, proxy_environment
from renderers.prune import PRUNE_SCRIPT, PRUNE_SERVICE, PRUNE_TIMER, Prune, prune_script
from renderers.registry_cache import REGISTRY_CACHE_ADDRESS, REGISTRY_CACHE_UNIT, REGISTRY_CACHE_URL
from renderers.updates import UPDATE_PROGRAM, UPDATE_SCRIPT, UPDATE_TIMER_UNIT, UPDATES_PACKAGE, Updates, update_files

# Commands that cloud-init puts on the machine's PATH; the readiness check runs them over SSH.
CHECK_MTU = "check-mtu"
# Where Nova's metadata service answers, over IPv6 too (Nova docs, "Metadata service").
_METADATA_ADDRESS = "169.254.169.254"
_METADATA_IPV6_ADDRESS = "fe80::a9fe:a9fe"
_KEEP_ROUTES = "/usr/local/sbin/keep-ipv6-routes"


@dataclass(frozen=True)
class CloudInit:
    """What the user_data of one machine depends on."""

    user: str
    """Login that may use Docker."""
    mtu: int
    """Docker's MTU in bytes."""
    install_docker: bool
    """Whether cloud-init installs docker.io; else the image has Docker."""
    host_key_private: str | None
    """SSH host key (ed25519), OpenSSH private key format; None lets the machine make its own."""
    host_key_public: str | None
    """The same key's public half, one line."""
    ca_certificates: Sequence[str] = ()
    """PEM; the machine trusts them."""
    registry_mirrors: Sequence[str] = ()
    """Mirrors of Docker Hub."""
    registry_cache: bool = False
    """Whether the machine itself has one, which is asked first."""
    proxy: Proxy | None = None
    """None reaches everything directly."""
    prune: Prune | None = None
    """None leaves everything on the disk."""
    updates: Updates | None = None
    """None leaves updates to the image."""
    metrics: bool = False
    """Whether the machine serves metrics; an image with its own Docker brings a node exporter too, or has none."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further files, by path."""
    docker_volume: DockerVolume | None = None
    """None keeps Docker's data on the disk that the machine boots from."""
    ipv6: bool = False
    """Whether containers have IPv6 addresses."""


def user_data(machine: CloudInit) -> str:
    """cloud-config of a machine; keys as in cloud-init's module reference."""
    mtu, ipv6 = machine.mtu, machine.ipv6
    mirrors = [*([REGISTRY_CACHE_URL] if machine.registry_cache else []), *machine.registry_mirrors]
    configuration: dict[str, Any] = {
        "users": ["default", {"name": machine.user, "groups": ["docker"]}],
        "ssh_pwauth": False,
        "ssh_deletekeys": True,
        **_ssh_keys(machine),
        "write_files": [
            _file("/etc/docker/daemon.json", daemon_json(mtu, mirrors, ipv6=ipv6)),
            _file("/etc/docker/daemon-before-24.json", daemon_json(mtu, mirrors, network_options=False, ipv6=ipv6)),
            _file("/usr/local/sbin/choose-docker-configuration", _CHOOSE_DOCKER_CONFIGURATION, "0755"),
            _file("/etc/systemd/system/docker.service.d/10-configuration.conf", _DOCKER_DROP_IN),
            _file("/etc/systemd/system/block-metadata.service", _block_metadata_unit(ipv6)),
            _file("/etc/ssh/sshd_config.d/10-docker-clients.conf", _SSHD),
            _file(f"/usr/local/bin/{CHECK_MTU}", _check_mtu(machine.mtu), "0755"),
            *(_file(path, content) for path, content in machine.files.items()),
        ],
    }
    if machine.install_docker:
        # The user needs the group before the package would make it. Where it exists already, cloud-init would warn.
        configuration = {"groups": ["docker"], **configuration, "package_update": True, "packages": ["docker.io"]}
    configuration["runcmd"] = [
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "--now", "block-metadata.service"],
        # An engine that refused the configuration at its first start gets the one chosen for it.
        ["sh", "-c", "systemctl is-active --quiet docker || systemctl restart docker"],
        [f"/usr/local/bin/{CHECK_MTU}"],
    ]
    if ipv6:
        configuration["write_files"] += [
            _file(_KEEP_ROUTES, _KEEP_IPV6_ROUTES, "0755"),
            _file("/etc/systemd/system/docker.service.d/30-ipv6.conf", _IPV6_DROP_IN),
        ]
    if machine.registry_cache:
        configuration["write_files"].append(_file(f"/etc/systemd/system/{REGISTRY_CACHE_UNIT}", REGISTRY_CACHE_ADDRESS))
        configuration["runcmd"].append(["systemctl", "enable", "--now", REGISTRY_CACHE_UNIT])
    if machine.ca_certificates:
        # Before packages are installed, so before dockerd starts (cloud-init's modules run in that order).
        configuration["ca_certs"] = {"trusted": list(machine.ca_certificates)}
    if machine.proxy is not None:
        # A drop-in, because engines before 23.0 do not know the key proxies of daemon.json.
        drop_in = proxy_drop_in(proxy_environment(machine.proxy, mirrors))
        configuration["write_files"].append(_file("/etc/systemd/system/docker.service.d/20-proxy.conf", drop_in))
        urls = {"http_proxy": machine.proxy.http, "https_proxy": machine.proxy.https}
        configuration["apt"] = {key: url for key, url in urls.items() if url is not None}
    if machine.prune is not None:
        configuration["write_files"] += [
            _file(PRUNE_SCRIPT, prune_script(machine.prune), "0755"),
            _file("/etc/systemd/system/prune-docker.service", PRUNE_SERVICE),
            _file("/etc/systemd/system/prune-docker.timer", PRUNE_TIMER),
        ]
        configuration["runcmd"].append(["systemctl", "enable", "--now", "prune-docker.timer"])
    if machine.updates is not None:
        configuration["write_files"].append(_file(UPDATE_SCRIPT, UPDATE_PROGRAM, "0755"))
        configuration["write_files"] += [_file(path, text) for path, text in update_files(machine.updates).items()]
        configuration["package_update"] = True
        configuration["packages"] = [*configuration.get("packages", []), UPDATES_PACKAGE]
        configuration["runcmd"].append(["systemctl", "enable", "--now", UPDATE_TIMER_UNIT])
    if machine.metrics:
        configuration["write_files"].append(_file(METRICS_SCRIPT, METRICS_SERVER, "0755"))
        configuration["write_files"] += [_file(path, unit) for path, unit in metrics_units(ipv6=ipv6).items()]
        if machine.install_docker:
            configuration["packages"].append(NODE_EXPORTER_PACKAGE)
        configuration["runcmd"].append(["systemctl", "enable", "--now", METRICS_SOCKET_UNIT])
    if machine.docker_volume is not None:
        configuration["write_files"] += [
            _file(path, *content) for path, content in docker_volume_files(machine.docker_volume).items()
        ]
        # Right after the units are known, and before Docker is looked after.
        configuration["runcmd"].insert(1, ["sh", "-c", START_ON_VOLUME])
        configuration["runcmd"].append(["systemctl", "enable", "--now", GROW_TIMER])
    return "#cloud-config\n" + yaml.dump(configuration, Dumper=_Dumper, sort_keys=False, width=1000)


def _ssh_keys(machine: CloudInit) -> dict[str, Any]:
    if machine.host_key_private is None:
        return {}
    private = machine.host_key_private.rstrip("\n") + "\n"
    return {"ssh_keys": {"ed25519_private": private, "ed25519_public": machine.host_key_public}}


class _Dumper(yaml.SafeDumper):
    """Writes files as literal blocks, so that a diff of the user_data shows lines."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _file(path: str, content: str, permissions: str = "0644") -> dict[str, str]:
    return {"path": path, "content": content, "permissions": permissions}


# Engines before 24.0 refuse to start with default-network-opts, and those before 23.0 do not know --validate.
_CHOOSE_DOCKER_CONFIGURATION = dedent("""\
    #!/bin/sh
    cd /etc/docker || exit 1
    dockerd --validate --config-file=daemon.json || cp daemon-before-24.json daemon.json
""")

_DOCKER_DROP_IN = dedent("""\
    [Service]
    ExecStartPre=/usr/local/sbin/choose-docker-configuration
""")

# dockerd makes the kernel forward, and a kernel that forwards ignores the router advertisements by which it has its
# addresses and routes, unless this is 2 (Linux, ip-sysctl). Where something else reads them it is 0.
_KEEP_IPV6_ROUTES = dedent("""\
    #!/bin/sh
    for device in /sys/class/net/*/device; do
      setting=/proc/sys/net/ipv6/conf/$(basename "${device%/device}")/accept_ra
      if [ -e "$setting" ] && [ "$(cat "$setting")" = 1 ]; then echo 2 >"$setting"; fi
    done
""")

_IPV6_DROP_IN = dedent(f"""\
    [Service]
    ExecStartPre=-{_KEEP_ROUTES}
""")


def _block_metadata_unit(ipv6: bool) -> str:
    # The raw table is not dockerd's: its restarts leave the rule alone. Packets from containers pass PREROUTING, the
    # machine's own do not.
    rules = {"iptables": _METADATA_ADDRESS} | ({"ip6tables": _METADATA_IPV6_ADDRESS} if ipv6 else {})
    start = "\n".join(
        f"ExecStart=/bin/sh -c '{command} -w -t raw -C PREROUTING -d {address} -j DROP \\\n"
        f"  || {command} -w -t raw -I PREROUTING -d {address} -j DROP'"
        for command, address in rules.items()
    )
    return _BLOCK_METADATA_UNIT.format(start=start)


_BLOCK_METADATA_UNIT = dedent("""\
    [Unit]
    Description=Keep containers away from the metadata service
    Before=docker.service

    [Service]
    Type=oneshot
    RemainAfterExit=yes
    {start}

    [Install]
    WantedBy=multi-user.target
""")

# Every Docker client is an SSH session of its own, and many start at once.
_SSHD = dedent("""\
    MaxSessions 100
    MaxStartups 100:30:200
""")


def _check_mtu(mtu: int) -> str:
    return dedent(f"""\
        #!/bin/sh
        # Fails when this machine's own interfaces carry less than the MTU that Docker was given.
        needed={mtu}
        interfaces=$(ip -o route show default | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p')
        if [ -z "$interfaces" ]; then
          interfaces=$(for device in /sys/class/net/*/device; do basename "${{device%/device}}"; done)
        fi
        for interface in $interfaces; do
          mtu=$(cat "/sys/class/net/$interface/mtu")
          if [ "$mtu" -lt "$needed" ]; then
            echo "interface $interface has MTU $mtu, but Docker was given $needed: set host.mtu or mend the network" >&2
            exit 1
          fi
        done
    """)
