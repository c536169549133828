"""Everything that a stack's names stand for, looked up before the first resource is declared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clients import ClientError
from clients.gitlab import GitLab
from clients.openstack import Catalogue, CloudAccess, Endpoint, docker_mtu
from settings import MINIMUM_MTU, ObjectStoreCache, OpenStackHost, S3Cache, Settings, hosts_of


@dataclass(frozen=True)
class Machine:
    """What a virtual machine is made of: OpenStack's ids, and Docker's MTU in bytes."""

    flavor_id: str
    image_id: str
    network_ids: list[str]
    mtu: int


@dataclass(frozen=True)
class Lookups:
    """`machines` are by name, none for a Docker Engine that exists; `runner_pages` are URLs by runner, None where
    unknown.

    `unfinished_machines` are names of those that Nova does not have, or has in an error or still in the making;
    `broken_volumes` are names of machines for which Cinder has a volume that it could not make. `cache_endpoint` is the
    S3 API of the stack's cache. `workers` are what those of runners with `executor: autoscaler` are made of, by runner,
    and `cloud` is where their managers reach the cloud.
    """

    machines: Mapping[str, Machine]
    runner_pages: dict[str, str | None]
    unfinished_machines: frozenset[str] = frozenset()
    broken_volumes: frozenset[str] = frozenset()
    cache_endpoint: Endpoint | None = None
    workers: Mapping[str, Machine] = field(default_factory=dict)
    cloud: CloudAccess | None = None


def look_up(stack: str, settings: Settings, catalogue: Catalogue, gitlab: GitLab | None, *, preview: bool) -> Lookups:
    """Looks up what `settings` name; `gitlab` is None when no runner is to be registered. Raises ClientError.

    A preview that needs nothing else from the cloud does not ask it for the machines, and takes them for finished.
    """
    host = settings.host
    pages: dict[str, str | None] = {}
    for name, runner in settings.runners.items():
        if gitlab is not None and runner.scope is not None:
            pages[name] = gitlab.runners_url(runner.scope, runner.project or runner.group)
    endpoint = cache_endpoint(settings.cache, catalogue.object_store) if settings.cache is not None else None
    if not isinstance(host, OpenStackHost):
        return Lookups({}, pages, cache_endpoint=endpoint)
    hosts = hosts_of(stack, host)
    machines = _machines(host, hosts, catalogue)
    broken = _check_volumes(stack, hosts, catalogue) if host.docker_volume is not None else set()
    unfinished: set[str] = set()
    if catalogue.is_connected or not preview:
        servers = {server.name: server for server in catalogue.servers(stack)}
        unfinished = {name for name in hosts if name not in servers or not servers[name].finished}
    workers = _workers(settings, host, catalogue)
    cloud = catalogue.access() if workers else None
    return Lookups(machines, pages, frozenset(unfinished), frozenset(broken), endpoint, workers, cloud)


def _workers(settings: Settings, host: OpenStackHost, catalogue: Catalogue) -> dict[str, Machine]:
    found = {}
    for name, runner in settings.runners.items():
        if runner.autoscaler is not None:
            own = runner.autoscaler.model_dump(include={"flavor", "image"}, exclude_none=True)
            found[name] = _machine(host.model_copy(update=own), catalogue)
    return found


def cache_endpoint(cache: S3Cache | ObjectStoreCache, object_store: Callable[[], Endpoint]) -> Endpoint:
    """The S3 API of a cache; `object_store` looks up the cloud's own where the settings do not say."""
    if isinstance(cache, S3Cache):
        return Endpoint(cache.server, cache.insecure)
    if cache.server is not None:
        return Endpoint(cache.server, bool(cache.insecure))
    found = object_store()
    return found if cache.insecure is None else Endpoint(found.server, cache.insecure)


def _check_volumes(stack: str, hosts: Mapping[str, OpenStackHost], catalogue: Catalogue) -> set[str]:
    """Refuses what no volume can become; names of machines with a volume that Cinder could not make."""
    wanted = {name: host.docker_volume for name, host in hosts.items() if host.docker_volume is not None}
    for type_ in sorted({volume.type for volume in wanted.values() if volume.type is not None}):
        catalogue.volume_type(type_)
    for zone in sorted({volume.availability_zone for volume in wanted.values() if volume.availability_zone}):
        catalogue.volume_zone(zone)
    volumes = [volume for volume in catalogue.volumes(stack) if volume.name in wanted]
    for volume in volumes:
        size = wanted[volume.name].size
        if volume.attached and size < volume.size:
            raise ClientError(
                f"host.dockerVolume.size: {size}: volume {volume.name} has {volume.size} GiB, and volumes only "
                "grow; for a smaller one remove dockerVolume, update the stack and set it again"
            )
    return {volume.name for volume in volumes if volume.failed and not volume.attached}


def _machines(host: OpenStackHost, hosts: Mapping[str, OpenStackHost], catalogue: Catalogue) -> dict[str, Machine]:
    if host.floating_ip_pool is not None:
        catalogue.network_id(host.floating_ip_pool)
    if host.key_pair.name is not None:
        catalogue.key_pair(host.key_pair.name)
    for zone in sorted({each.availability_zone for each in hosts.values() if each.availability_zone}):
        catalogue.compute_zone(zone)
    return {name: _machine(each, catalogue) for name, each in hosts.items()}


def _machine(host: OpenStackHost, catalogue: Catalogue) -> Machine:
    networks = [host.network, *host.additional_networks]
    mtu = docker_mtu(host.mtu, networks, catalogue)
    if host.ipv6 and mtu < MINIMUM_MTU:
        raise ClientError(f"host.ipv6: IPv6 needs an MTU of {MINIMUM_MTU} bytes, and the networks have {mtu}")
    return Machine(
        flavor_id=catalogue.flavor_id(host.flavor),
        image_id=catalogue.image_id(host.image),
        network_ids=[catalogue.network_id(network) for network in networks],
        mtu=mtu,
    )
