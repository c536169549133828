"""Nova's servers: listed, created, changed, acted on and removed, as the Compute API v2.1 documents it."""

import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from multidict import MultiMapping

from sandbox.openstack.cinder import Cinder
from sandbox.openstack.common import ApiError, Document, caller_of, json_body, new_id, now, page, sort, tags_match
from sandbox.openstack.glance import Glance
from sandbox.openstack.lifecycle import ZONES, Lifecycle, Machines, check_state, limit_of, vm_state
from sandbox.openstack.neutron import Neutron
from sandbox.openstack.parts import Parts, on_server
from sandbox.openstack.schema import (
    RebuildBody,
    ServerBody,
    ServerChangeBody,
    body_of,
    minor_version,
    validated,
)
from sandbox.openstack.supplies import Supplies
from sandbox.openstack.views import SINCE, Views, brief
from sandbox.store import Store

# Carries out an action: gets the request, the server, and what came with the action's name.
Act = Callable[[web.Request, Document, Any], Awaitable[web.Response]]


@dataclass(frozen=True)
class Action:
    """One kind of `POST /servers/{id}/action`."""

    act: Act
    # The vm_states in which it is allowed; None: in all of them, also while something else is under way.
    states: tuple[str, ...] | None = None


class Servers:
    """The servers of all projects."""

    def __init__(self, store: Store, neutron: Neutron, glance: Glance, cinder: Cinder, machines: Machines) -> None:
        self._store = store
        self._neutron = neutron
        self._glance = glance
        self._machines = machines
        self.life = Lifecycle(store, neutron, cinder, machines)
        self._views = Views(store, neutron, self.life)
        self._supplies = Supplies(store, neutron, glance, cinder, self.life)
        self._parts = Parts(store, neutron, self.life, self._supplies, self._views)
        self._actions = {
            "os-start": Action(self._start, ("stopped",)),
            "os-stop": Action(self._stop, ("active", "error")),
            "reboot": Action(self._reboot, ("active", "stopped", "error")),
            "rebuild": Action(self._rebuild, ("active", "stopped", "error")),
            "resize": Action(self._resize, ("active", "stopped")),
            "confirmResize": Action(self._confirm_resize, ("resized",)),
            "revertResize": Action(self._revert_resize, ("resized",)),
            "os-getConsoleOutput": Action(self._console_output),
            "changePassword": Action(self._change_password, ("active",)),
            "lock": Action(self._lock),
            "unlock": Action(self._unlock),
            "addSecurityGroup": Action(self._add_group),
            "removeSecurityGroup": Action(self._remove_group),
            "forceDelete": Action(self._force_delete),
        }

    def routes(self) -> list[web.RouteDef]:
        """The routes, relative to /v2.1."""
        return [
            web.get("/servers", self._list),
            web.get("/servers/detail", self._list),
            web.post("/servers", self._create),
            web.get("/servers/{id}", on_server(self.life, self._show)),
            web.put("/servers/{id}", on_server(self.life, self._update)),
            web.delete("/servers/{id}", on_server(self.life, self._delete)),
            web.post("/servers/{id}/action", on_server(self.life, self._action)),
            *self._parts.routes(),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        project = caller_of(request).project_id
        everyone = query.get("all_tenants", "0").lower() in ("1", "true")
        servers = [s for s in self._store.list("nova.server") if everyone or s["project_id"] == project]
        servers = [server for server in servers if self._matches(server, query)]
        order = {"created_at": "created", "updated_at": "updated", "display_name": "name", "uuid": "id"}
        keys = [order.get(key, key) for key in query.getall("sort_key", [])]
        servers = sort(servers[::-1], keys, query.getall("sort_dir", ["desc"] * len(keys)))
        shown, following = page(request, servers)
        detailed = request.path.endswith("/detail")
        views = [self._views.view(request, server) if detailed else brief(request, server) for server in shown]
        body: Document = {"servers": views}
        if following is not None:
            body["servers_links"] = [{"rel": "next", "href": following}]
        return web.json_response(body)

    def _matches(self, server: Document, query: MultiMapping[str]) -> bool:
        equal = {
            "status": server["status"],
            "flavor": server["flavor"]["id"],
            "image": server["image"],
            "uuid": server["id"],
            "project_id": server["project_id"],
            "tenant_id": server["project_id"] if "all_tenants" in query else query.get("tenant_id"),
            "user_id": server["user_id"],
            "key_name": server["key_name"],
            "availability_zone": server["availability_zone"],
            "vm_state": vm_state(server),
            "host": "sandbox",
        }
        for name, value in equal.items():
            wanted = query.getall(name, [])
            if wanted and value not in [text.upper() if name == "status" else text for text in wanted]:
                return False
        for name, values in (("name", [server["name"]]), ("ip", self.life.addresses(server["id"]))):
            if name in query and not any(_search(query[name], value) for value in values):
                return False
        if "changes-since" in query and server["updated"] < query["changes-since"]:
            return False
        if "deleted" in query and query["deleted"].lower() in ("1", "true"):
            return False
        return tags_match(server["tags"], query)

    async def _show(self, request: web.Request, server: Document) -> web.Response:
        return web.json_response({"server": self._views.view(request, server)})

    # Create, update, delete

    async def _create(self, request: web.Request) -> web.Response:
        body = await json_body(request)
        wanted = await body_of(request, "server", ServerBody)
        hints = body.get("os:scheduler_hints") or body.get("OS-SCH-HNT:scheduler_hints") or {}
        caller = caller_of(request)
        count = wanted.max_count or wanted.min_count
        if wanted.min_count > count:
            raise ApiError(400, "min_count must be <= max_count")
        zone = (wanted.availability_zone or ZONES[0]).partition(":")[0]
        if zone not in ZONES:
            raise ApiError(400, "The requested availability zone is not available")
        volume = self._supplies.root_volume(caller, wanted)
        flavor = self._supplies.flavor(str(wanted.flavor))
        pair = self._supplies.keypair(caller, wanted.key_name) if wanted.key_name else None
        group = self._supplies.server_group(caller, hints.get("group"), count)
        groups = self._supplies.security_groups(caller, wanted)
        networks = self._supplies.networks(caller, wanted, count)
        self._supplies.check_quota(caller.project_id, flavor, count)
        template = {
            "project_id": caller.project_id,
            "user_id": caller.user_id,
            "description": wanted.description if minor_version(request) >= SINCE["description"] else wanted.name,
            "image": wanted.image or (volume["image"] if volume else ""),
            "volume": volume,
            "flavor": flavor,
            "old_flavor": None,
            "key_name": pair["name"] if pair else None,
            "public_key": pair["public_key"] if pair else None,
            "availability_zone": zone,
            "metadata": wanted.metadata,
            "tags": wanted.tags,
            "user_data": wanted.user_data,
            "config_drive": wanted.config_drive,
            "access_ip_v4": str(wanted.access_ip_v4 or ""),
            "access_ip_v6": str(wanted.access_ip_v6 or ""),
            "disk_config": wanted.disk_config,
            "group": group,
            "locked": False,
            "fault": None,
            "status": "BUILD",
            "task_state": "spawning",
            "goal": None,
            "launched_at": None,
            "reservation_id": f"r-{secrets.token_hex(4)}",
        }
        created = []
        for number in range(1, count + 1):
            name = wanted.name if count == 1 else f"{wanted.name}-{number}"
            server: Document = {"id": new_id(), "name": name, **template}
            server["number"] = self._store.next_number("nova.server")
            server |= {"hostname": wanted.hostname or _hostname(name), "created": now(), "updated": now()}
            own_ports, ports = self._supplies.plug(caller, server, networks, groups)
            server |= {"own_ports": own_ports, "ports": ports}
            server["volumes"] = self._supplies.attach(caller, server, wanted)
            self.life.create(server)
            created.append(server)
        first = brief(request, created[0])
        view = {name: first[name] for name in ("id", "links")} | {"OS-DCF:diskConfig": wanted.disk_config}
        view["security_groups"] = [{"name": group.name} for group in wanted.security_groups]
        view["adminPass"] = wanted.password or secrets.token_urlsafe(9)
        headers = {"Location": first["links"][0]["href"]}
        return web.json_response({"server": view}, status=202, headers=headers)

    async def _update(self, request: web.Request, server: Document) -> web.Response:
        changes = await body_of(request, "server", ServerChangeBody)
        server |= _given(changes)
        self._store.put("nova.server", server["id"], server | {"updated": now()})
        return web.json_response({"server": self._views.view(request, server)})

    async def _delete(self, _: web.Request, server: Document) -> web.Response:
        if server["locked"]:
            raise ApiError(409, f"Instance {server['id']} is locked")
        self.life.remove(server)
        return web.Response(status=204)

    # Actions

    async def _action(self, request: web.Request, server: Document) -> web.Response:
        body = await json_body(request)
        if len(body) != 1:
            raise ApiError(400, "Malformed request body")
        name, given = next(iter(body.items()))
        action = self._actions.get(name)
        if action is None:
            raise ApiError(400, f"There is no such action: {name}")
        if action.states is not None:
            if server["locked"]:
                raise ApiError(409, f"Instance {server['id']} is locked")
            check_state(server, name.removeprefix("os-"), action.states)
        return await action.act(request, server, given)

    async def _start(self, _: web.Request, server: Document, __: Any) -> web.Response:
        return self.life.begin(server, self.life.boot, "ACTIVE", task_state="powering-on")

    async def _stop(self, _: web.Request, server: Document, __: Any) -> web.Response:
        return self.life.begin(server, self._machines.shutdown, "SHUTOFF", task_state="powering-off")

    async def _reboot(self, _: web.Request, server: Document, given: Any) -> web.Response:
        kind = str(given.get("type", "") if isinstance(given, dict) else "").upper()
        if kind not in ("SOFT", "HARD"):
            raise ApiError(400, f"Invalid input for field/attribute type. Value: {kind}. It is not SOFT or HARD.")
        if kind == "SOFT":
            check_state(server, "reboot", ("active",))
            return self.life.begin(server, self.life.boot, "ACTIVE", status="REBOOT", task_state="rebooting")
        return self.life.begin(server, self.life.boot, "ACTIVE", status="HARD_REBOOT", task_state="rebooting_hard")

    async def _rebuild(self, request: web.Request, server: Document, given: Any) -> web.Response:
        wanted = validated(given, "rebuild", RebuildBody, minor_version(request))
        caller = caller_of(request)
        if self._glance.image(caller, wanted.image) is None:
            raise ApiError(400, "Cannot find image for rebuild")
        if server["volume"] and wanted.image != server["image"]:
            # Allowed from 2.93 on, which this Nova does not know.
            raise ApiError(400, "Unable to rebuild with a different image for a volume-backed server.")
        changes = _given(wanted)
        if wanted.key_name is not None:
            changes["public_key"] = self._supplies.keypair(caller, wanted.key_name)["public_key"]
        elif "key_name" in wanted.model_fields_set:
            changes["public_key"] = None
        goal = "SHUTOFF" if vm_state(server) == "stopped" else "ACTIVE"
        changes |= {"status": "REBUILD", "task_state": "rebuilding", "goal": goal, "fault": None}
        # Before 2.93, a rebuild leaves a boot volume as it is.
        work = self.life.reimage
        if server["volume"]:
            work = self.life.boot if goal == "ACTIVE" else self._machines.shutdown
        self.life.begin(server, work, goal, **changes)
        view = self._views.view(request, self.life.server(server["id"])) | {"adminPass": wanted.password or ""}
        return web.json_response({"server": view}, status=202)

    async def _resize(self, _: web.Request, server: Document, given: Any) -> web.Response:
        if not isinstance(given, dict) or "flavorRef" not in given:
            raise ApiError(400, "Invalid input for field/attribute resize. 'flavorRef' is a required property")
        flavor = self._supplies.flavor(str(given["flavorRef"]))
        if flavor["id"] == server["flavor"]["id"]:
            raise ApiError(400, "When resizing, instances must change flavor!")
        if flavor["disk"] < server["flavor"]["disk"] and not server["volume"]:
            raise ApiError(400, "Resize to smaller disk is not supported.")
        self._check_resize_quota(server, flavor)
        before = "SHUTOFF" if vm_state(server) == "stopped" else "ACTIVE"
        changes = {"flavor": flavor, "old_flavor": server["flavor"], "goal": before}
        work = self._machines.shutdown if before == "SHUTOFF" else self.life.boot
        return self.life.begin(server, work, "VERIFY_RESIZE", status="RESIZE", task_state="resize_migrating", **changes)

    def _check_resize_quota(self, server: Document, flavor: Document) -> None:
        used = self.life.used(server["project_id"])
        for name, field in (("cores", "vcpus"), ("ram", "ram")):
            more = flavor[field] - server["flavor"][field]
            if more > 0 and used[name] + more > limit_of(self._store, server["project_id"], name):
                raise ApiError(403, f"Quota exceeded for {name}: Requested {more}, but already used {used[name]}")

    async def _confirm_resize(self, _: web.Request, server: Document, __: Any) -> web.Response:
        self.life.change(server["id"], status=server["goal"], old_flavor=None, goal=None)
        return web.Response(status=204)

    async def _revert_resize(self, _: web.Request, server: Document, __: Any) -> web.Response:
        work = self._machines.shutdown if server["goal"] == "SHUTOFF" else self.life.boot
        changes = {"flavor": server["old_flavor"], "old_flavor": None, "task_state": "resize_reverting"}
        return self.life.begin(server, work, server["goal"], **changes)

    async def _console_output(self, _: web.Request, server: Document, given: Any) -> web.Response:
        output = self._machines.console(server["id"])
        length = given.get("length") if isinstance(given, dict) else None
        if length is not None:
            if not str(length).lstrip("-").isdecimal():
                raise ApiError(400, f"Invalid input for field/attribute length. Value: {length}.")
            if int(length) >= 0:
                lines = output.splitlines(keepends=True)
                output = "".join(lines[max(0, len(lines) - int(length)) :])
        return web.json_response({"output": output})

    async def _change_password(self, *_: Any) -> web.Response:
        return web.Response(status=202)

    async def _lock(self, _: web.Request, server: Document, __: Any) -> web.Response:
        self.life.change(server["id"], locked=True)
        return web.Response(status=202)

    async def _unlock(self, _: web.Request, server: Document, __: Any) -> web.Response:
        self.life.change(server["id"], locked=False)
        return web.Response(status=202)

    async def _force_delete(self, request: web.Request, server: Document, _: Any) -> web.Response:
        await self._delete(request, server)
        return web.Response(status=202)

    def _named_group(self, request: web.Request, given: Any) -> str:
        name = given.get("name", "") if isinstance(given, dict) else ""
        group = self._neutron.security_group(caller_of(request), name)
        if group is None:
            message = f"Security group {name} not found for project {caller_of(request).project_id}."
            raise ApiError(404, message)
        return str(group["id"])

    async def _add_group(self, request: web.Request, server: Document, given: Any) -> web.Response:
        group = self._named_group(request, given)
        for port in self.life.ports(server):
            if group not in port["security_groups"]:
                self._neutron.set_groups(port, [*port["security_groups"], group])
        return web.Response(status=202)

    async def _remove_group(self, request: web.Request, server: Document, given: Any) -> web.Response:
        group = self._named_group(request, given)
        ports = [port for port in self.life.ports(server) if group in port["security_groups"]]
        if not ports:
            raise ApiError(404, f"Security group {group} not associated with the instance {server['id']}")
        for port in ports:
            self._neutron.set_groups(port, [id for id in port["security_groups"] if id != group])
        return web.Response(status=202)


def _given(body: ServerChangeBody | RebuildBody) -> Document:
    """What a request to change or rebuild a server gives for attributes that the server has."""
    names = {"name", "description", "hostname", "key_name", "user_data", "metadata", "image", "disk_config"}
    given = body.model_dump(include=names & body.model_fields_set)
    for name in {"access_ip_v4", "access_ip_v6"} & body.model_fields_set:
        given[name] = str(getattr(body, name) or "")
    return given


def _hostname(name: str) -> str:
    """The host name that Nova makes of a server's name."""
    return re.sub(r"[^\w.-]+", "", re.sub(r"[ _]", "-", name)).lower().strip(".-")[:63] or "server"


def _search(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error as error:
        raise ApiError(400, f"Invalid filter: {error}") from error
