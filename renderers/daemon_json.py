"""Configuration of dockerd: on the host, and inside a Docker-in-Docker service."""

import json
from collections.abc import Sequence
from typing import Any


def daemon_json(mtu: int, mirrors: Sequence[str] = (), *, network_options: bool = True) -> str:
    """daemon.json of a host.

    `mtu` in bytes; `mirrors` of Docker Hub. `mtu` of dockerd is only about the default bridge; `default-network-opts`
    is about every bridge network made later, and is unknown to engines before 24.0, which refuse to start with it: for
    those `network_options` is False. Keys as in the dockerd reference, "Daemon configuration file".
    """
    configuration = _mtu(mtu, network_options=network_options) | _mirrors(mirrors)
    configuration |= {
        # Containers keep running while dockerd is restarted or updated.
        "live-restore": True,
        "log-driver": "json-file",
        "log-opts": {"max-size": "10m", "max-file": "3"},
        # One network per job: the built-in pools end after about thirty.
        "default-address-pools": [{"base": "172.16.0.0/12", "size": 24}],
    }
    return _text(configuration)


def dind_daemon_json(mtu: int | None, mirrors: Sequence[str] = ()) -> str:
    """daemon.json of a Docker-in-Docker service, which inherits nothing from the host's.

    `mtu` in bytes, or None for the service's own; `mirrors` of Docker Hub. With an MTU the service's engine must be
    24.0 or newer.
    """
    return _text((_mtu(mtu) if mtu is not None else {}) | _mirrors(mirrors))


def _mtu(mtu: int, *, network_options: bool = True) -> dict[str, Any]:
    configuration: dict[str, Any] = {"mtu": mtu}
    if network_options:
        configuration["default-network-opts"] = {"bridge": {"com.docker.network.driver.mtu": str(mtu)}}
    return configuration


def _mirrors(mirrors: Sequence[str]) -> dict[str, Any]:
    return {"registry-mirrors": list(mirrors)} if mirrors else {}


def _text(configuration: dict[str, Any]) -> str:
    return json.dumps(configuration, indent=2) + "\n"
