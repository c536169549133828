"""The connection to a host's Docker Engine, and the gate before everything declared there."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from clients.managers import VOLUME_LABEL, Engine, Manager
from clients.readiness import Kind, Machine, Remnants, check_ipv6, machine_ready
from clients.ssh import Login, ssh_options
from components.leftovers import BROKEN_OFF
from components.virtual_machine import VirtualMachine
from renderers.drain import SERVER_LABEL, STACK_LABEL
from renderers.handover import TOKEN_DIGEST, held_back
from renderers.metrics import RUNNER_LABEL
from settings import DockerHost, OpenStackHost, Ssh

# The first engine that knows default-network-opts (Docker Engine 24.0 release notes).
OLDEST_WITH_NETWORK_OPTIONS = 24
_UNUSED: dict[str, Kind] = {
    "docker:index/container:Container": "container",
    "docker:index/volume:Volume": "volume",
}


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
    """`machine` is None for an engine that exists already."""

    host: OpenStackHost | DockerHost
    machine: VirtualMachine | None = None


class DockerConnection(pulumi.ComponentResource):
    """A docker provider for one host.

    Nothing is created or changed on the host before it is ready; the check opens the SSH connection that all share.
    What an interrupted update has left behind there is removed first, as in `components.leftovers`.
    """

    url: pulumi.Output[str]
    ssh_options: pulumi.Output[list[str]]
    cert_path: str | None
    socket: EngineSocket
    provider: docker.Provider

    def __init__(self, name: str, args: DockerConnectionArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("gitlab-runners:docker:Connection", name, None, opts)
        self._name = name
        self._args = args
        self._gate: asyncio.Task[None] | None = None
        self._managers: asyncio.Task[list[Manager]] | None = None
        self._unused: dict[Kind, asyncio.Future[dict[str, dict[str, str]]]] = {}
        hook = pulumi.ResourceHook(f"prepare-{name}", self._prepare)
        self._hooks = pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook])
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
        self, parent: pulumi.Resource, *, trigger: pulumi.Input[str] | None = None, waits: bool = False, **options: Any
    ) -> pulumi.ResourceOptions:
        """Options for a resource on this host: replaced and deleted with its machine, and not before it is ready.

        `trigger` is something else whose change replaces it. `waits` is for a manager that takes no job until
        components.handover lets it, where its runner has another one here. A replacement is made before the old one
        goes: the docker provider deletes first what has a name given, an image among it, and with it all that uses it.
        """
        options = {"provider": self.provider, "delete_before_replace": False, **options}
        if waits:
            options["hooks"] = self._of_successors
        return self._options(parent, trigger=trigger, **options)

    def _options(
        self, parent: pulumi.Resource, *, trigger: pulumi.Input[str] | None = None, **options: Any
    ) -> pulumi.ResourceOptions:
        if self._args.machine is not None:
            instance = self._args.machine.instance
            options["deleted_with"] = instance
            trigger = instance.id if trigger is None else pulumi.Output.concat(instance.id, " ", trigger)
        options.setdefault("hooks", self._hooks)
        return pulumi.ResourceOptions(
            parent=parent,
            replacement_trigger=trigger,
            replace_on_changes=BROKEN_OFF,
            **options,
        )

    async def _prepare(self, args: pulumi.ResourceHookArgs) -> None:
        host, options = await self._reach()
        if isinstance(host, Machine):
            # Once for all that is declared on the host.
            self._gate = self._gate or asyncio.ensure_future(self._ready(host))
            await self._gate
        kind = _UNUSED.get(args.type)
        if kind is not None and args.old_inputs is None:
            labels = {label["label"]: label["value"] for label in (args.new_inputs or {})["labels"]}
            await self._remove_remnants(Remnants(host, options), kind, labels)

    async def _hold_back(self, args: pulumi.ResourceHookArgs) -> None:
        inputs = args.new_inputs or {}
        labels = {label["label"]: label["value"] for label in inputs["labels"]}
        which = {key: labels[key] for key in (STACK_LABEL, SERVER_LABEL) if key in labels}
        engine = Engine(await self.url.future() or "", await self.ssh_options.future() or [], self.cert_path)
        # Once for all runners of the host, before the first of their managers is made.
        self._managers = self._managers or asyncio.ensure_future(engine.managers(which))
        found = [each for each in await self._managers if each.runner == labels[RUNNER_LABEL] and each.may_have_jobs]
        # One with the same volume has the same configuration, and would be held back as well.
        others = [each.id for each in found if each.volume != labels[VOLUME_LABEL]]
        digests = [await engine.ask(each, TOKEN_DIGEST) for each in others]
        if digests:
            await engine.sh_on_volume(inputs["image"], labels[VOLUME_LABEL], held_back(digests))

    async def _remove_remnants(self, remnants: Remnants, kind: Kind, labels: dict[str, str]) -> None:
        if kind not in self._unused:
            # Once for all of a kind, before the first of them is made.
            stack = (STACK_LABEL, labels[STACK_LABEL])
            self._unused[kind] = asyncio.ensure_future(remnants.unused(kind, stack))
        unused = await self._unused[kind]
        for id_ in [id_ for id_, found in unused.items() if labels.items() <= found.items()]:
            await remnants.remove(kind, id_)
            del unused[id_]
            pulumi.log.warn(f"removed {kind} {id_}, which an interrupted update left on {self._name}")

    async def _reach(self) -> tuple[DockerHost | Machine, list[str]]:
        host, machine = self._args.host, self._args.machine
        options = await self.ssh_options.future() or []
        if isinstance(host, DockerHost):
            return host, options
        assert machine is not None
        address = await machine.address.future() or ""
        return Machine(self._name, address, Login(host.ssh.user, host.ssh.port, options)), options

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
