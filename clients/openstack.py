"""Look-ups in OpenStack: names to ids, a network's MTU, and what to say when a name is wrong.

The connection is made from the openstack provider's own configuration (`openstack:cloud`, `openstack:authUrl`, …) and
from clouds.yaml and OS_* variables, so that program and provider always speak to the same cloud.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import keystoneauth1.exceptions
import openstack
import openstack.exceptions
from openstack.connection import Connection

from clients import ClientError
from clients.origin import keep_credentials
from clients.provider_values import flag
from clients.text import one_line

# The provider's configuration keys, and what openstacksdk calls them inside `auth`.
_AUTH = {
    "authUrl": "auth_url",
    "userName": "username",
    "userId": "user_id",
    "password": "password",
    "token": "token",
    "tenantName": "project_name",
    "tenantId": "project_id",
    "domainName": "domain_name",
    "domainId": "domain_id",
    "userDomainName": "user_domain_name",
    "userDomainId": "user_domain_id",
    "projectDomainName": "project_domain_name",
    "projectDomainId": "project_domain_id",
    "defaultDomain": "default_domain",
    "applicationCredentialId": "application_credential_id",
    "applicationCredentialName": "application_credential_name",
    "applicationCredentialSecret": "application_credential_secret",
}
_CONNECTION = {"cloud": "cloud", "region": "region_name", "cacertFile": "cacert", "cert": "cert", "key": "key"}
CONFIGURATION = (*_AUTH, *_CONNECTION, "insecure")
"""Keys of the provider's configuration that `connect` takes."""
PROJECT_METADATA = "pulumi-project"
STACK_METADATA = "pulumi-stack"
"""Keys of the metadata that name the project and the stack of a machine and its volume."""
_TIMEOUT_SECONDS = 60
UNFINISHED = frozenset({"BUILD", "ERROR"})
"""Status of a server that is being made, or that could not be made (Compute API, "Server status")."""


@dataclass(frozen=True)
class Network:
    """A Neutron network: its id and its MTU in bytes."""

    id: str
    mtu: int


@dataclass(frozen=True)
class Server:
    """A Nova server: whether it is past its creation, its flavor's name or id, its image's id, zone and metadata.

    `image` is None for one that boots from a volume.
    """

    id: str
    name: str
    finished: bool
    flavor: str
    image: str | None
    zone: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Flavor:
    """A flavor: its processors and its memory in MiB."""

    id: str
    name: str
    vcpus: int
    ram: int


@dataclass(frozen=True)
class Volume:
    """A Cinder volume of a stack: its size in GiB, whether a server has it, and whether it could not be made."""

    name: str
    size: int
    attached: bool
    failed: bool


@dataclass(frozen=True)
class Endpoint:
    """Where an S3 API is: host and perhaps port, and whether by HTTP instead of HTTPS."""

    server: str
    insecure: bool


@dataclass(frozen=True)
class CloudAccess:
    """Where a cloud is for others than the program: Keystone's URL, region, interface, the API's CA in PEM, and the
    paths of the services' endpoints."""

    auth_url: str
    region: str | None
    interface: str
    compute_path: str
    image_path: str
    insecure: bool = False
    ca: str | None = None


def connect(config: Mapping[str, str]) -> Connection:
    """Connects as the openstack provider would.

    `config` holds the provider's configuration without its namespace; what is absent comes from clouds.yaml and OS_*
    variables. Raises ClientError.
    """
    options: dict[str, Any] = {ours: config[key] for key, ours in _CONNECTION.items() if key in config}
    if auth := {ours: config[key] for key, ours in _AUTH.items() if key in config}:
        options["auth"] = auth
    if "application_credential_secret" in auth:
        options["auth_type"] = "v3applicationcredential"
    elif "token" in auth:
        options["auth_type"] = "v3token"
    if flag("openstack:insecure", config.get("insecure", "false")):
        options["verify"] = False
    with explained():
        connection = openstack.connect(api_timeout=_TIMEOUT_SECONDS, **options)
        # The first request goes to auth_url, the others to where Keystone says that the services are.
        keep_credentials(connection.session.session, "set the cloud's auth_url, or its endpoint, to it")
        try:
            connection.session.get_token()
        except Exception as error:
            # keystoneauth tells a missing user name or password by an exception without a type of its own.
            if type(error) is not Exception:
                raise
            raise _no_credentials(error) from error
        return connection


