"""Glance: the image list and single images (Image API v2), read only: images are seeded, not uploaded."""

import html
from http.client import responses

from aiohttp import web

from sandbox.openstack.common import ApiError, Authenticator, Caller, Document, caller_of, page, service, sort, text_of
from sandbox.store import Store

_VERSIONS = ("v2.16", "v2.15", "v2.9", "v2.7", "v2.6", "v2.5", "v2.4", "v2.3", "v2.2", "v2.1", "v2.0")

# Query parameters that are no filter on an attribute of the same name.
_NOT_FILTERS = {"limit", "marker", "sort", "sort_key", "sort_dir", "tag", "size_min", "size_max", "member_status"}


class Glance:
    """The image service."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def app(self, authenticate: Authenticator) -> web.Application:
        """The application to be mounted at /image."""
        routes = [
            web.get("", self._versions),
            web.get("/", self._versions),
            web.get("/versions", self._versions),
            web.get("/v2/images", self._list),
            web.get("/v2/images/{id}", self._show),
        ]
        return service(routes, _render, authenticate, public=["/image", "/image/versions"])

    def image(self, caller: Caller, id: str) -> Document | None:
        """The image if there is one that the caller may use."""
        found = self._store.get("glance.image", id)
        return found if found is not None and _visible(found, caller) else None

    async def _versions(self, request: web.Request) -> web.Response:
        link = {"rel": "self", "href": f"{request.url.origin()}/image/v2/"}
        versions = [
            {"id": version, "status": "CURRENT" if version == _VERSIONS[0] else "SUPPORTED", "links": [link]}
            for version in _VERSIONS
        ]
        status = 200 if request.path.endswith("/versions") else 300
        return web.json_response({"versions": versions}, status=status)

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        caller = caller_of(request)
        images = [image for image in self._store.list("glance.image") if _visible(image, caller)]
        images = [image for image in images if _matches(image, request)]
        if "sort" in query:
            order = [part.partition(":") for part in query["sort"].split(",")]
            keys, directions = [key for key, _, _ in order], [direction or "desc" for _, _, direction in order]
        else:
            keys = query.getall("sort_key", ["created_at"])
            directions = query.getall("sort_dir", ["desc"] * len(keys))
        shown, following = page(request, sort(images, keys, directions), default=25)
        body: Document = {"images": [_view(image) for image in shown], "schema": "/v2/schemas/images"}
        body["first"] = "/v2/images"
        if following is not None:
            body["next"] = following[following.index("/v2/images") :]
        return web.json_response(body)

    async def _show(self, request: web.Request) -> web.Response:
        image = self.image(caller_of(request), request.match_info["id"])
        if image is None:
            raise ApiError(404, f"Failed to find image {request.match_info['id']}")
        return web.json_response(_view(image))


def _visible(image: Document, caller: Caller) -> bool:
    return image["visibility"] in ("public", "community") or image["owner"] == caller.project_id


def _matches(image: Document, request: web.Request) -> bool:
    query = request.query
    # Hidden images are listed only on request.
    if text_of(image["os_hidden"]) != query.get("os_hidden", "false").lower():
        return False
    if not set(query.getall("tag", [])) <= set(image["tags"]):
        return False
    for name, fits in (("size_min", int.__le__), ("size_max", int.__ge__)):
        if name in query and not query[name].isdecimal():
            raise ApiError(400, f"Invalid value '{query[name]}' for '{name}'")
        if name in query and not fits(int(query[name]), image["size"]):
            return False
    for name in set(query) - _NOT_FILTERS - {"os_hidden"}:
        wanted = query[name]
        if name == "visibility" and wanted == "all":
            continue
        choices = wanted.removeprefix("in:").split(",") if wanted.startswith("in:") else [wanted]
        if text_of(image.get(name)) not in [choice.strip('"') for choice in choices]:
            return False
    return True


def _view(image: Document) -> Document:
    path = f"/v2/images/{image['id']}"
    return image | {"self": path, "file": f"{path}/file", "schema": "/v2/schemas/image"}


def _render(error: ApiError) -> web.Response:
    """Glance words its errors as HTML."""
    title = f"{error.status} {responses.get(error.status, 'Error')}"
    text = f"<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n"
    text += f"  {html.escape(error.message)}<br /><br />\n </body>\n</html>"
    return web.Response(text=text, content_type="text/html", status=error.status)
