"""The sandbox's APIs as one process: OpenStack on one port, GitLab and the control API on another.

GitLab also listens where containers reach this machine. The control API, everything under /sandbox/, answers only to
clients on the loopback interface.
"""

import asyncio
import ipaddress
import logging
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from sandbox.engine import ensure
from sandbox.faults import Faults
from sandbox.gitlab import gitlab_app
from sandbox.openstack import Machines, openstack_app
from sandbox.store import Store
from sandbox.vm import VirtualMachines

LOOPBACK = "127.0.0.1"

# How long a request that is being answered may hold up the end of the process, in seconds.
_SHUTDOWN_TIMEOUT = 5.0


@dataclass(frozen=True)
class Ports:
    """The ports of the APIs; 0 stands for any free one."""

    openstack: int = 0
    gitlab: int = 0


@dataclass(frozen=True)
class Place:
    """Where the APIs listen: the ports, and this machine as containers see it, an address or a name."""

    ports: Ports = Ports()
    gateway: str = LOOPBACK


class Sandbox:
    """The APIs over one store."""

    def __init__(
        self,
        store: Store,
        machines: Machines,
        faults: Faults,
        place: Place,
        control_routes: Iterable[web.RouteDef] = (),
    ) -> None:
        """Put the pieces together; nothing listens before `start`.

        Args:
            store: where all state is kept, seeded.
            machines: what OpenStack's servers boot into.
            faults: the request log and the faults of all APIs.
            place: where to listen.
            control_routes: more routes for the control API.
        """
        self._place = place
        openstack = openstack_app(store, machines)
        openstack.middlewares.append(faults.middleware("openstack"))
        gitlab = gitlab_app(store, lambda: self.gitlab_external_url)
        gitlab.middlewares.extend([_loopback_only, faults.middleware("gitlab")])
        gitlab.add_routes([*faults.control_routes(), *control_routes])
        self._openstack = web.AppRunner(openstack, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT)
        self._gitlab = web.AppRunner(gitlab, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT)

    @property
    def openstack_url(self) -> str:
        """The address of the OpenStack API; Keystone is at /identity below it."""
        return f"http://{LOOPBACK}:{_port(self._openstack)}"

    @property
    def gitlab_url(self) -> str:
        """The address of GitLab for clients on this machine; the control API is at /sandbox below it."""
        return f"http://{LOOPBACK}:{_port(self._gitlab)}"

    @property
    def gitlab_external_url(self) -> str:
        """The address of GitLab for containers."""
        return f"http://{self._place.gateway}:{_port(self._gitlab)}"

    async def start(self) -> None:
        """Boot the servers that were running and listen. Raises OSError when a port is taken.

        GitLab comes last: when it answers, all the rest does.
        """
        await self._openstack.setup()
        await web.TCPSite(self._openstack, LOOPBACK, self._place.ports.openstack).start()
        await self._gitlab.setup()
        await web.TCPSite(self._gitlab, LOOPBACK, self._place.ports.gitlab).start()
        if _is_own_address(self._place.gateway):
            await web.TCPSite(self._gitlab, self._place.gateway, _port(self._gitlab)).start()

    async def stop(self) -> None:
        """Stop listening."""
        await self._gitlab.cleanup()
        await self._openstack.cleanup()


async def serve(state: Path, fingerprint: str) -> None:
    """Serve the sandbox of a state directory, prepared by `up`, until the process gets SIGTERM or SIGINT.

    `fingerprint` stands for what is served: GET /sandbox/status gives it back, so that `up` can tell an old process.
    """
    log = logging.getLogger("sandbox")
    # It tells of every channel of every connection; the log-ins are in the control API.
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    store = Store(state / STORE_FILE)
    engine = ensure(state, log.info)
    faults = Faults()
    machines = VirtualMachines(state, engine, faults, store)

    async def status(_: web.Request) -> web.Response:
        servers = [{name: server[name] for name in ("id", "name", "status")} for server in store.list("nova.server")]
        return web.json_response({"fingerprint": fingerprint, "servers": servers})

    routes = [*machines.control_routes(), web.get("/sandbox/status", status)]
    sandbox = Sandbox(store, machines, faults, Place(load_ports(store), engine.gateway), routes)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await sandbox.start()
    log.info("OpenStack at %s, GitLab at %s", sandbox.openstack_url, sandbox.gitlab_external_url)
    await ended.wait()
    await sandbox.stop()
    await machines.close()
    store.close()
    log.info("ended")


STORE_FILE = "sandbox.sqlite"


def load_ports(store: Store) -> Ports:
    """The ports that were chosen for a sandbox; any free ones before that."""
    return Ports(**(store.get("sandbox.settings", "ports") or {}))


def save_ports(store: Store, ports: Ports) -> None:
    """Keep the ports chosen, so that the addresses of a sandbox stay the same."""
    store.put("sandbox.settings", "ports", {"openstack": ports.openstack, "gitlab": ports.gitlab})


def _port(runner: web.AppRunner) -> int:
    port: int = runner.addresses[0][1]
    return port


def _is_own_address(gateway: str) -> bool:
    """Whether there is something to listen on: a name leads to the loopback interface by the engine's own ways."""
    try:
        return not ipaddress.ip_address(gateway).is_loopback
    except ValueError:
        return False


@web.middleware
async def _loopback_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keeps jobs from steering the sandbox."""
    if request.path.startswith("/sandbox/") and not ipaddress.ip_address(request.remote or "::").is_loopback:
        return web.json_response({"message": "403 Forbidden"}, status=403)
    return await handler(request)
