"""Configuration of dockerd: on the host, and inside a Docker-in-Docker service."""

import json
from collections.abc import Sequence
from typing import Any

# Unique local addresses (RFC 4193) behind the machine's own, which translates them: nobody else sees them, so they may
# be the same on every machine. A service in a container of the machine must have others than the machine.
_IPV6_PREFIX = "fd5a:fb2:692d"
_MACHINE, _SERVICE = 0, 1
# One network per job: the built-in pools end after about thirty.
_IPV4_POOL = {"base": "172.16.0.0/12", "size": 24}


def daemon_json(mtu: int, mirrors: Sequence[str] = (), *, network_options: bool = True, ipv6: bool = False) -> str:
    """daemon.json of a host.

    `mtu` in bytes; `mirrors` of Docker Hub; `ipv6` gives containers IPv6 addresses. `mtu` of dockerd is only about the
    default bridge; `default-network-opts` is about every bridge network made later, and is unknown to engines before
    24.0, which refuse to start with it: for those `network_options` is False. Keys as in the dockerd reference, "Daemon
    configuration file".
    """
    configuration = _mtu(mtu, network_options=network_options) | _mirrors(mirrors)
    configuration |= {
        # Containers keep running while dockerd is restarted or updated.
        "live-restore": True,
        "log-driver": "json-file",
        "log-opts": {"max-size": "10m", "max-file": "3"},
        "default-address-pools": [_IPV4_POOL],
    }
    return _text(configuration | (_ipv6(_MACHINE) if ipv6 else {}))


def dind_daemon_json(mtu: int | None, mirrors: Sequence[str] = (), *, ipv6: bool = False) -> str:
    """daemon.json of a Docker-in-Docker service, which inherits nothing from the host's.

    `mtu` in bytes, or None for the service's own; `mirrors` of Docker Hub; `ipv6` as in `daemon_json`. With an MTU the
    service's engine must be 24.0 or newer.
    """
    configuration = (_mtu(mtu) if mtu is not None else {}) | _mirrors(mirrors)
    return _text(configuration | (_ipv6(_SERVICE) if ipv6 else {}))


def _mtu(mtu: int, *, network_options: bool = True) -> dict[str, Any]:
    configuration: dict[str, Any] = {"mtu": mtu}
    if network_options:
        configuration["default-network-opts"] = {"bridge": {"com.docker.network.driver.mtu": str(mtu)}}
    return configuration


def _ipv6(place: int) -> dict[str, Any]:
    """IPv6 on the default bridge, and a network's worth of addresses for each other one that asks for it."""
    return {
        "ipv6": True,
        "fixed-cidr-v6": f"{_IPV6_PREFIX}:{2 * place}::/64",
        # Translates addresses and keeps networks apart, as for IPv4. Engines before 27.0 have it switched off, and call
        # it experimental.
        "ip6tables": True,
        "experimental": True,
        # Engines before 27.0 have no pool of their own, and make the same network again and again of one with /64.
        "default-address-pools": [_IPV4_POOL, {"base": f"{_IPV6_PREFIX}:{2 * place + 1}::/68", "size": 80}],
    }


def _mirrors(mirrors: Sequence[str]) -> dict[str, Any]:
    return {"registry-mirrors": list(mirrors)} if mirrors else {}


def _text(configuration: dict[str, Any]) -> str:
    return json.dumps(configuration, indent=2) + "\n"
