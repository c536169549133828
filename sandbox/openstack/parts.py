"""What belongs to a server and has paths of its own: addresses, metadata, tags, interfaces, volumes, groups."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from sandbox.openstack.common import ApiError, Caller, Document, caller_of, json_body, new_id
from sandbox.openstack.lifecycle import Lifecycle, check_state, limit_of
from sandbox.openstack.neutron import Neutron
from sandbox.openstack.schema import (
    AttachmentBody,
    InterfaceBody,
    NetworkChoice,
    RebuildBody,
    body_of,
    minor_version,
    validated,
)
from sandbox.openstack.supplies import Supplies
from sandbox.openstack.views import Views
from sandbox.store import Store

# The first microversion (2.N) in which servers have tags, and how many.
_SERVER_TAGS = 26
_MAX_TAGS = 50


# Answers a request about a server.
Handle = Callable[[web.Request, Document], Awaitable[web.Response]]


def on_server(life: Lifecycle, handle: Handle) -> Handler:
    """A handler that is given the server that the path names, if it is one of the caller's project."""

    async def handler(request: web.Request) -> web.StreamResponse:
        server = life.server(request.match_info["id"])
        if server["project_id"] != caller_of(request).project_id:
            raise ApiError(404, f"Instance {server['id']} could not be found.")
        return await handle(request, server)

    return handler


