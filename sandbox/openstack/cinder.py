"""Cinder: volumes, their types and quotas (Block Storage API v3, 3.0-3.70).

Changes of state are asynchronous, as in Cinder: a new volume is `creating`, one that grows `extending`, one that goes
`deleting`, until a moment later. Nova attaches and detaches, through `attach` and `detach`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from sandbox.openstack.common import (
    ApiError,
    Authenticator,
    Caller,
    Document,
    caller_of,
    is_uuid,
    json_body,
    naive_now,
    new_id,
    page,
    service,
    sort,
    text_of,
)
from sandbox.store import Store

MAX_VERSION = 70
ZONE = "nova"
TYPE = "__DEFAULT__"
# Cinder's defaults, by the names in `os-quota-sets`; gigabytes are GiB.
QUOTAS = {
    "volumes": 10, "gigabytes": 1000, "per_volume_gigabytes": -1, "snapshots": 10, "backups": 10,
    "backup_gigabytes": 1000,
}  # fmt: skip

_HEADER = "OpenStack-API-Version"
_MINOR = web.RequestKey("volume_microversion", int)
# The first microversion (3.N) in which a volume may grow while it is attached.
_ONLINE_EXTEND = 42
_LONGEST_NAME = 255
# How long a change of state takes: enough to be seen, too little to be waited for.
_WORK_SECONDS = 0.05
_WHILE_WORKING = {"creating": "available", "extending": "available"}
_DELETABLE = ("available", "error", "error_restoring", "error_extending", "error_managing")
_FAULTS = {
    400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 406: "computeFault",
    409: "conflictingRequest", 413: "overLimit",
}  # fmt: skip
_CHANGEABLE = {"name", "description", "metadata", "display_name", "display_description"}
_KNOWN = _CHANGEABLE | {
    "size", "availability_zone", "volume_type", "imageRef", "snapshot_id", "source_volid", "consistencygroup_id",
    "multiattach", "backup_id", "group_id",
}  # fmt: skip


class Cinder:
    """The block storage service."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()

    def app(self, authenticate: Authenticator) -> web.Application:
        """The application to be mounted at /volume."""
        api = [
            web.get("/volumes", self._list),
            web.get("/volumes/detail", self._list),
            web.post("/volumes", self._create),
            web.get("/volumes/{id}", self._show),
            web.put("/volumes/{id}", self._update),
            web.delete("/volumes/{id}", self._delete),
            web.post("/volumes/{id}/action", self._action),
            web.get("/os-availability-zone", self._list_zones),
            web.get("/types", self._list_types),
            web.get("/types/{id}", self._show_type),
            web.get("/limits", self._show_limits),
            web.get("/os-quota-sets/{owner}", self._show_quota),
            web.put("/os-quota-sets/{owner}", self._set_quota),
        ]
        # The project in the path is optional from 3.67 on.
        routes = [
            web.RouteDef(route.method, f"/v3{project}{route.path}", route.handler, route.kwargs)
            for project in ("", "/{project:[0-9a-f]{32}}")
            for route in api
        ]
        routes += [web.get(path, self._versions) for path in ("", "/", "/v3", "/v3/")]
        app = service(routes, _render, authenticate, ["/volume", "/volume/v3"], outermost=[_negotiate])
        app.on_startup.append(self._resume)
        app.on_cleanup.append(self._stop)
        return app

    async def _versions(self, request: web.Request) -> web.Response:
        version = {
            "id": "v3.0",
            "status": "CURRENT",
            "version": f"3.{MAX_VERSION}",
            "min_version": "3.0",
            "updated": "2022-03-30T00:00:00Z",
            "links": [{"rel": "self", "href": f"{request.url.origin()}/volume/v3/"}],
            "media-types": [{"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}],
        }
        status = 200 if request.path.rstrip("/").endswith("v3") else 300
        return web.json_response({"versions": [version]}, status=status)

    # For Nova

    def volume(self, caller: Caller, id: str) -> Document | None:
        """The volume if there is one in the caller's project."""
        found = self._store.get("cinder.volume", id)
        return found if found is not None and found["project_id"] == caller.project_id else None

    def provision(self, caller: Caller, size: int, image: str) -> Document:
        """A new volume with the content of an image, available at once. Raises ApiError 413 above the quota."""
        return self._made(caller, {"size": size, "name": ""}, "available", image)

    def attach(self, id: str, server: str, device: str) -> None:
        """Attach a volume to a server, as `device` (/dev/vdb, …)."""
        volume = self._store.get("cinder.volume", id)
        if volume is not None:
            attachment = {
                "server_id": server,
                "attachment_id": new_id(),
                "device": device,
                "attached_at": naive_now(),
            }
            self._change(volume, status="in-use", attachments=[attachment])

    def detach(self, id: str, *, delete: bool = False) -> None:
        """Detach a volume that may be gone, and remove it where that was asked for."""
        volume = self._store.get("cinder.volume", id)
        if volume is not None:
            self._change(volume, status="deleting" if delete else "available", attachments=[])
            if delete:
                self._spawn(self._remove, id)

    # Changes of state

    def _change(self, volume: Document, **changes: Any) -> None:
        self._store.put("cinder.volume", volume["id"], volume | changes | {"updated_at": naive_now()})

    def _spawn(self, work: Callable[[str], Awaitable[None]], id: str) -> None:
        async def later() -> None:
            await asyncio.sleep(_WORK_SECONDS)
            await work(id)

        task = asyncio.ensure_future(later())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resume(self, _: web.Application) -> None:
        for volume in self._store.list("cinder.volume"):
            if volume["status"] in _WHILE_WORKING:
                self._spawn(self._settle, volume["id"])
            elif volume["status"] == "deleting":
                self._spawn(self._remove, volume["id"])

    async def _stop(self, _: web.Application) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _settle(self, id: str) -> None:
        volume = self._store.get("cinder.volume", id)
        if volume is not None and volume["status"] in _WHILE_WORKING:
            self._change(volume, status="in-use" if volume["attachments"] else "available")

    async def _remove(self, id: str) -> None:
        self._store.delete("cinder.volume", id)

    # Volumes

    def _own(self, request: web.Request) -> Document:
        id = request.match_info["id"]
        volume = self.volume(caller_of(request), id)
        if volume is None:
            raise ApiError(404, f"Volume {id} could not be found.")
        return volume

    async def _list(self, request: web.Request) -> web.Response:
        query, project = request.query, caller_of(request).project_id
        volumes = [volume for volume in self._store.list("cinder.volume") if volume["project_id"] == project]
        for name in ("name", "status", "availability_zone", "volume_type", "bootable"):
            if name in query:
                volumes = [volume for volume in volumes if text_of(volume[name]) == query[name]]
        order = [part.partition(":") for part in query.get("sort", "created_at:desc").split(",")]
        volumes = sort(volumes, [key for key, _, _ in order], [direction for _, _, direction in order])
        shown, following = page(request, volumes)
        detailed = request.path.endswith("/detail")
        body: Document = {"volumes": [_view(volume) if detailed else _brief(volume) for volume in shown]}
        if following is not None:
            body["volumes_links"] = [{"rel": "next", "href": following}]
        return web.json_response(body)

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response({"volume": _view(self._own(request))})

    async def _create(self, request: web.Request) -> web.Response:
        given = await json_body(request, "volume")
        if unknown := sorted(set(given) - _KNOWN):
            raise ApiError(400, f"Additional properties are not allowed ('{unknown[0]}' was unexpected)")
        size = given.get("size")
        if not str(size).isdecimal() or int(str(size)) < 1:
            raise ApiError(400, f"Invalid input received: Invalid volume size provided for create request: {size}")
        _check(given)
        zone = given.get("availability_zone") or ZONE
        if zone != ZONE:
            raise ApiError(400, f"Invalid input received: Availability zone '{zone}' is invalid.")
        kind = given.get("volume_type") or TYPE
        if not any(kind in (each["id"], each["name"]) for each in self._store.list("cinder.type")):
            raise ApiError(404, f"Volume type with name {kind} could not be found.")
        volume = self._made(caller_of(request), given | {"size": int(str(size))}, "creating", given.get("imageRef"))
        self._spawn(self._settle, volume["id"])
        return web.json_response({"volume": _view(volume)}, status=202)

    def _made(self, caller: Caller, given: Document, status: str, image: str | None) -> Document:
        own = [each for each in self._store.list("cinder.volume") if each["project_id"] == caller.project_id]
        if len(own) >= self._limit(caller.project_id, "volumes"):
            message = f"Maximum number of volumes allowed ({len(own)}) exceeded for quota 'volumes'."
            raise ApiError(413, f"VolumeLimitExceeded: {message}")
        self._check_gigabytes(caller.project_id, given["size"])
        volume = {
            "id": new_id(),
            "name": given.get("name", given.get("display_name")),
            "description": given.get("description", given.get("display_description")),
            "size": given["size"],
            "status": status,
            "metadata": given.get("metadata") or {},
            "availability_zone": ZONE,
            "volume_type": given.get("volume_type") or TYPE,
            "bootable": text_of(image is not None),
            "image": image,
            "multiattach": bool(given.get("multiattach", False)),
            "attachments": [],
            "project_id": caller.project_id,
            "user_id": caller.user_id,
            "created_at": naive_now(),
            "updated_at": None,
        }
        self._store.put("cinder.volume", str(volume["id"]), volume)
        return volume

    async def _update(self, request: web.Request) -> web.Response:
        volume = self._own(request)
        given = await json_body(request, "volume")
        if unknown := sorted(set(given) - _CHANGEABLE):
            raise ApiError(400, f"Additional properties are not allowed ('{unknown[0]}' was unexpected)")
        _check(given)
        self._change(volume, **given)
        return web.json_response({"volume": _view(self._own(request))})

    async def _delete(self, request: web.Request) -> web.Response:
        volume = self._own(request)
        if volume["status"] not in _DELETABLE or volume["attachments"]:
            message = (
                f"Volume status must be {' or '.join(_DELETABLE)} and must not be migrating, attached, belong to a "
            )
            raise ApiError(400, f"Invalid volume: {message}group, have snapshots, awaiting a transfer.")
        self._change(volume, status="deleting")
        self._spawn(self._remove, volume["id"])
        return web.Response(status=202)

    async def _action(self, request: web.Request) -> web.Response:
        volume = self._own(request)
        body = await json_body(request)
        if set(body) != {"os-extend"}:
            raise ApiError(400, f"There is no such action: {' '.join(sorted(body))}")
        given = body["os-extend"]
        size = given.get("new_size") if isinstance(given, dict) else None
        if not str(size).isdecimal():
            raise ApiError(400, f"Invalid input for field/attribute new_size. Value: {size}.")
        possible = ("available", "in-use") if request[_MINOR] >= _ONLINE_EXTEND else ("available",)
        if volume["status"] not in possible:
            message = f"Volume {volume['id']} status must be '{possible}' to extend, currently {volume['status']}."
            raise ApiError(400, f"Invalid volume: {message}")
        if int(str(size)) <= volume["size"]:
            message = f"New size for extend must be greater than current size. (current: {volume['size']}, "
            raise ApiError(400, f"Invalid input received: {message}extended: {size}).")
        self._check_gigabytes(volume["project_id"], int(str(size)) - volume["size"])
        self._change(volume, status="extending", size=int(str(size)))
        self._spawn(self._settle, volume["id"])
        return web.Response(status=202)

    # Zones, types and quotas

    async def _list_zones(self, _: web.Request) -> web.Response:
        return web.json_response({"availabilityZoneInfo": [{"zoneName": ZONE, "zoneState": {"available": True}}]})

    async def _list_types(self, _: web.Request) -> web.Response:
        return web.json_response({"volume_types": self._store.list("cinder.type")})

    async def _show_type(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        kind = self._store.get("cinder.type", id)
        if kind is None:
            raise ApiError(404, f"Volume type {id} could not be found.")
        return web.json_response({"volume_type": kind})

    def _limit(self, project: str, name: str) -> int:
        limit: int = (self._store.get("cinder.quota", project) or {}).get(name, QUOTAS[name])
        return limit if limit >= 0 else 2**31

    def _check_gigabytes(self, project: str, more: int) -> None:
        own = [each["size"] for each in self._store.list("cinder.volume") if each["project_id"] == project]
        limit = self._limit(project, "gigabytes")
        if sum(own) + more > limit:
            message = f"Requested volume or snapshot exceeds allowed gigabytes quota. Requested {more}G, quota is "
            raise ApiError(
                413, f"VolumeSizeExceedsAvailableQuota: {message}{limit}G and {sum(own)}G has been consumed."
            )

    async def _show_limits(self, request: web.Request) -> web.Response:
        project = caller_of(request).project_id
        limits = QUOTAS | (self._store.get("cinder.quota", project) or {})
        own = [each["size"] for each in self._store.list("cinder.volume") if each["project_id"] == project]
        absolute = {
            "maxTotalVolumes": limits["volumes"],
            "maxTotalVolumeGigabytes": limits["gigabytes"],
            "maxTotalSnapshots": limits["snapshots"],
            "maxTotalBackups": limits["backups"],
            "maxTotalBackupGigabytes": limits["backup_gigabytes"],
            "totalVolumesUsed": len(own),
            "totalGigabytesUsed": sum(own),
            "totalSnapshotsUsed": 0,
            "totalBackupsUsed": 0,
            "totalBackupGigabytesUsed": 0,
        }
        return web.json_response({"limits": {"rate": [], "absolute": absolute}})

    async def _show_quota(self, request: web.Request) -> web.Response:
        project = request.match_info["owner"]
        limits = QUOTAS | (self._store.get("cinder.quota", project) or {})
        return web.json_response({"quota_set": {"id": project, **limits}})

    async def _set_quota(self, request: web.Request) -> web.Response:
        given = await json_body(request, "quota_set")
        for name, limit in given.items():
            if name not in QUOTAS or not isinstance(limit, int):
                raise ApiError(400, f"Invalid input for field/attribute {name}. Value: {limit}.")
        project = request.match_info["owner"]
        self._store.put("cinder.quota", project, (self._store.get("cinder.quota", project) or {}) | given)
        return web.json_response({"quota_set": QUOTAS | (self._store.get("cinder.quota", project) or {})})


def seed_types(store: Store) -> None:
    """Put into a store the volume types of a new cloud; an old store that has them is left as it is."""
    if not store.list("cinder.type"):
        for name in (TYPE, "ssd"):
            kind = {"id": new_id(), "name": name, "is_public": True, "description": None, "extra_specs": {}}
            store.put("cinder.type", str(kind["id"]), kind)


def _check(given: Document) -> None:
    for name in ("name", "description"):
        if len(given.get(name) or "") > _LONGEST_NAME:
            raise ApiError(400, f"{name} has {len(given[name])} characters, more than {_LONGEST_NAME}.")
    metadata = given.get("metadata") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ApiError(400, f"Invalid input for field/attribute metadata. Value: {metadata}.")
    for name in ("snapshot_id", "source_volid", "imageRef"):
        if given.get(name) and not is_uuid(given[name]):
            raise ApiError(400, f"Invalid input for field/attribute {name}. Value: {given[name]}.")


def _brief(volume: Document) -> Document:
    return {name: volume[name] for name in ("id", "name")} | {"links": []}


def _view(volume: Document) -> Document:
    shown = {name: value for name, value in volume.items() if name not in ("project_id", "image")}
    attachments = [
        attachment | {"id": volume["id"], "volume_id": volume["id"], "host_name": "sandbox"}
        for attachment in volume["attachments"]
    ]
    return shown | {
        "attachments": attachments,
        "links": [],
        "encrypted": False,
        "snapshot_id": None,
        "source_volid": None,
        "consistencygroup_id": None,
        "replication_status": None,
        "os-vol-tenant-attr:tenant_id": volume["project_id"],
    }


@web.middleware
async def _negotiate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find out which microversion a request wants, and say in the answer which one it got."""
    minor = 0
    for part in request.headers.get(_HEADER, "").split(","):
        name, _, version = part.strip().partition(" ")
        match = re.fullmatch(r"3\.(\d+)", version.strip())
        if name == "volume" and version.strip() == "latest":
            minor = MAX_VERSION
        elif name == "volume" and match is not None:
            minor = int(match[1])
    if minor > MAX_VERSION:
        message = f"Version 3.{minor} is not supported by the API. Minimum is 3.0 and maximum is 3.{MAX_VERSION}."
        return _render(ApiError(406, message))
    request[_MINOR] = minor
    response = await handler(request)
    response.headers[_HEADER] = f"volume 3.{minor}"
    response.headers["Vary"] = _HEADER
    return response


def _render(error: ApiError) -> web.Response:
    name = _FAULTS.get(error.status, "computeFault")
    return web.json_response({name: {"code": error.status, "message": error.message}}, status=error.status)
