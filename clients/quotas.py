"""Whether what a stack is about to make fits into the quotas of its project.

What the stack has is taken from the cloud, by the names of its machines: quotas count what is there, known or not.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from openstack.connection import Connection
from openstack.exceptions import HttpException
from openstack.network.v2.floating_ip import FloatingIP
from openstack.network.v2.port import Port

from clients import ClientError
from clients.lookups import Lookups, Machine
from clients.openstack import Catalogue, Server, explained
from settings import OpenStackHost, hosts_of

# How many machines a message names.
_NAMES = 3
_GROUP_MEMBERS = "servers in one server group"
_VOLUME_SIZE = "GiB of volumes"


@dataclass(frozen=True)
class Room:
    """How much a quota allows, and how much of that is left."""

    limit: int
    left: int


def check_quotas(stack: str, host: OpenStackHost, lookups: Lookups, catalogue: Catalogue) -> list[str]:
    """Refuses, with a ClientError, missing machines and larger volumes that do not fit. A line of warning where a
    machine will be replaced and there is no room for the old one and the new one at once.

    That a machine will be replaced is told from its flavor, image and zone alone. Asks for no quota where nothing is to
    be made, and says nothing where the cloud does not tell its quotas.
    """
    hosts = hosts_of(stack, host)
    servers = {server.name: server for server in catalogue.servers(stack)}
    missing = [name for name in hosts if name not in servers]
    replaced = [name for name in hosts if name in servers and _is_other(hosts[name], servers[name], lookups, catalogue)]
    needed = _growth(stack, host, set(hosts) - set(replaced), catalogue)
    if not missing and not replaced and not needed:
        return []
    for name in missing:
        needed += _machine(hosts[name], lookups.machines[name], catalogue)
    if len(missing) == len(hosts):
        needed += _shared(host)
    volumes = host.boot_volume is not None or host.docker_volume is not None
    room = _room(catalogue.connection, len(hosts) - len(missing), volumes=volumes)
    if _short(needed, room):
        # What an interrupted update has left is there already.
        needed -= _made_already(stack, host, missing, catalogue)
    if short := _short(needed, room):
        what = _named(missing) if missing else "larger volumes"
        raise ClientError(
            f"OpenStack quota: no room for {what} ({short}); ask for less by host.count, flavor or volumes, or for a "
            "larger quota"
        )
    for name in replaced:
        needed += _machine(hosts[name], lookups.machines[name], catalogue)
        if hosts[name].keeps_floating_ip:
            needed["floating IPs"] -= 1
    if short := _short(needed, room):
        return [
            f"OpenStack quota: no room for the old and the new {_named(replaced)} at once ({short}), as it takes until "
            "the old one has drained"
        ]
    return []


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return shown if len(names) <= _NAMES else f"{shown} and {len(names) - _NAMES} more"


def _is_other(host: OpenStackHost, server: Server, lookups: Lookups, catalogue: Catalogue) -> bool:
    machine = lookups.machines[server.name]
    flavor = catalogue.flavor(machine.flavor_id)
    zone = (host.availability_zone or "").partition(":")[0]
    return (
        (flavor is not None and server.flavor not in (flavor.id, flavor.name))
        or (server.image is not None and server.image != machine.image_id)
        or zone not in {"", server.zone}
        or not server.finished
    )


def _machine(host: OpenStackHost, machine: Machine, catalogue: Catalogue) -> Counter[str]:
    """What one machine takes of the quotas."""
    flavor = catalogue.flavor(machine.flavor_id)
    sizes = [volume.size for volume in (host.boot_volume, host.docker_volume) if volume is not None]
    return Counter(
        {
            "instances": 1,
            "cores": flavor.vcpus if flavor is not None else 0,
            "MiB of memory": flavor.ram if flavor is not None else 0,
            "ports": len(machine.network_ids),
            "floating IPs": int(host.floating_ip_pool is not None),
            "volumes": len(sizes),
            _VOLUME_SIZE: sum(sizes),
            _GROUP_MEMBERS: int(_has_group(host)),
        }
    )


def _shared(host: OpenStackHost) -> Counter[str]:
    """What the machines of a stack share; see components/host_group.py."""
    rules = 2 + len(host.ssh_from) + len(host.metrics_from)
    return Counter({"security groups": 1, "security group rules": rules, "server groups": int(_has_group(host))})


def _has_group(host: OpenStackHost) -> bool:
    return host.count > 1 and host.anti_affinity != "none"


def _growth(stack: str, host: OpenStackHost, names: Collection[str], catalogue: Catalogue) -> Counter[str]:
    """What volumes of these machines will take when they grow in place."""
    if host.docker_volume is None:
        return Counter()
    sizes = [volume.size for volume in catalogue.volumes(stack) if volume.attached and volume.name in names]
    return +Counter({_VOLUME_SIZE: sum(max(host.docker_volume.size - size, 0) for size in sizes)})


def _room(cloud: Connection, members: int, *, volumes: bool) -> dict[str, Room]:
    """The room in each quota that has a limit and that the cloud tells; a server group has so many members."""
    found: dict[str, Room] = {}
    for read in (_of_nova, _of_neutron, *((_of_cinder,) if volumes else ())):
        with explained():
            try:
                limits = read(cloud)
            except HttpException:
                # Clouds may keep their quotas to themselves; the services still say when one is exceeded.
                continue
        found |= {
            name: Room(limit, limit - used)
            for name, (limit, used) in limits.items()
            if limit is not None and limit >= 0 and used is not None
        }
    if _GROUP_MEMBERS in found:
        # The first machine of a stack is in no group when it was made alone.
        limit = found[_GROUP_MEMBERS].limit
        found[_GROUP_MEMBERS] = Room(limit, limit - max(members - 1, 0))
    return found


_Limits = dict[str, tuple[int | None, int | None]]


def _of_nova(cloud: Connection) -> _Limits:
    limits = cloud.compute.get_limits().absolute
    return {
        "instances": (limits.instances, limits.instances_used),
        "cores": (limits.total_cores, limits.total_cores_used),
        "MiB of memory": (limits.total_ram, limits.total_ram_used),
        "server groups": (limits.server_groups, limits.server_groups_used),
        _GROUP_MEMBERS: (limits.server_group_members, 0),
    }


def _of_neutron(cloud: Connection) -> _Limits:
    quota = cloud.network.get_quota(str(cloud.current_project_id), details=True)
    details = {
        "ports": quota.ports,
        "floating IPs": quota.floating_ips,
        "security groups": quota.security_groups,
        "security group rules": quota.security_group_rules,
    }
    return {
        name: (each["limit"], each["used"] + int(each["reserved"]))
        for name, each in details.items()
        if each is not None
    }


def _of_cinder(cloud: Connection) -> _Limits:
    limits = cloud.block_storage.get_limits().absolute
    return {
        "volumes": (limits.max_total_volumes, limits.total_volumes_used),
        _VOLUME_SIZE: (limits.max_total_volume_gigabytes, limits.total_gigabytes_used),
    }


def _short(needed: Counter[str], room: Mapping[str, Room]) -> str:
    """What does not fit, in words; empty when all does."""
    return "; ".join(
        f"{name}: {needed[name]} needed, {max(each.left, 0)} of {each.limit} left"
        for name, each in room.items()
        if needed[name] > max(each.left, 0)
    )


def _made_already(stack: str, host: OpenStackHost, missing: Sequence[str], catalogue: Catalogue) -> Counter[str]:
    """What is there for machines that are not, and for the stack as a whole."""
    cloud, names = catalogue.connection, set(missing)
    volumes = [volume for volume in catalogue.volumes(stack) if volume.name in names] if host.docker_volume else []
    with explained():
        groups = list(cloud.network.security_groups(name=stack))
        return Counter(
            {
                "ports": sum(_host(port) in names for port in cloud.network.ports()),
                "floating IPs": sum(_host(address) in names for address in cloud.network.ips()),
                "security groups": len(groups),
                "security group rules": sum(len(group.security_group_rules) for group in groups),
                "server groups": sum(group.name == stack for group in cloud.compute.server_groups()),
                "volumes": len(volumes),
                _VOLUME_SIZE: sum(volume.size for volume in volumes),
            }
        )


def _host(made: Port | FloatingIP) -> str:
    """The machine for which something was made: the last word of its description."""
    return str(made.description or "").rpartition(" ")[2]
