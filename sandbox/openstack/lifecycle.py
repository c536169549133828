"""What happens to servers: they boot, change and go, one thing at a time, and take up again in a new process.

Changes of state are asynchronous, as in Nova: an answer comes at once, the work goes on, and a failure of it shows as
status ERROR with a fault. What a server is lies in the store, so that a new process takes up where an old one ended.
"""

import asyncio
import base64
import gzip
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from sandbox.openstack.cinder import Cinder
from sandbox.openstack.common import LOG, ApiError, Document, naive_now, now
from sandbox.openstack.neutron import Neutron
from sandbox.store import Store
from sandbox.vm import VirtualMachine

_GZIP = b"\x1f\x8b"

# Availability zones; servers that ask for none are in the first.
ZONES = ("nova", "zone-2")
# Nova's defaults, by the names in `os-quota-sets`.
QUOTAS = {
    "instances": 10, "cores": 20, "ram": 51200, "key_pairs": 100, "metadata_items": 128, "server_groups": 10,
    "server_group_members": 10,
}  # fmt: skip

# Statuses of servers that have a running machine behind them, or are on their way to one.
_RUNNING = {"BUILD", "ACTIVE", "REBOOT", "HARD_REBOOT", "REBUILD", "RESIZE", "VERIFY_RESIZE"}

_VM_STATES = {"BUILD": "building", "SHUTOFF": "stopped", "ERROR": "error", "VERIFY_RESIZE": "resized"}

# Work on the server of this id.
Work = Callable[[str], Awaitable[None]]


class Machines(Protocol):
    """What servers boot into; `sandbox.vm.VirtualMachines` is one."""

    async def boot(self, vm: VirtualMachine) -> None:
        """Start the machine; a running one is restarted. An exception makes the server's status ERROR."""

    async def shutdown(self, id: str) -> None:
        """Switch the machine off; its disk stays."""

    async def wipe(self, id: str) -> None:
        """Switch the machine off and remove its disk."""

    async def set_addresses(self, id: str, addresses: list[str]) -> None:
        """Make a running machine answer under these addresses; nothing happens to one that is off."""

    def console(self, id: str) -> str:
        """What the machine wrote to its console."""


def limit_of(store: Store, project: str, name: str) -> int:
    """A project's quota; a very large number stands for none."""
    limit: int = (store.get("nova.quota", project) or {}).get(name, QUOTAS[name])
    return limit if limit >= 0 else 2**31


def vm_state(server: Document) -> str:
    """What Nova calls a server's state where it does not call it status."""
    return _VM_STATES.get(server["status"], "active")


def check_state(server: Document, action: str, states: tuple[str, ...]) -> None:
    """Refuse an action, ApiError 409, on a server in another state or while something is under way."""
    in_state = f"Cannot '{action}' instance {server['id']} while it is in"
    if vm_state(server) not in states:
        raise ApiError(409, f"{in_state} vm_state {vm_state(server)}")
    if server["task_state"] is not None:
        raise ApiError(409, f"{in_state} task_state {server['task_state']}")


