"""Swift: containers and their objects (Object Store API v1), as far as a container is made, filled and removed."""

import base64
import hashlib
import html
from http.client import responses
from urllib.parse import unquote

from aiohttp import web

from sandbox.openstack.common import ApiError, Authenticator, Document, caller_of, naive_now, service
from sandbox.store import Store

POLICY = "Policy-0"
# Headers that stay with a container, beside its metadata.
_KEPT = ("X-Container-Read", "X-Container-Write")
_METADATA = "X-Container-Meta-"
_LONGEST_NAME = 256


class Swift:
    """The object store; each project has one account, AUTH_<project>."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def app(self, authenticate: Authenticator) -> web.Application:
        """The application to be mounted at /object-store."""
        account = "/v1/{account:AUTH_[0-9a-f]{32}}"
        container, content = f"{account}/{{container}}", f"{account}/{{container}}/{{name:.+}}"
        routes = [
            web.get(account, self._list_containers),
            web.get(f"{account}/", self._list_containers),
            web.put(container, self._create),
            web.post(container, self._update),
            web.get(container, self._list_objects),
            web.delete(container, self._delete),
            web.put(content, self._put_object),
            web.get(content, self._show_object),
            web.delete(content, self._delete_object),
        ]
        return service(routes, _render, authenticate, public=[])

    def _account(self, request: web.Request) -> str:
        project = caller_of(request).project_id
        if request.match_info["account"] != f"AUTH_{project}":
            raise ApiError(403, "Access was denied to this resource.")
        return project

    def _key(self, request: web.Request) -> str:
        return f"{self._account(request)}/{unquote(request.match_info['container'])}"

    def _container(self, request: web.Request) -> Document:
        found = self._store.get("swift.container", self._key(request))
        if found is None:
            raise ApiError(404, "The resource could not be found.")
        return found

    def _objects(self, key: str) -> list[Document]:
        return [each for each in self._store.list("swift.object") if each["container"] == key]

    async def _list_containers(self, request: web.Request) -> web.Response:
        project = self._account(request)
        own = [each for each in self._store.list("swift.container") if each["project_id"] == project]
        return web.json_response([self._brief(each) for each in sorted(own, key=lambda each: str(each["name"]))])

    def _brief(self, container: Document) -> Document:
        objects = self._objects(container["id"])
        size = sum(each["bytes"] for each in objects)
        return {"name": container["name"], "count": len(objects), "bytes": size, "last_modified": container["created"]}

    async def _create(self, request: web.Request) -> web.Response:
        key = self._key(request)
        name = key.partition("/")[2]
        if len(name) > _LONGEST_NAME:
            raise ApiError(400, f"Container name length of {len(name)} longer than {_LONGEST_NAME}")
        found = self._store.get("swift.container", key)
        new: Document = {
            "id": key,
            "name": name,
            "project_id": self._account(request),
            "created": naive_now(),
            "headers": {},
        }
        # To create one that exists is to change it.
        self._put(found or new, request)
        return web.Response(status=201 if found is None else 202)

    async def _update(self, request: web.Request) -> web.Response:
        self._put(self._container(request), request)
        return web.Response(status=204)

    def _put(self, container: Document, request: web.Request) -> None:
        for name, value in request.headers.items():
            kept = next((each for each in _KEPT if each.lower() == name.lower()), None)
            if kept is not None or name.lower().startswith(_METADATA.lower()):
                container["headers"][(kept or name).title()] = value
        # An empty value removes.
        container["headers"] = {name: value for name, value in container["headers"].items() if value}
        self._store.put("swift.container", container["id"], container)

    async def _list_objects(self, request: web.Request) -> web.Response:
        container = self._container(request)
        brief = self._brief(container)
        headers = container["headers"] | {
            "X-Container-Object-Count": str(brief["count"]),
            "X-Container-Bytes-Used": str(brief["bytes"]),
            "X-Storage-Policy": POLICY,
        }
        names = ("name", "bytes", "hash", "content_type", "last_modified")
        marker = request.query.get("marker", "")
        objects = sorted(self._objects(container["id"]), key=lambda each: str(each["name"]))
        shown = [{name: each[name] for name in names} for each in objects if each["name"] > marker]
        return web.json_response(shown, headers=headers)

    async def _delete(self, request: web.Request) -> web.Response:
        container = self._container(request)
        if self._objects(container["id"]):
            raise ApiError(409, "There was a conflict when trying to complete your request.")
        self._store.delete("swift.container", container["id"])
        return web.Response(status=204)

    def _object_key(self, request: web.Request) -> str:
        return f"{self._container(request)['id']}/{unquote(request.match_info['name'])}"

    async def _put_object(self, request: web.Request) -> web.Response:
        key, content = self._object_key(request), await request.read()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        thing = {
            "container": self._container(request)["id"],
            "name": unquote(request.match_info["name"]),
            "bytes": len(content),
            "hash": digest,
            "content_type": request.headers.get("Content-Type", "application/octet-stream"),
            "last_modified": naive_now(),
            "content": base64.b64encode(content).decode(),
        }
        self._store.put("swift.object", key, thing)
        return web.Response(status=201, headers={"ETag": digest})

    async def _show_object(self, request: web.Request) -> web.Response:
        found = self._store.get("swift.object", self._object_key(request))
        if found is None:
            raise ApiError(404, "The resource could not be found.")
        headers = {"Content-Type": found["content_type"], "ETag": found["hash"]}
        return web.Response(body=base64.b64decode(found["content"]), headers=headers)

    async def _delete_object(self, request: web.Request) -> web.Response:
        if not self._store.delete("swift.object", self._object_key(request)):
            raise ApiError(404, "The resource could not be found.")
        return web.Response(status=204)


def _render(error: ApiError) -> web.Response:
    """Swift words its errors as HTML."""
    title = responses.get(error.status, "Error")
    text = f"<html><h1>{title}</h1><p>{html.escape(error.message)}</p></html>"
    return web.Response(text=text, content_type="text/html", status=error.status)
