"""A stack's hosts: their names, what each has of its own, and which of them a runner lives on."""

from settings.model import OpenStackHost, Runner, Settings


def host_names(stack: str, count: int) -> list[str]:
    """Names of a stack's hosts, in the order of their numbers, which begin at 1."""
    return [f"{stack}-{number}" for number in range(1, count + 1)]


def host_name(stack: str, reference: int | str) -> str:
    """The name of the host that a stack file calls by its number or by its name; there may be no such host."""
    text = str(reference)
    return f"{stack}-{text}" if text.isdecimal() else text


def host_of(stack: str, host: OpenStackHost, number: int) -> OpenStackHost:
    """What the host of that number is, with its zone and with what it has instead of the others.

    A zone depends on the number alone, so that no host moves when another one comes or goes.
    """
    zones = host.availability_zones
    own: dict[str, object] = {
        "availability_zones": (),
        "availability_zone": zones[(number - 1) % len(zones)] if zones else host.availability_zone,
        "overrides": {},
    }
    for reference, override in host.overrides.items():
        if host_name(stack, reference) == f"{stack}-{number}":
            own |= override.model_dump(exclude_none=True) | {"metadata": host.metadata | override.metadata}
    volume = host.docker_volume
    if volume is not None and volume.same_zone:
        own["docker_volume"] = volume.model_copy(update={"availability_zone": own["availability_zone"]})
    return host.model_copy(update=own)


def hosts_of(stack: str, host: OpenStackHost) -> dict[str, OpenStackHost]:
    """What each host of a stack is, by name, in the order of their numbers."""
    return {name: host_of(stack, host, number) for number, name in enumerate(host_names(stack, host.count), start=1)}


def lives_on(stack: str, runner: Runner, host: str) -> bool:
    """Whether a runner has a manager on the host of that name."""
    return not runner.hosts or host in {host_name(stack, reference) for reference in runner.hosts}


def most_workers(stack: str, settings: Settings) -> int:
    """How many workers there may be at once: each manager of a runner has its own."""
    hosts = host_names(stack, settings.host_count)
    return sum(
        runner.autoscaler.max_instances * sum(lives_on(stack, runner, host) for host in hosts)
        for runner in settings.runners.values()
        if runner.autoscaler is not None
    )