class Lifecycle:
    """The servers of all projects, and the machines behind them."""

    def __init__(self, store: Store, neutron: Neutron, cinder: Cinder, machines: Machines) -> None:
        self._store = store
        self._neutron = neutron
        self._cinder = cinder
        self._machines = machines
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[None]] = set()
        neutron.watch(self.addresses_changed)

    async def start(self, _: web.Application) -> None:
        """Boot what was running when the last process ended, and finish what it had begun."""
        resumed = []
        for server in self._store.list("nova.server"):
            if server["task_state"] == "deleting":
                self._spawn(self._remove(server["id"]))
            elif server["status"] == "REBUILD":
                resumed.append(self._transition(server["id"], self.reimage, server["goal"] or "ACTIVE"))
            elif server["status"] in _RUNNING:
                status = "VERIFY_RESIZE" if server["status"] in ("RESIZE", "VERIFY_RESIZE") else "ACTIVE"
                resumed.append(self._transition(server["id"], self.boot, status))
            elif server["task_state"] is not None:
                self.change(server["id"], task_state=None)
        await asyncio.gather(*resumed)

    async def stop(self, _: web.Application) -> None:
        """Stop working on what is under way; the next process takes it up."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def members(self, group: str) -> list[str]:
        """The servers of a server group."""
        return [server["id"] for server in self._store.list("nova.server") if server["group"] == group]

    def used(self, project: str) -> dict[str, int]:
        """How much of its quotas a project uses."""
        servers = [server for server in self._store.list("nova.server") if server["project_id"] == project]
        return {
            "instances": len(servers),
            "cores": sum(server["flavor"]["vcpus"] for server in servers),
            "ram": sum(server["flavor"]["ram"] for server in servers),
        }

    # Changes of state

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def change(self, id: str, **changes: Any) -> None:
        """Change attributes of a server that may be gone."""
        server = self._store.get("nova.server", id)
        if server is not None:
            self._store.put("nova.server", id, server | changes | {"updated": now()})

    def create(self, server: Document) -> None:
        """Put a new server into the store and boot it."""
        self._store.put("nova.server", server["id"], server)
        self._spawn(self._transition(server["id"], self.boot, "ACTIVE"))

    def remove(self, server: Document) -> None:
        """Remove a server, after what is under way."""
        if server["task_state"] != "deleting":
            self.change(server["id"], task_state="deleting")
            self._spawn(self._remove(server["id"]))

    def begin(self, server: Document, work: Work, goal: str, /, **during: Any) -> web.Response:
        """Answer 202 and do the work; the server has status `goal` when it has succeeded."""
        self.change(server["id"], **during)
        self._spawn(self._transition(server["id"], work, goal))
        return web.Response(status=202)

    async def _transition(self, id: str, work: Work, goal: str) -> None:
        async with self._locks[id]:
            try:
                await work(id)
                if goal in _RUNNING:
                    # A floating IP may have come while the machine booted.
                    await self._machines.set_addresses(id, self.addresses(id))
            except Exception as error:
                LOG.exception("server %s", id)
                fault = {"code": 500, "created": now(), "message": type(error).__name__, "details": str(error)}
                self._settle(id, status="ERROR", fault=fault)
            else:
                self._settle(id, status=goal, fault=None)

    def _settle(self, id: str, **changes: Any) -> None:
        server = self._store.get("nova.server", id)
        if server is not None and server["task_state"] != "deleting":
            changes["task_state"] = None
        if server is not None and changes["status"] == "ACTIVE" and server["launched_at"] is None:
            changes["launched_at"] = naive_now()
        self.change(id, **changes)

    async def boot(self, id: str) -> None:
        """Work: start or restart the machine."""
        server = self.server(id)
        data = base64.b64decode(server["user_data"] or "")
        if data.startswith(_GZIP):
            # As cloud-init does (util.decomp_gzip).
            data = gzip.decompress(data)
        keys = [server["public_key"]] if server["public_key"] else []
        await self._machines.boot(VirtualMachine(id, server["name"], self.addresses(id), data.decode(), keys))

    async def reimage(self, id: str) -> None:
        """Work: start the machine, if it is to run, with an empty disk."""
        await self._machines.wipe(id)
        if self.server(id)["goal"] != "SHUTOFF":
            await self.boot(id)

    async def _remove(self, id: str) -> None:
        async with self._locks[id]:
            try:
                await self._machines.wipe(id)
            except Exception as error:
                LOG.exception("server %s cannot be removed", id)
                fault = {"code": 500, "created": now(), "message": type(error).__name__, "details": str(error)}
                self.change(id, status="ERROR", task_state=None, fault=fault)
                return
            own_ports = self.server(id)["own_ports"]
            for port in self._neutron.ports_of(id):
                if port["id"] in own_ports:
                    self._neutron.remove_port(port)
                else:
                    self._neutron.unbind(port)
            for volume in self.server(id)["volumes"]:
                self._cinder.detach(volume["id"], delete=volume["delete_on_termination"])
            self._store.delete("nova.server", id)
        del self._locks[id]

    async def addresses_changed(self, id: str) -> None:
        """Have the machine of this id, if it is one, answer under its present addresses."""
        server = self._store.get("nova.server", id)
        # While something is under way, its end takes care of the addresses.
        if server is not None and server["status"] in _RUNNING and not self._locks[id].locked():
            await self._machines.set_addresses(id, self.addresses(id))

    def ports(self, server: Document) -> list[Document]:
        """The ports of a server, in the order in which they were plugged in."""
        order = server["ports"]
        ports = self._neutron.ports_of(server["id"])
        return sorted(ports, key=lambda port: order.index(port["id"]) if port["id"] in order else len(order))

    def addresses(self, id: str) -> list[str]:
        """All addresses of a server, floating ones included."""
        addresses = []
        for port in self.ports(self.server(id)):
            addresses += [fixed["ip_address"] for fixed in port["fixed_ips"]]
            addresses += [floating["floating_ip_address"] for floating in self._neutron.floating_ips(port)]
        return addresses

    def server(self, id: str) -> Document:
        """The server; ApiError 404 when there is none."""
        server = self._store.get("nova.server", id)
        if server is None:
            raise ApiError(404, f"Instance {id} could not be found.")
        return server