class Parts:
    """The parts of servers."""

    def __init__(self, store: Store, neutron: Neutron, life: Lifecycle, supplies: Supplies, views: Views) -> None:
        self._store = store
        self._neutron = neutron
        self._cinder = supplies.cinder
        self._life = life
        self._supplies = supplies
        self._views = views

    def routes(self) -> list[web.RouteDef]:
        """The routes, relative to /v2.1."""
        paths: tuple[tuple[str, str, Handle], ...] = (
            ("GET", "ips", self._show_addresses),
            ("GET", "ips/{network}", self._show_addresses),
            ("GET", "metadata", self._show_metadata),
            ("PUT", "metadata", self._replace_metadata),
            ("POST", "metadata", self._update_metadata),
            ("GET", "metadata/{key}", self._show_metadata_item),
            ("PUT", "metadata/{key}", self._set_metadata_item),
            ("DELETE", "metadata/{key}", self._delete_metadata_item),
            ("GET", "tags", self._list_tags),
            ("PUT", "tags", self._replace_tags),
            ("DELETE", "tags", self._clear_tags),
            ("GET", "tags/{tag}", self._has_tag),
            ("PUT", "tags/{tag}", self._add_tag),
            ("DELETE", "tags/{tag}", self._remove_tag),
            ("GET", "os-interface", self._list_interfaces),
            ("POST", "os-interface", self._attach_interface),
            ("GET", "os-interface/{port}", self._show_interface),
            ("DELETE", "os-interface/{port}", self._detach_interface),
            ("GET", "os-volume_attachments", self._list_volumes),
            ("POST", "os-volume_attachments", self._attach_volume),
            ("GET", "os-volume_attachments/{volume}", self._show_volume),
            ("DELETE", "os-volume_attachments/{volume}", self._detach_volume),
            ("GET", "os-security-groups", self._list_groups),
        )
        root = "/servers/{id}"
        return [web.route(method, f"{root}/{path}", on_server(self._life, handle)) for method, path, handle in paths]

    async def _show_addresses(self, request: web.Request, server: Document) -> web.Response:
        def brief(entries: list[Document]) -> list[Document]:
            return [{"version": entry["version"], "addr": entry["addr"]} for entry in entries]

        view = {network: brief(entries) for network, entries in self._views.addresses(server).items()}
        network = request.match_info.get("network")
        if network is None:
            return web.json_response({"addresses": view})
        if network not in view:
            raise ApiError(404, "Instance is not a member of specified network")
        return web.json_response({network: view[network]})

    # Metadata

    async def _show_metadata(self, _: web.Request, server: Document) -> web.Response:
        return web.json_response({"metadata": server["metadata"]})

    async def _replace_metadata(self, request: web.Request, server: Document) -> web.Response:
        return self._put_metadata(server, await self._metadata_of(request))

    async def _update_metadata(self, request: web.Request, server: Document) -> web.Response:
        return self._put_metadata(server, server["metadata"] | await self._metadata_of(request))

    async def _metadata_of(self, request: web.Request) -> Document:
        given = await json_body(request, "metadata")
        checked = validated({"imageRef": new_id(), "metadata": given}, "metadata", RebuildBody, minor_version(request))
        return dict(checked.metadata or {})

    def _put_metadata(self, server: Document, metadata: Document) -> web.Response:
        limit = limit_of(self._store, server["project_id"], "metadata_items")
        if len(metadata) > limit:
            raise ApiError(403, f"Maximum number of metadata items exceeds {limit}")
        self._life.change(server["id"], metadata=metadata)
        return web.json_response({"metadata": metadata})

    async def _show_metadata_item(self, request: web.Request, server: Document) -> web.Response:
        key = _metadata_key(request, server)
        return web.json_response({"meta": {key: server["metadata"][key]}})

    async def _set_metadata_item(self, request: web.Request, server: Document) -> web.Response:
        meta = await json_body(request, "meta")
        if list(meta) != [request.match_info["key"]]:
            raise ApiError(400, "Request body and URI mismatch")
        self._put_metadata(server, server["metadata"] | meta)
        return web.json_response({"meta": meta})

    async def _delete_metadata_item(self, request: web.Request, server: Document) -> web.Response:
        del server["metadata"][_metadata_key(request, server)]
        self._put_metadata(server, server["metadata"])
        return web.Response(status=204)

    # Tags

    async def _list_tags(self, request: web.Request, server: Document) -> web.Response:
        _need_tags(request)
        return web.json_response({"tags": server["tags"]})

    async def _replace_tags(self, request: web.Request, server: Document) -> web.Response:
        _need_tags(request)
        tags = (await json_body(request)).get("tags")
        if not isinstance(tags, list):
            raise ApiError(400, "Invalid input for field/attribute tags. 'tags' is a required property")
        return self._put_tags(server, [_checked_tag(tag) for tag in tags])

    def _put_tags(self, server: Document, tags: list[str]) -> web.Response:
        tags = sorted(set(tags))
        if len(tags) > _MAX_TAGS:
            raise ApiError(400, f"The number of tags exceeded the per-server limit {_MAX_TAGS}")
        self._life.change(server["id"], tags=tags)
        return web.json_response({"tags": tags})

    async def _clear_tags(self, request: web.Request, server: Document) -> web.Response:
        _need_tags(request)
        self._life.change(server["id"], tags=[])
        return web.Response(status=204)

    async def _has_tag(self, request: web.Request, server: Document) -> web.Response:
        _existing_tag(request, server)
        return web.Response(status=204)

    async def _add_tag(self, request: web.Request, server: Document) -> web.Response:
        _need_tags(request)
        tag = _checked_tag(request.match_info["tag"])
        if tag in server["tags"]:
            return web.Response(status=204)
        self._put_tags(server, [*server["tags"], tag])
        return web.Response(status=201, headers={"Location": str(request.url)})

    async def _remove_tag(self, request: web.Request, server: Document) -> web.Response:
        tag = _existing_tag(request, server)
        self._put_tags(server, [each for each in server["tags"] if each != tag])
        return web.Response(status=204)

    # Interfaces, volumes, security groups

    async def _list_interfaces(self, _: web.Request, server: Document) -> web.Response:
        return web.json_response({"interfaceAttachments": [_interface(port) for port in self._life.ports(server)]})

    def _interface_port(self, request: web.Request, server: Document) -> Document:
        id = request.match_info["port"]
        port = self._neutron.port(caller_of(request), id)
        if port is None:
            raise ApiError(404, f"Port id {id} could not be found.")
        if port["device_id"] != server["id"]:
            raise ApiError(404, f"Instance {server['id']} does not have a port with id {id}")
        return port

    async def _show_interface(self, request: web.Request, server: Document) -> web.Response:
        return web.json_response({"interfaceAttachment": _interface(self._interface_port(request, server))})

    async def _attach_interface(self, request: web.Request, server: Document) -> web.Response:
        wanted = await body_of(request, "interfaceAttachment", InterfaceBody)
        caller = caller_of(request)
        if wanted.net_id and wanted.port_id:
            raise ApiError(400, "Must not input both network_id and port_id")
        if wanted.fixed_ips and not wanted.net_id:
            raise ApiError(400, "Must input network_id when request IP address")
        check_state(server, "attach_interface", ("active", "stopped"))
        if wanted.port_id is not None:
            port = self._supplies.free_port(caller, wanted.port_id, 404)
        else:
            if wanted.net_id is not None and self._neutron.network(caller, wanted.net_id) is None:
                raise ApiError(404, f"Network {wanted.net_id} could not be found.")
            choice = NetworkChoice(uuid=wanted.net_id or self._only_network(caller))
            choice.fixed_ip = wanted.fixed_ips[0].ip_address if wanted.fixed_ips else None
            port = self._supplies.make_port(caller, choice, [])
            server["own_ports"].append(port["id"])
        self._neutron.bind(port, server["id"], server["availability_zone"])
        self._life.change(server["id"], own_ports=server["own_ports"], ports=[*server["ports"], port["id"]])
        await self._life.addresses_changed(server["id"])
        return web.json_response({"interfaceAttachment": _interface(port)})

    def _only_network(self, caller: Caller) -> str:
        usable = self._neutron.networks_for_servers(caller)
        if len(usable) != 1:
            message = "More than one possible network found. Specify network ID(s) to select which one(s) to"
            raise ApiError(400, f"{message} connect to.")
        return str(usable[0]["id"])

    async def _detach_interface(self, request: web.Request, server: Document) -> web.Response:
        port = self._interface_port(request, server)
        check_state(server, "detach_interface", ("active", "stopped"))
        if port["id"] in server["own_ports"]:
            self._neutron.remove_port(port)
        else:
            self._neutron.unbind(port)
        for name in ("own_ports", "ports"):
            server[name] = [id for id in server[name] if id != port["id"]]
        self._life.change(server["id"], own_ports=server["own_ports"], ports=server["ports"])
        await self._life.addresses_changed(server["id"])
        return web.Response(status=202)

    async def _list_volumes(self, _: web.Request, server: Document) -> web.Response:
        return web.json_response({"volumeAttachments": [_attachment(server, each) for each in server["volumes"]]})

    def _attached(self, request: web.Request, server: Document) -> Document:
        id = request.match_info["volume"]
        volumes: list[Document] = server["volumes"]
        for volume in volumes:
            if volume["id"] == id:
                return volume
        raise ApiError(404, f"Instance {server['id']} is not attached to volume {id}")

    async def _show_volume(self, request: web.Request, server: Document) -> web.Response:
        return web.json_response({"volumeAttachment": _attachment(server, self._attached(request, server))})

    async def _attach_volume(self, request: web.Request, server: Document) -> web.Response:
        wanted = await body_of(request, "volumeAttachment", AttachmentBody)
        if self._cinder.volume(caller_of(request), wanted.volume_id) is None:
            raise ApiError(404, f"Volume {wanted.volume_id} could not be found.")
        self._supplies.free_volume(caller_of(request), wanted.volume_id)
        check_state(server, "attach_volume", ("active", "stopped"))
        taken = [volume["device"] for volume in server["volumes"]]
        device = next(name for letter in "bcdefghij" if (name := f"/dev/vd{letter}") not in taken)
        volume: Document = {"id": wanted.volume_id, "device": device}
        volume["delete_on_termination"] = wanted.delete_on_termination
        self._cinder.attach(volume["id"], server["id"], device)
        self._life.change(server["id"], volumes=[*server["volumes"], volume])
        return web.json_response({"volumeAttachment": _attachment(server, volume)})

    async def _detach_volume(self, request: web.Request, server: Document) -> web.Response:
        volume = self._attached(request, server)
        if server["volume"] and volume["device"] == "/dev/vda":
            raise ApiError(403, "Cannot detach a root device volume")
        check_state(server, "detach_volume", ("active", "stopped"))
        self._cinder.detach(volume["id"])
        self._life.change(server["id"], volumes=[each for each in server["volumes"] if each != volume])
        return web.Response(status=202)

    async def _list_groups(self, _: web.Request, server: Document) -> web.Response:
        ids = [id for port in self._life.ports(server) for id in port["security_groups"]]
        groups = [self._store.get("neutron.security_group", id) for id in dict.fromkeys(ids)]
        views = [
            {
                "id": group["id"],
                "name": group["name"],
                "description": group["description"],
                "tenant_id": group["project_id"],
                "rules": [],
            }
            for group in groups
            if group is not None
        ]
        return web.json_response({"security_groups": views})


