"""The connection to a host's Docker Engine, and the gate before everything declared there."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from clients.managers import VOLUME_LABEL, Container, Engine
from clients.readiness import Machine, check_ipv6, machine_ready
from clients.remnants import Place, find, remove
from clients.ssh import Login, ssh_options
from clients.state import State, StateUnknown, backend
from components.leftovers import BROKEN_OFF
from components.virtual_machine import VirtualMachine
from renderers.drain import SERVER_LABEL, STACK_LABEL
from renderers.handover import CONFIG_FILE, READ_ALREADY, TOKEN_DIGEST, held_back, token_digest
from renderers.metrics import RUNNER_LABEL
from settings import DockerHost, OpenStackHost, Ssh

# The first engine that knows default-network-opts (Docker Engine 24.0 release notes).
OLDEST_WITH_NETWORK_OPTIONS = 24


@dataclass(frozen=True)
class EngineSocket:
    """How a container gets at the engine that runs it: what is mounted, and where it then is, if not as usual."""

    host_path: str
    container_path: str
    url: str | None = None


_DOCKER_SOCKET = "/var/run/docker.sock"
# The folder and not the socket: systemd makes a new one whenever docker.socket starts, and a container in which the old
# one is mounted would be cut off from the engine.
_MACHINES_SOCKET = EngineSocket("/run", "/host/run", "unix:///host/run/docker.sock")


@dataclass(frozen=True)
class DockerConnectionArgs:
    """`machine` is None for an engine that exists already. `stack` is the stack's name, `state` what its state knows;
    `grace` is in seconds."""

    host: OpenStackHost | DockerHost
    stack: str
    state: State
    grace: int
    machine: VirtualMachine | None = None


@dataclass(frozen=True)
class Configuration:
    """The config.toml that a manager starts with, and the id of the container that writes it."""

    container: pulumi.Output[str]
    text: pulumi.Output[str]


class DockerConnection(pulumi.ComponentResource):
    """A docker provider for one host.

    Nothing is created or changed on the host before it is ready; the check opens the SSH connection that all share.
    What an interrupted update has left behind there is removed first, as in `clients.remnants`.
    """

    url: pulumi.Output[str]
    ssh_options: pulumi.Output[list[str]]
    cert_path: str | None
    socket: EngineSocket
    provider: docker.Provider
    hooks: pulumi.ResourceHookBinding
    """For what is declared on the host without the provider."""

    def __init__(self, name: str, args: DockerConnectionArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("gitlab-runners:docker:Connection", name, None, opts)
        self._name = name
        self._args = args
        self._gate: asyncio.Task[None] | None = None
        self._managers: asyncio.Task[list[Container]] | None = None
        self._configurations: dict[str, Configuration] = {}
        hook = pulumi.ResourceHook(f"prepare-{name}", self._prepare)
        self.hooks = pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook])
        hold_back = pulumi.ResourceHook(f"hold-back-{name}", self._hold_back)
        self._of_successors = pulumi.ResourceHookBinding(before_create=[hook, hold_back], before_update=[hook])
        host, machine = args.host, args.machine
        self.cert_path = host.cert_path if isinstance(host, DockerHost) else None
        if isinstance(host, OpenStackHost):
            assert machine is not None
            self.ssh_options = machine.host_key.apply(lambda key: options_for(host.ssh, key))
            # The machine's id makes the URL unknown, and so unused, until the machine exists.
            self.socket = _MACHINES_SOCKET
            self.url = pulumi.Output.all(machine.address, machine.instance.id).apply(
                lambda known: f"ssh://{host.ssh.user}@{_bracketed(known[0])}:{host.ssh.port}"
            )
        else:
            # As everybody mounts it: on a desktop the folder would be another machine's.
            path = host.url.removeprefix("unix://") if host.url.startswith("unix://") else _DOCKER_SOCKET
            self.socket = EngineSocket(path, _DOCKER_SOCKET)
            is_ssh = host.url.startswith("ssh://")
            self.ssh_options = pulumi.Output.from_input(options_for(host.ssh, host.host_key) if is_ssh else [])
            self.url = pulumi.Output.from_input(host.url)
        self.provider = docker.Provider(
            name,
            host=self.url,
            ssh_opts=self.ssh_options,
            cert_path=self.cert_path,
            opts=self._options(self, depends_on=machine.ssh_dependencies if machine is not None else []),
        )
        self.register_outputs({"url": self.url})

    def on_host(
        self, parent: pulumi.Resource, *, trigger: pulumi.Input[str] | None = None, **options: Any
    ) -> pulumi.ResourceOptions:
        """Options for a resource on this host: replaced and deleted with its machine, and not before it is ready.

        `trigger` is something else whose change replaces it. A replacement is made before the old one goes: the docker
        provider deletes first what has a name given, an image among it, and with it all that uses it.
        """
        options = {"provider": self.provider, "delete_before_replace": False, **options}
        return self._options(parent, trigger=trigger, **options)

    def of_successor(
        self, parent: pulumi.Resource, name: str, configuration: Configuration, **options: Any
    ) -> pulumi.ResourceOptions:
        """The same for the manager with this resource name: it takes no job until components.handover lets it, where
        its runner has another one here."""
        self._configurations[name] = configuration
        return self.on_host(parent, hooks=self._of_successors, **options)

    def _options(
        self, parent: pulumi.Resource, *, trigger: pulumi.Input[str] | None = None, **options: Any
    ) -> pulumi.ResourceOptions:
        if self._args.machine is not None:
            instance = self._args.machine.instance
            options["deleted_with"] = instance
            trigger = instance.id if trigger is None else pulumi.Output.concat(instance.id, " ", trigger)
        options.setdefault("hooks", self.hooks)
        return pulumi.ResourceOptions(
            parent=parent,
            replacement_trigger=trigger,
            replace_on_changes=BROKEN_OFF,
            **options,
        )

    async def _prepare(self, _args: pulumi.ResourceHookArgs) -> None:
        # Once for all that is declared on the host.
        self._gate = self._gate or asyncio.ensure_future(self._make_ready())
        await self._gate

    async def _make_ready(self) -> None:
        machine, server = self._args.machine, ""
        if machine is not None:
            address, server = await machine.address.future() or "", await machine.instance.id.future() or ""
            ssh = self._args.host.ssh
            login = Login(ssh.user, ssh.port, await self.ssh_options.future() or [])
            await self._ready(Machine(self._name, address, login))
        place = Place(self._args.stack, server, await self._engine())
        try:
            remnants = await find(place, self._args.state, backend)
        except StateUnknown as error:
            pulumi.log.warn(f"{self._name}: {error}; what an interrupted update may have left is not removed")
            return
        await remove(
            place,
            remnants,
            self._args.grace,
            lambda line: pulumi.log.warn(f"{line}, which an interrupted update left on {self._name}"),
        )

    async def _hold_back(self, args: pulumi.ResourceHookArgs) -> None:
        labels = {label["label"]: label["value"] for label in (args.new_inputs or {})["labels"]}
        which = {key: labels[key] for key in (STACK_LABEL, SERVER_LABEL) if key in labels}
        engine = await self._engine()
        # Once for all runners of the host, before the first of their managers is made.
        self._managers = self._managers or asyncio.ensure_future(engine.managers(which))
        found = [each for each in await self._managers if each.runner == labels[RUNNER_LABEL] and each.may_have_jobs]
        # One with the same volume has the same configuration, and would be held back as well.
        others = [each.id for each in found if each.volume != labels[VOLUME_LABEL]]
        digests = [await engine.ask(each, TOKEN_DIGEST) for each in others]
        if digests:
            configuration = self._configurations[args.name]
            text = await configuration.text.future() or ""
            if token_digest(text) in digests:
                container = await configuration.container.future() or ""
                await engine.write(container, CONFIG_FILE, held_back(text), READ_ALREADY)

    async def _engine(self) -> Engine:
        return Engine(await self.url.future() or "", await self.ssh_options.future() or [], self.cert_path)

    async def _ready(self, machine: Machine) -> None:
        assert isinstance(self._args.host, OpenStackHost)
        version = await machine_ready(
            machine, self._args.host.ready_timeout, lambda line: pulumi.log.info(line, resource=self, ephemeral=True)
        )
        if self._args.host.ipv6:
            check_ipv6(f"the Docker Engine of {machine.name}", version)
        if int(version.partition(".")[0]) < OLDEST_WITH_NETWORK_OPTIONS:
            pulumi.log.warn(
                f"Docker {version} on {machine.name} takes no MTU for networks that jobs make by hand: they keep 1500. "
                "An image with Docker 24 or newer mends that",
                resource=self,
            )


def options_for(ssh: Ssh, host_key: str | None) -> list[str]:
    """`ssh` options from a host's settings."""
    return ssh_options(host_key, jump_host=ssh.jump_host, identity_file=ssh.identity_file, options=ssh.usual_options)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