@contextmanager
def explained() -> Iterator[None]:
    """Turns what goes wrong between us and OpenStack into a ClientError of one line."""
    try:
        yield
    except (openstack.exceptions.ConfigException, keystoneauth1.exceptions.MissingRequiredOptions) as error:
        raise _no_credentials(error) from error
    except (keystoneauth1.exceptions.Unauthorized, openstack.exceptions.ForbiddenException) as error:
        raise ClientError(f"OpenStack refuses the credentials: {_line(error)}") from error
    except (keystoneauth1.exceptions.ConnectFailure, keystoneauth1.exceptions.DiscoveryFailure) as error:
        raise ClientError(f"OpenStack cannot be reached: {_line(error)}") from error
    except (keystoneauth1.exceptions.ClientException, openstack.exceptions.SDKException) as error:
        raise ClientError(f"OpenStack: {_line(error)}") from error


def _no_credentials(error: Exception) -> ClientError:
    return ClientError(
        f"OpenStack: no usable credentials ({_line(error)}); set openstack:cloud or OS_CLOUD to a cloud of your "
        "clouds.yaml, or an application credential"
    )


class Catalogue:
    """Names of one cloud; connects at the first look-up. Every method may raise ClientError."""

    def __init__(self, connection: Callable[[], Connection]) -> None:
        self._connect = connection
        self._networks: dict[str, Network] = {}
        self._images: dict[str, str] = {}
        self._servers: dict[str, list[Server]] = {}
        self._volumes: dict[str, list[Volume]] = {}

    @cached_property
    def connection(self) -> Connection:
        """The connection, made when it is first needed."""
        return self._connect()

    @property
    def is_connected(self) -> bool:
        """Whether a look-up has needed the cloud."""
        return "connection" in self.__dict__

    def servers(self, prefix: str) -> list[Server]:
        """The servers whose names start with `prefix`; of two with one name the one that is not finished is last."""
        if prefix not in self._servers:
            with explained():
                found = list(self.connection.compute.servers(name=f"^{re.escape(prefix)}"))
            servers = [
                Server(
                    server.id,
                    server.name,
                    server.status not in UNFINISHED,
                    str(server.flavor.id),
                    server.image.id if server.image else None,
                    server.availability_zone or "",
                    server.metadata or {},
                )
                for server in found
            ]
            self._servers[prefix] = sorted(servers, key=lambda server: not server.finished)
        return self._servers[prefix]

    def volumes(self, stack: str) -> list[Volume]:
        """The volumes made for a stack's machines, which carry its name in their metadata."""
        if stack not in self._volumes:
            with explained():
                self._need_block_storage()
                found = list(self.connection.block_storage.volumes())
            self._volumes[stack] = [
                Volume(volume.name, volume.size, bool(volume.attachments), volume.status == "error")
                for volume in found
                if (volume.metadata or {}).get(STACK_METADATA) == stack
            ]
        return self._volumes[stack]

    def volume_type(self, name: str) -> str:
        """Id of a volume type given by name or id."""
        with explained():
            self._need_block_storage()
            known = list(self.connection.block_storage.types())
        return _the_one("volume type", name, [kind for kind in known if name in (kind.name, kind.id)], known)

    def object_store(self) -> Endpoint:
        """The host of the cloud's object store, where Swift and Ceph have their S3 API too."""
        with explained():
            found = self.connection.endpoint_for("object-store")
        if found is None:
            raise ClientError(
                "cache.kind: openstack: this cloud has no object store (Swift) in its catalogue; "
                "name a bucket with kind: s3"
            )
        url = urlsplit(found)
        return Endpoint(url.netloc, url.scheme == "http")

    def access(self) -> CloudAccess:
        """How others may reach the cloud that the program speaks to."""
        with explained():
            cloud = self.connection
            given = cloud.config.config
            paths = [urlsplit(str(cloud.endpoint_for(service))).path for service in ("compute", "image")]
        ca = given.get("cacert")
        return CloudAccess(
            auth_url=str(given["auth"]["auth_url"]),
            region=given.get("region_name") or None,
            interface=str(given.get("interface") or "public"),
            compute_path=paths[0],
            image_path=paths[1],
            insecure=not given.get("verify", True),
            ca=_text_of(str(ca)) if ca else None,
        )

    def _need_block_storage(self) -> None:
        if self.connection.endpoint_for("block-storage") is None:
            raise ClientError("host.dockerVolume: this cloud has no block storage (Cinder) in its catalogue")

    @cached_property
    def _compute_zones(self) -> list[Any]:
        with explained():
            return list(self.connection.compute.availability_zones())

    @cached_property
    def _volume_zones(self) -> list[Any]:
        with explained():
            self._need_block_storage()
            # By its type it may be of version 2, which lists none.
            cinder: Any = self.connection.block_storage
            return list(cinder.availability_zones())

    def compute_zone(self, name: str) -> str:
        """Name of a zone that takes servers; after a colon, an administrator may name a hypervisor."""
        return _zone("availability zone", name.partition(":")[0], self._compute_zones)

    def volume_zone(self, name: str) -> str:
        """Name of a zone that takes volumes."""
        return _zone("availability zone of volumes", name, self._volume_zones)

    @cached_property
    def _flavors(self) -> list[Flavor]:
        with explained():
            found = list(self.connection.compute.flavors())
        return [Flavor(flavor.id, flavor.name, flavor.vcpus, flavor.ram) for flavor in found]

    def flavor(self, id_: str) -> Flavor | None:
        """The flavor with that id; None for one that the cloud does not list."""
        return next((flavor for flavor in self._flavors if flavor.id == id_), None)

    def flavor_id(self, name: str) -> str:
        """Id of a flavor given by name or id."""
        if name == _uuid(name):
            return name
        flavors = self._flavors
        # A flavor's id may be any text.
        found = [flavor for flavor in flavors if name in (flavor.name, flavor.id)]
        found = found or [flavor for flavor in flavors if flavor.id == _uuid(name)]
        return _the_one("flavor", name, found, flavors)

    def image_id(self, name: str) -> str:
        """Id of an active image given by name or id."""
        if (id_ := _uuid(name)) is not None:
            return id_
        if name not in self._images:
            with explained():
                found = list(self.connection.image.images(name=name, status="active"))
                known = found or list(self.connection.image.images(status="active"))
            self._images[name] = _the_one("image", name, found, known)
        return self._images[name]

    def network(self, name: str) -> Network:
        """A network given by name or id."""
        if name not in self._networks:
            with explained():
                id_ = _uuid(name)
                asked = {"name": name} if id_ is None else {"id": id_}
                found = list(self.connection.network.networks(**asked))
                known = found or list(self.connection.network.networks())
            chosen = _the_one("network", name, found, known)
            self._networks[name] = Network(chosen, next(int(network.mtu) for network in found if network.id == chosen))
        return self._networks[name]

    def network_id(self, name: str) -> str:
        """Id of a network given by name or id; an id is taken as it is, without a look-up."""
        return _uuid(name) or self.network(name).id

    def key_pair(self, name: str) -> str:
        """Name of a key pair that exists."""
        with explained():
            known = list(self.connection.compute.keypairs())
        _the_one("key pair", name, [key for key in known if key.name == name], known)
        return name