def _interface(port: Document) -> Document:
    return {
        "port_id": port["id"],
        "net_id": port["network_id"],
        "mac_addr": port["mac_address"],
        "port_state": port["status"],
        "fixed_ips": port["fixed_ips"],
    }


def _attachment(server: Document, volume: Document) -> Document:
    return {"id": volume["id"], "volumeId": volume["id"], "serverId": server["id"], "device": volume["device"]}


def _metadata_key(request: web.Request, server: Document) -> str:
    key = request.match_info["key"]
    if key not in server["metadata"]:
        raise ApiError(404, "Metadata item was not found")
    return key


def _need_tags(request: web.Request) -> None:
    if minor_version(request) < _SERVER_TAGS:
        raise ApiError(404, "The resource could not be found.")


def _checked_tag(tag: Any) -> str:
    if not isinstance(tag, str) or not re.fullmatch(r"[^,/]{1,60}", tag):
        message = f"Tag '{tag}' is invalid. It must be a non empty string without characters '/' and ','."
        raise ApiError(400, f"{message} Validation of its length: 1 to 60.")
    return tag


def _existing_tag(request: web.Request, server: Document) -> str:
    _need_tags(request)
    tag = request.match_info["tag"]
    if tag not in server["tags"]:
        raise ApiError(404, f"Server {server['id']} has no tag '{tag}'")
    return tag
