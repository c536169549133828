"""The connection to a host's Docker Engine, and the gate before everything declared there."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from clients.readiness import Machine, machine_ready
from clients.ssh import Login, ssh_options
from components.virtual_machine import VirtualMachine
from settings import DockerHost, OpenStackHost, Ssh


@dataclass(frozen=True)
class DockerConnectionArgs:
    """`machine` is None for an engine that exists already."""

    host: OpenStackHost | DockerHost
    machine: VirtualMachine | None = None


class DockerConnection(pulumi.ComponentResource):
    """A docker provider for one host.

    Nothing is created or changed on the host before it is ready; the check opens the SSH connection that all share.
    """

    url: pulumi.Output[str]
    ssh_options: pulumi.Output[list[str]]
    provider: docker.Provider

    def __init__(self, name: str, args: DockerConnectionArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("gitlab-runners:docker:Connection", name, None, opts)
        self._machine = args.machine
        self._hooks: pulumi.ResourceHookBinding | None = None
        self._gate: asyncio.Task[None] | None = None
        host, machine = args.host, args.machine
        cert_path = None
        if isinstance(host, OpenStackHost):
            assert machine is not None
            self.ssh_options = machine.host_key.apply(lambda key: options_for(host.ssh, key))
            # The machine's id makes the URL unknown, and so unused, until the machine exists.
            self.url = pulumi.Output.all(machine.address, machine.instance.id).apply(
                lambda known: f"ssh://{host.ssh.user}@{_bracketed(known[0])}:{host.ssh.port}"
            )
            hook = pulumi.ResourceHook(f"wait-for-{name}", self._wait_with(name, host, machine))
            self._hooks = pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook])
        else:
            is_ssh = host.url.startswith("ssh://")
            self.ssh_options = pulumi.Output.from_input(options_for(host.ssh, host.host_key) if is_ssh else [])
            self.url = pulumi.Output.from_input(host.url)
            cert_path = host.cert_path
        self.provider = docker.Provider(
            name,
            host=self.url,
            ssh_opts=self.ssh_options,
            cert_path=cert_path,
            opts=self._options(self, depends_on=machine.ssh_dependencies if machine is not None else []),
        )
        self.register_outputs({"url": self.url})

    def on_host(self, parent: pulumi.Resource, **options: Any) -> pulumi.ResourceOptions:
        """Options for a resource on this host: replaced and deleted with its machine, and not before it is ready."""
        return self._options(parent, provider=self.provider, **options)

    def _options(self, parent: pulumi.Resource, **options: Any) -> pulumi.ResourceOptions:
        if self._machine is None:
            return pulumi.ResourceOptions(parent=parent, **options)
        return pulumi.ResourceOptions(
            parent=parent,
            hooks=self._hooks,
            replacement_trigger=self._machine.instance.id,
            deleted_with=self._machine.instance,
            **options,
        )

    def _wait_with(
        self, name: str, host: OpenStackHost, machine: VirtualMachine
    ) -> Callable[[pulumi.ResourceHookArgs], Coroutine[Any, Any, None]]:
        async def ready() -> None:
            address, options = await pulumi.Output.all(machine.address, self.ssh_options).future() or []
            await machine_ready(
                Machine(name, address, Login(host.ssh.user, host.ssh.port, options)),
                host.ready_timeout,
                lambda line: pulumi.log.info(line, resource=self, ephemeral=True),
            )

        async def wait(_: pulumi.ResourceHookArgs) -> None:
            # Once for all that is declared on the host.
            self._gate = self._gate or asyncio.ensure_future(ready())
            await self._gate

        return wait


def options_for(ssh: Ssh, host_key: str | None) -> list[str]:
    """`ssh` options from a host's settings."""
    return ssh_options(host_key, jump_host=ssh.jump_host, identity_file=ssh.identity_file, options=ssh.options)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