def docker_mtu(wanted: int | str, networks: Iterable[str], catalogue: Catalogue) -> int:
    """MTU in bytes for Docker on machines attached to `networks`: the smallest of theirs for "auto", else `wanted`.

    A number needs no look-up where the networks are given by id; where they are looked up it must fit.
    Raises ClientError.
    """
    names = list(networks)
    if wanted == "auto":
        return min(catalogue.network(name).mtu for name in names)
    mtu = int(wanted)
    for name in names:
        if _uuid(name) is None and mtu > catalogue.network(name).mtu:
            raise ClientError(
                f"host.mtu: {mtu}: is above the MTU of network {name} ({catalogue.network(name).mtu}); "
                "lower it, or leave it at auto"
            )
    return mtu


def _zone(kind: str, name: str, zones: list[Any]) -> str:
    usable = [zone for zone in zones if zone.state["available"]]
    _the_one(kind, name, [zone for zone in usable if zone.name == name], usable)
    return name


def _the_one(kind: str, name: str, found: list[Any], known: list[Any]) -> str:
    if len(found) == 1:
        return str(found[0].id)
    if found:
        ids = ", ".join(sorted(str(thing.id) for thing in found))
        raise ClientError(f"{kind} {name}: the name is ambiguous; use one of the ids {ids}")
    names = sorted({str(thing.name) for thing in known})
    close = get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names) or 'none'}"
    raise ClientError(f"{kind} {name}: does not exist in this cloud; {hint}")


def _uuid(text: str) -> str | None:
    """A UUID as services write it, in lower case and with its hyphens; None for any other text."""
    try:
        return str(UUID(text))
    except ValueError:
        return None


def _text_of(file: str) -> str:
    try:
        return Path(file).expanduser().read_text()
    except OSError as error:
        raise ClientError(f"the cloud's cacert {file} cannot be read: {error.strerror}") from error


def _line(error: Exception) -> str:
    return one_line(error)
