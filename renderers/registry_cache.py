"""A pull-through cache of Docker Hub on a machine: where it listens, and its configuration."""

from textwrap import dedent
from typing import Any

import yaml

# A link-local address (RFC 3927) of the machine's own loopback interface: containers reach it through their bridge
# whatever networks there are, and nobody does from beyond the machine.
REGISTRY_CACHE_HOST = "169.254.171.1"
_PORT = 5000
REGISTRY_CACHE_URL = f"http://{REGISTRY_CACHE_HOST}:{_PORT}"
REGISTRY_CACHE_FOLDER = "/var/lib/registry"
REGISTRY_CACHE_UNIT = "registry-cache-address.service"
REGISTRY_CACHE_ADDRESS = dedent(f"""\
    [Unit]
    Description=Address of the cache for images
    Before=docker.service

    [Service]
    Type=oneshot
    RemainAfterExit=yes
    ExecStart=/bin/sh -c 'ip address replace {REGISTRY_CACHE_HOST}/32 dev lo'

    [Install]
    WantedBy=multi-user.target
""")


def registry_cache(upstream: str, user: str | None = None, password: str | None = None) -> str:
    """Configuration of CNCF Distribution, 2 or 3, as in its "Configuring a registry".

    `upstream` is the URL of what is cached, Docker Hub's for engines; user and password log in there.
    """
    proxy: dict[str, Any] = {"remoteurl": upstream}
    if user is not None:
        proxy |= {"username": user, "password": password}
    configuration = {
        "version": 0.1,
        "log": {"level": "warn"},
        # What nobody asked for in a week goes, where it may be deleted ("Registry as a pull through cache").
        "storage": {"filesystem": {"rootdirectory": REGISTRY_CACHE_FOLDER}, "delete": {"enabled": True}},
        "http": {"addr": f"{REGISTRY_CACHE_HOST}:{_PORT}"},
        "proxy": proxy,
    }
    return yaml.safe_dump(configuration, sort_keys=False)
