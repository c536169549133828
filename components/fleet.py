"""The fleet: every runner on every host, or on those that it names."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import pulumi

from clients.lookups import Lookups
from clients.marks import Marks
from clients.state import State
from components.cache import Cache, CacheArgs
from components.docker_connection import DockerConnection, DockerConnectionArgs
from components.drain import Drain, DrainArgs
from components.handover import Handover, HandoverArgs
from components.host_group import HostGroup, HostGroupArgs
from components.leftovers import Leftovers
from components.machine_data import host_data_mistake, worker_data_mistake
from components.openstack_provider import openstack_provider
from components.proxy import proxy_of
from components.registration import Registration, RegistrationArgs, gitlab_provider
from components.registry_cache import RegistryCache, RegistryCacheArgs, mirrors
from components.runner_manager import RunnerManager, RunnerManagerArgs, files_for_jobs
from components.virtual_machine import VirtualMachine, VirtualMachineArgs
from components.worker_group import WorkerGroup, WorkerGroupArgs
from renderers.drain import SERVER_LABEL, STACK_LABEL
from renderers.handover import CONFIGURATION_FOLDER
from renderers.metrics import RUNNER_LABEL, prometheus_targets
from settings import (
    DockerHost,
    ObjectStoreCache,
    OpenStackHost,
    Owner,
    Runner,
    S3Cache,
    Settings,
    SettingsError,
    host_names,
    hosts_of,
    lives_on,
    most_workers,
)


@dataclass(frozen=True)
class Shared:
    """What a stack with layers has besides: its owner, whom all that is made names, and the providers' configuration.

    `openstack_config` is all of the openstack provider's; `openstack` and `gitlab` are what layers may say of either,
    none of it a secret. All are without their namespace.
    """

    owner: Owner
    openstack_config: Mapping[str, str]
    openstack: Mapping[str, str]
    gitlab: Mapping[str, str]


@dataclass(frozen=True)
class FleetArgs:
    """`gitlab_config` is the gitlab provider's configuration, `gitlab_url` is GitLab as the runners reach it.

    `state` is what the stack's state knows. `token_expiry` is as in RegistrationArgs; `own_tokens` says when the tokens
    expire that runners were given, by runner. `stopped` are ids of managers that do not run, on an engine that exists
    already. `shared` is for a stack with layers.
    """

    project: str
    stack: str
    settings: Settings
    lookups: Lookups
    leftovers: Leftovers
    state: State
    gitlab_config: Mapping[str, str]
    gitlab_url: str
    token_expiry: Callable[[int], datetime | None] | None = None
    own_tokens: Mapping[str, datetime | None] = field(default_factory=dict)
    stopped: Set[str] = frozenset()
    shared: Shared | None = None


@dataclass(frozen=True)
class _Host:
    name: str
    connection: DockerConnection
    mtu: int | None
    addresses: pulumi.Output[list[str]] | None = None
    machine: VirtualMachine | None = None


class Fleet(pulumi.ComponentResource):
    """Hosts, registrations and runner managers of a stack.

    Outputs: `hosts`, by name, with addresses, MTU in bytes and Docker URL; `runners`, by name, with id, page, tags and
    the containers' names; `prometheus_targets`, as Prometheus' file_sd_config takes them, None where nobody serves
    metrics.
    """

    hosts: pulumi.Output[Mapping[str, Any]]
    runners: pulumi.Output[Mapping[str, Any]]
    prometheus_targets: pulumi.Output[list[dict[str, Any]]] | None = None

    def __init__(self, name: str, args: FleetArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        settings = args.settings
        self._check_user_data(args)
        # For policies: what there may be at once, which no single resource tells.
        seen = {
            "team": args.shared.owner.team if args.shared is not None else None,
            "hosts": settings.host.count if isinstance(settings.host, OpenStackHost) else 0,
            "workers": most_workers(args.stack, settings),
        }
        super().__init__("gitlab-runners:index:Fleet", name, seen, opts)
        self._args = args
        self._marks = Marks(args.project, args.stack)
        self._openstack: list[pulumi.ProviderResource] | None = None
        self._hosts_group: HostGroup | None = None
        if args.shared is not None and isinstance(settings.host, OpenStackHost):
            parent = pulumi.ResourceOptions(parent=self)
            self._openstack = [openstack_provider(args.stack, args.shared.openstack_config, parent)]
        if isinstance(settings.host, OpenStackHost):
            hosts = self._machines(settings.host)
        else:
            hosts = [self._existing(settings.host)]
        cache = self._cache(settings.cache) if settings.cache is not None else None
        provider = None
        if any(runner.scope is not None for runner in settings.runners.values()):
            provider = gitlab_provider(args.stack, args.gitlab_config, pulumi.ResourceOptions(parent=self))
        own_mirrors = mirrors(settings.host)
        runners: dict[str, Any] = {}
        managers: dict[str, dict[str, RunnerManager]] = {host.name: {} for host in hosts}
        for runner_name, runner in settings.runners.items():
            registration = Registration(
                f"{args.stack}-{runner_name}",
                RegistrationArgs(
                    runner=runner,
                    key=f"gitlab-runners:runners.{runner_name}",
                    description=runner.registered_as(args.stack, runner_name, shared=args.shared is not None),
                    pages=args.lookups.runner_pages.get(runner_name),
                    grace=settings.stop_grace_seconds,
                    protect=settings.protect,
                    leftovers=args.leftovers,
                    provider=provider,
                    token_expiry=args.token_expiry,
                    own_token_expiry=args.own_tokens.get(runner_name),
                    shared=(args.shared.gitlab or None) if args.shared is not None else None,
                ),
                opts=pulumi.ResourceOptions(parent=self),
            )
            workers = self._workers(runner_name, runner, settings.host) if runner.autoscaler is not None else None
            containers = []
            for host in (each for each in hosts if lives_on(args.stack, runner, each.name)):
                manager = RunnerManager(
                    f"{host.name}-{runner_name}",
                    RunnerManagerArgs(
                        runner=runner,
                        manager=settings.manager,
                        token=registration.token,
                        token_expiry=registration.token_expiry,
                        runner_id=registration.runner_id,
                        gitlab_url=args.gitlab_url,
                        connection=host.connection,
                        labels=self._labels(host, runner_name),
                        grace=settings.stop_grace_seconds,
                        mtu=host.mtu,
                        ipv6=settings.host.ipv6,
                        ca_certificates=settings.host.ca_certificates,
                        proxy=proxy_of(settings.host),
                        # Workers have no cache of their own.
                        registry_mirrors=settings.host.registry_mirrors if workers is not None else own_mirrors,
                        metrics=self._serves_metrics,
                        cache=cache.settings if cache is not None else None,
                        workers=workers,
                    ),
                    # Without the registration there is nothing to poll for: managers go first.
                    opts=pulumi.ResourceOptions(parent=self, depends_on=[registration]),
                )
                managers[host.name][runner_name] = manager
                containers.append(manager.container.name)
            runners[runner_name] = {
                "id": registration.runner_id,
                "page": registration.page,
                "tags": list(runner.tags),
                "containers": containers,
            }
        for host in hosts:
            if isinstance(settings.host, OpenStackHost) and settings.host.registry_cache is not None:
                labels = {**self._owner_labels, **self._host_labels(host)}
                RegistryCache(
                    host.name,
                    RegistryCacheArgs(
                        settings.host.registry_cache,
                        host.connection,
                        labels,
                        settings.host.ca_certificates,
                        proxy_of(settings.host),
                    ),
                    opts=pulumi.ResourceOptions(parent=self),
                )
            self._handover(host, managers[host.name])
            if host.machine is not None and isinstance(settings.host, OpenStackHost):
                self._drain(host, host.machine, settings.host, managers[host.name].values())
        self.hosts = pulumi.Output.from_input(
            {
                host.name: {"addresses": host.addresses, "mtu": host.mtu, "dockerUrl": host.connection.url}
                for host in hosts
            }
        )
        self.runners = pulumi.Output.from_input(runners)
        if self._serves_metrics:
            addresses = {host.name: host.machine.address for host in hosts if host.machine is not None}
            self.prometheus_targets = pulumi.Output.all(**addresses).apply(
                lambda known: prometheus_targets(args.stack, known, settings.runners)
            )
        self.register_outputs({"hosts": self.hosts, "runners": self.runners})

    async def settled(self) -> None:
        """Returns when every manager is registered, or could not be; what went wrong is not told here."""
        await asyncio.gather(self.runners.future(), return_exceptions=True)

    @property
    def _serves_metrics(self) -> bool:
        host = self._args.settings.host
        return isinstance(host, OpenStackHost) and bool(host.metrics_from)

    def _cache(self, cache: S3Cache | ObjectStoreCache) -> Cache:
        args = self._args
        endpoint = args.lookups.cache_endpoint
        assert endpoint is not None
        return Cache(
            args.stack,
            CacheArgs(
                cache=cache,
                server=endpoint.server,
                insecure=endpoint.insecure,
                container=(isinstance(cache, ObjectStoreCache) and cache.container) or self._marks.container,
                metadata=self._metadata,
                leftovers=args.leftovers,
            ),
            opts=pulumi.ResourceOptions(parent=self, providers=self._openstack),
        )

    @property
    def _metadata(self) -> dict[str, str]:
        shared = self._args.shared
        return self._marks.metadata | (vars(shared.owner) if shared is not None else {})

    def _machines(self, host: OpenStackHost) -> list[_Host]:
        args = self._args
        host = self._tagged(host)
        cloud = args.shared.openstack if args.shared is not None else None
        group = HostGroup(
            args.stack,
            HostGroupArgs(
                host=host,
                description=self._marks.description,
                leftovers=args.leftovers,
                cloud=cloud,
            ),
            opts=pulumi.ResourceOptions(parent=self, providers=self._openstack),
        )
        self._hosts_group = group
        hosts = []
        for number, (name, own) in enumerate(hosts_of(args.stack, host).items(), start=1):
            found = args.lookups.machines[name]
            machine = VirtualMachine(
                name,
                VirtualMachineArgs(
                    host=own,
                    number=number,
                    group=group,
                    found=found,
                    metadata=self._metadata,
                    description=self._marks.of_host(name),
                    leftovers=args.leftovers,
                    unfinished=name in args.lookups.unfinished_machines,
                    volume_broken=name in args.lookups.broken_volumes,
                ),
                opts=pulumi.ResourceOptions(parent=self, providers=self._openstack),
            )
            connection = self._connection(name, host, machine, parent=machine)
            hosts.append(_Host(name, connection, found.mtu, machine.addresses, machine))
        return hosts

    def _workers(self, name: str, runner: Runner, host: OpenStackHost | DockerHost) -> WorkerGroup:
        args = self._args
        assert runner.autoscaler is not None
        assert isinstance(host, OpenStackHost)
        assert args.lookups.cloud is not None
        assert self._hosts_group is not None
        found = args.lookups.workers[name]
        return WorkerGroup(
            f"{args.stack}-{name}",
            WorkerGroupArgs(
                scaler=runner.autoscaler,
                host=self._tagged(host),
                hosts_group=self._hosts_group.security_group_id,
                found=found,
                files=_files_of_workers(runner, found.mtu, host),
                metadata=self._metadata,
                description=self._marks.of_workers(name),
                access=args.lookups.cloud,
                leftovers=args.leftovers,
                cloud=args.shared.openstack if args.shared is not None else None,
            ),
            opts=pulumi.ResourceOptions(parent=self, providers=self._openstack),
        )

    @staticmethod
    def _check_user_data(args: FleetArgs) -> None:
        """Raises SettingsError when Nova would refuse a machine's user_data, which its answer would then repeat."""
        host = args.settings.host
        if not isinstance(host, OpenStackHost):
            return
        (first,) = host_names(args.stack, 1)
        mistakes = {"host": host_data_mistake(host, args.lookups.machines[first].mtu)}
        for name, found in args.lookups.workers.items():
            files_of = partial(_files_of_workers, args.settings.runners[name], found.mtu)
            mistakes[f"runners.{name}.autoscaler"] = worker_data_mistake(host, found.mtu, files_of)
        lines = [f"gitlab-runners:{where}: {mistake}" for where, mistake in mistakes.items() if mistake is not None]
        if lines:
            raise SettingsError("\n".join(lines))

    def _tagged(self, host: OpenStackHost) -> OpenStackHost:
        """The host with the tags that name its owner."""
        if self._args.shared is None:
            return host
        return host.model_copy(update={"tags": (*host.tags, *self._args.shared.owner.tags)})

    def _existing(self, host: DockerHost) -> _Host:
        (name,) = host_names(self._args.stack, 1)
        return _Host(name, self._connection(name, host, None, parent=self), host.mtu)

    def _connection(
        self, name: str, host: OpenStackHost | DockerHost, machine: VirtualMachine | None, parent: pulumi.Resource
    ) -> DockerConnection:
        args = self._args
        of_host = DockerConnectionArgs(host, args.stack, args.state, args.settings.stop_grace_seconds, machine)
        return DockerConnection(name, of_host, opts=pulumi.ResourceOptions(parent=parent))

    def _labels(self, host: _Host, runner: str) -> dict[str, pulumi.Input[str]]:
        return {STACK_LABEL: self._args.stack, RUNNER_LABEL: runner, **self._owner_labels, **self._host_labels(host)}

    @property
    def _owner_labels(self) -> dict[str, str]:
        owner = vars(self._args.shared.owner) if self._args.shared is not None else {}
        return {f"gitlab-runners.{key}": value for key, value in owner.items()}

    def _host_labels(self, host: _Host) -> dict[str, pulumi.Input[str]]:
        """What tells the managers of the stack on this host from all others."""
        on_machine = {SERVER_LABEL: host.machine.instance.id} if host.machine is not None else {}
        return {STACK_LABEL: self._args.stack, **on_machine}

    def _handover(self, host: _Host, managers: Mapping[str, RunnerManager]) -> None:
        slots = {runner: manager.slots for runner, manager in managers.items() if manager.slots is not None}
        if not slots:
            return
        containers = {runner: managers[runner].container.id for runner in slots}
        Handover(
            host.name,
            HandoverArgs(
                url=host.connection.url,
                options=host.connection.ssh_options,
                cert_path=host.connection.cert_path,
                labels=self._host_labels(host),
                managers={**containers},
                slots=slots,
                grace=self._args.settings.stop_grace_seconds,
                stopped=self._stopped(containers) if self._args.stopped else None,
            ),
            opts=pulumi.ResourceOptions(
                parent=host.connection,
                depends_on=[managers[runner].container for runner in slots],
                hooks=host.connection.hooks,
            ),
        )

    def _stopped(self, managers: Mapping[str, pulumi.Output[str]]) -> pulumi.Output[list[str]]:
        return pulumi.Output.all(**managers).apply(
            lambda ids: [runner for runner, id_ in ids.items() if id_ in self._args.stopped]
        )

    def _drain(
        self, host: _Host, machine: VirtualMachine, settings: OpenStackHost, managers: Collection[RunnerManager]
    ) -> None:
        drain = Drain(
            host.name,
            DrainArgs(
                server=machine.instance.id,
                address=machine.address,
                user=settings.ssh.user,
                port=settings.ssh.port,
                options=host.connection.ssh_options,
                grace=self._args.settings.stop_grace_seconds,
                managers=[manager.container.id for manager in managers],
                cloud=self._args.shared.openstack if self._args.shared is not None else None,
            ),
            opts=pulumi.ResourceOptions(
                parent=machine,
                depends_on=[
                    *machine.ssh_dependencies,
                    # Jobs need them until their end: where the drain fails, they stay with the machine.
                    *(self._hosts_group.rules if self._hosts_group is not None else []),
                    *([machine.floating_ip] if machine.floating_ip is not None else []),
                    *(manager.container for manager in managers),
                ],
                # What waits for the old machine's jobs cannot wait for the end of the update.
                delete_before_replace=settings.keeps_floating_ip or None,
            ),
        )
        if settings.keeps_floating_ip:
            machine.move_floating_ip(drain)


def _files_of_workers(runner: Runner, mtu: int, host: OpenStackHost) -> dict[str, str]:
    """What jobs get from the worker that they run on, by path."""
    files = files_for_jobs(runner, mtu, host.registry_mirrors, host.ca_certificates, ipv6=host.ipv6)
    return {f"{CONFIGURATION_FOLDER}/{file}": content for file, content in files.items()}
