"""The user_data of hosts and workers, from their settings; and how long it will be, before anything is made."""

from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha512
from textwrap import wrap

from components.proxy import proxy_of
from renderers.cloud_init import CloudInit, user_data
from renderers.docker_volume import DockerVolume
from renderers.prune import Prune
from renderers.updates import Updates
from renderers.user_data import fits, too_long
from settings import OpenStackHost

# What a user_data has of the stack file that may be of any length, and how it would be without.
_ANY_LENGTH: Mapping[str, tuple[str, object]] = {
    "host.caCertificates": ("ca_certificates", ()),
    "host.registryMirrors": ("registry_mirrors", ()),
    "host.proxy": ("proxy", None),
}
# No pattern that could be compressed, as a key has none.
_NOISE = b64encode(b"".join(sha512(bytes([number])).digest() for number in range(5))).decode()
STAND_IN_KEY = (
    "\n".join(
        ["-----BEGIN OPENSSH PRIVATE KEY-----", *wrap(_NOISE[:312], 64), "-----END OPENSSH PRIVATE KEY-----", ""]
    ),
    f"ssh-ed25519 {_NOISE[:68]}",
)
"""As long as a host key."""
_STAND_IN_VOLUME = "00000000-0000-0000-0000-000000000000"


def host_data(host: OpenStackHost, number: int, mtu: int, key: tuple[str, str], volume_id: str | None) -> str:
    """cloud-config of the host with this number; `key` is its SSH host key, private and public, the volume Docker's."""
    return user_data(
        CloudInit(
            user=host.ssh.user,
            mtu=mtu,
            install_docker=host.docker == "distribution",
            host_key_private=key[0],
            host_key_public=key[1],
            ca_certificates=host.ca_certificates,
            registry_mirrors=host.registry_mirrors,
            registry_cache=host.registry_cache is not None,
            proxy=proxy_of(host),
            prune=_prune(host),
            updates=Updates(host.updates.reboot_window, number) if host.updates else None,
            metrics=bool(host.metrics_from),
            docker_volume=DockerVolume(volume_id) if volume_id is not None else None,
            ipv6=host.ipv6,
        )
    )


def worker_data(host: OpenStackHost, mtu: int, files: Mapping[str, str]) -> str:
    """cloud-config of workers of a host's managers; `files` are further ones, by path."""
    return user_data(
        CloudInit(
            user=host.ssh.user,
            mtu=mtu,
            install_docker=host.docker == "distribution",
            # All workers boot with the same text, so none can have a key of its own there.
            host_key_private=None,
            host_key_public=None,
            ca_certificates=host.ca_certificates,
            registry_mirrors=host.registry_mirrors,
            proxy=proxy_of(host),
            prune=_prune(host),
            files=files,
            ipv6=host.ipv6,
        )
    )


def is_compressed(host: OpenStackHost, mtu: int) -> bool:
    """Whether the user_data of hosts has to be compressed. One that fits stays as it is: another replaces machines."""
    return not fits(_measured(host, mtu))


def host_data_mistake(host: OpenStackHost, mtu: int) -> str | None:
    """Why Nova would refuse the user_data of hosts, or None."""
    return _mistake(host, lambda each: _measured(each, mtu), compressed=True)


def worker_data_mistake(
    host: OpenStackHost, mtu: int, files_of: Callable[[OpenStackHost], Mapping[str, str]]
) -> str | None:
    """The same for workers. Whether their plugin hands on what is compressed is not known, so that is not done."""
    return _mistake(host, lambda each: worker_data(each, mtu, files_of(each)), compressed=False)


def _measured(host: OpenStackHost, mtu: int) -> str:
    volume = _STAND_IN_VOLUME if host.docker_volume is not None else None
    return host_data(host, 1, mtu, STAND_IN_KEY, volume)


def _mistake(host: OpenStackHost, text_of: Callable[[OpenStackHost], str], *, compressed: bool) -> str | None:
    without = {
        name: text_of(host.model_copy(update={field: nothing})) for name, (field, nothing) in _ANY_LENGTH.items()
    }
    return too_long(text_of(host), without, compressed=compressed)


def _prune(host: OpenStackHost) -> Prune | None:
    return Prune(host.prune.older_than_hours, host.prune.free_percent) if host.prune else None
