"""Nova without its servers: versions, key pairs, server groups, flavors, zones, quotas (Compute API v2.1, 2.1-2.90)."""

import base64
import hashlib
import re

from aiohttp import web
from aiohttp.typedefs import Handler
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)

from sandbox.openstack.common import (
    ApiError,
    Authenticator,
    Document,
    caller_of,
    json_body,
    naive_now,
    new_id,
    page,
    service,
    sort,
    text_of,
)
from sandbox.openstack.lifecycle import QUOTAS, ZONES, limit_of
from sandbox.openstack.schema import MICROVERSION, KeypairBody, ServerGroupBody, body_of, minor_version
from sandbox.openstack.servers import Servers
from sandbox.store import Store

MIN_VERSION = 1
MAX_VERSION = 90

_OPENSTACK_HEADER = "OpenStack-API-Version"
_NOVA_HEADER = "X-OpenStack-Nova-API-Version"

_FAULTS = {
    400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 405: "badMethod",
    409: "conflictingRequest", 413: "overLimit", 415: "badMediaType", 429: "overLimit", 501: "notImplemented",
    503: "serviceUnavailable",
}  # fmt: skip


class Nova:
    """The compute service."""

    def __init__(self, store: Store, servers: Servers) -> None:
        self._store = store
        self._servers = servers

    def app(self, authenticate: Authenticator) -> web.Application:
        """The application to be mounted at /compute."""
        api = [
            web.get("/os-keypairs", self._list_keypairs),
            web.post("/os-keypairs", self._create_keypair),
            web.get("/os-keypairs/{name}", self._show_keypair),
            web.delete("/os-keypairs/{name}", self._delete_keypair),
            web.get("/os-server-groups", self._list_groups),
            web.post("/os-server-groups", self._create_group),
            web.get("/os-server-groups/{id}", self._show_group),
            web.delete("/os-server-groups/{id}", self._delete_group),
            web.get("/flavors", self._list_flavors),
            web.get("/flavors/detail", self._list_flavors),
            web.get("/flavors/{id}", self._show_flavor),
            web.get("/flavors/{id}/os-extra_specs", self._show_extra_specs),
            web.get("/os-availability-zone", self._list_zones),
            web.get("/limits", self._show_limits),
            web.get("/os-quota-sets/{project}", self._show_quota),
            web.get("/os-quota-sets/{project}/defaults", self._show_default_quota),
            web.get("/os-quota-sets/{project}/detail", self._show_quota_details),
            web.put("/os-quota-sets/{project}", self._set_quota),
            web.delete("/os-quota-sets/{project}", self._reset_quota),
            web.get("/extensions", self._list_extensions),
            *self._servers.routes(),
        ]
        routes = [web.RouteDef(route.method, f"/v2.1{route.path}", route.handler, route.kwargs) for route in api]
        routes += [
            web.get("", self._versions),
            web.get("/", self._versions),
            web.get("/v2.1", self._version),
            web.get("/v2.1/", self._version),
        ]
        app = service(routes, _render, authenticate, ["/compute", "/compute/v2.1"], outermost=[_negotiate])
        app.on_startup.append(self._servers.life.start)
        app.on_cleanup.append(self._servers.life.stop)
        return app

    # Versions

    async def _versions(self, request: web.Request) -> web.Response:
        return web.json_response({"versions": [_version_document(request)]})

    async def _version(self, request: web.Request) -> web.Response:
        media = {"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}
        return web.json_response({"version": _version_document(request) | {"media-types": [media]}})

    async def _list_extensions(self, _: web.Request) -> web.Response:
        return web.json_response({"extensions": []})

    # Key pairs: they belong to users, and are known by their names

    def _keypairs(self, request: web.Request) -> list[Document]:
        user = request.query.get("user_id", caller_of(request).user_id)
        return [pair for pair in self._store.list("nova.keypair") if pair["user_id"] == user]

    def _keypair(self, request: web.Request) -> Document:
        name = request.match_info["name"]
        for pair in self._keypairs(request):
            if pair["name"] == name:
                return pair
        raise ApiError(404, f"Keypair {name} not found for user {caller_of(request).user_id}")

    async def _list_keypairs(self, request: web.Request) -> web.Response:
        pairs, following = page(request, self._keypairs(request), key="name")
        fields = ("name", "public_key", "fingerprint", "type")
        body: Document = {"keypairs": [{"keypair": _keypair_view(request, pair, fields)} for pair in pairs]}
        if following is not None:
            body["keypairs_links"] = [{"rel": "next", "href": following}]
        return web.json_response(body)

    async def _show_keypair(self, request: web.Request) -> web.Response:
        pair = self._keypair(request)
        return web.json_response({"keypair": _keypair_view(request, pair, tuple(pair))})

    async def _create_keypair(self, request: web.Request) -> web.Response:
        wanted = await body_of(request, "keypair", KeypairBody)
        user = wanted.user_id or caller_of(request).user_id
        own = [pair for pair in self._store.list("nova.keypair") if pair["user_id"] == user]
        if len(own) >= limit_of(self._store, caller_of(request).project_id, "key_pairs"):
            raise ApiError(403, "Quota exceeded, too many key pairs.")
        if any(pair["name"] == wanted.name for pair in own):
            raise ApiError(409, f"Key pair '{wanted.name}' already exists.")
        private_key = None
        public_key = wanted.public_key
        if public_key is None:
            private_key, public_key = _generate_key_pair()
        pair = {
            "id": self._store.next_number("nova.keypair"),
            "name": wanted.name,
            "user_id": user,
            "type": wanted.type,
            "public_key": public_key,
            "fingerprint": _fingerprint(public_key),
            "created_at": naive_now(),
            "updated_at": None,
            "deleted_at": None,
            "deleted": False,
        }
        self._store.put("nova.keypair", f"{user}/{wanted.name}", pair)
        fields = ("name", "public_key", "fingerprint", "user_id", "type")
        view = _keypair_view(request, pair, fields) | ({"private_key": private_key} if private_key else {})
        return web.json_response({"keypair": view}, status=201 if minor_version(request) > MIN_VERSION else 200)

    async def _delete_keypair(self, request: web.Request) -> web.Response:
        pair = self._keypair(request)
        self._store.delete("nova.keypair", f"{pair['user_id']}/{pair['name']}")
        return web.Response(status=204 if minor_version(request) > MIN_VERSION else 202)

    # Server groups

    def _group(self, request: web.Request) -> Document:
        group = self._store.get("nova.server_group", request.match_info["id"])
        if group is None or group["project_id"] != caller_of(request).project_id:
            raise ApiError(404, f"Instance group {request.match_info['id']} could not be found.")
        return group

    async def _list_groups(self, request: web.Request) -> web.Response:
        groups = self._store.list("nova.server_group")
        groups = [group for group in groups if group["project_id"] == caller_of(request).project_id]
        offset = request.query.get("offset", "0")
        if not offset.isdecimal():
            raise ApiError(400, "offset param must be an integer")
        shown, _ = page(request, groups[int(offset) :])
        return web.json_response({"server_groups": [self._group_view(request, group) for group in shown]})

    async def _show_group(self, request: web.Request) -> web.Response:
        return web.json_response({"server_group": self._group_view(request, self._group(request))})

    async def _create_group(self, request: web.Request) -> web.Response:
        wanted = await body_of(request, "server_group", ServerGroupBody)
        caller = caller_of(request)
        policy = wanted.policy or (wanted.policies[0] if wanted.policies else None)
        if policy is None:
            raise ApiError(400, "'policies' is a required property")
        known = ["anti-affinity", "affinity"]
        if minor_version(request) >= _SOFT_POLICIES:
            known += ["soft-anti-affinity", "soft-affinity"]
        if policy not in known:
            message = f"'{policy}' is not one of {known}"
            raise ApiError(400, f"Invalid input for field/attribute policy. Value: {policy}. {message}")
        if wanted.rules and policy != "anti-affinity":
            raise ApiError(400, "Only anti-affinity policy supports rules.")
        own = [group for group in self._store.list("nova.server_group") if group["project_id"] == caller.project_id]
        if len(own) >= limit_of(self._store, caller.project_id, "server_groups"):
            raise ApiError(403, "Quota exceeded, too many server groups.")
        group: Document = {"id": new_id(), "name": wanted.name, "policy": policy, "rules": wanted.rules}
        group |= {"project_id": caller.project_id, "user_id": caller.user_id}
        self._store.put("nova.server_group", group["id"], group)
        return web.json_response({"server_group": self._group_view(request, group)})

    async def _delete_group(self, request: web.Request) -> web.Response:
        self._store.delete("nova.server_group", self._group(request)["id"])
        return web.Response(status=204)

    def _group_view(self, request: web.Request, group: Document) -> Document:
        minor = minor_version(request)
        view = {"id": group["id"], "name": group["name"], "members": self._servers.life.members(group["id"])}
        if minor >= _ONE_POLICY:
            view |= {"policy": group["policy"], "rules": group["rules"]}
        else:
            view |= {"policies": [group["policy"]], "metadata": {}}
        if minor >= _GROUP_OWNERS:
            view |= {"project_id": group["project_id"], "user_id": group["user_id"]}
        return view

    # Flavors and zones

    async def _list_flavors(self, request: web.Request) -> web.Response:
        query = request.query
        flavors = self._store.list("nova.flavor")
        for name, field in (("minDisk", "disk"), ("minRam", "ram")):
            if name in query:
                if not query[name].isdecimal():
                    raise ApiError(400, f"Invalid {name} filter [{query[name]}]")
                flavors = [flavor for flavor in flavors if flavor[field] >= int(query[name])]
        if "is_public" in query and query["is_public"].lower() != "none":
            flavors = [flavor for flavor in flavors if text_of(flavor["is_public"]) == query["is_public"].lower()]
        flavors = sort(flavors, query.getall("sort_key", []), query.getall("sort_dir", []))
        shown, following = page(request, flavors)
        detailed = request.path.endswith("/detail")
        body: Document = {"flavors": [_flavor_view(request, flavor, detailed) for flavor in shown]}
        if following is not None:
            body["flavors_links"] = [{"rel": "next", "href": following}]
        return web.json_response(body)

    def _flavor(self, request: web.Request) -> Document:
        flavor = self._store.get("nova.flavor", request.match_info["id"])
        if flavor is None:
            raise ApiError(404, f"Flavor {request.match_info['id']} could not be found.")
        return flavor

    async def _show_flavor(self, request: web.Request) -> web.Response:
        return web.json_response({"flavor": _flavor_view(request, self._flavor(request), detailed=True)})

    async def _show_extra_specs(self, request: web.Request) -> web.Response:
        return web.json_response({"extra_specs": self._flavor(request)["extra_specs"]})

    async def _list_zones(self, _: web.Request) -> web.Response:
        zones = [{"zoneName": name, "zoneState": {"available": True}, "hosts": None} for name in ZONES]
        return web.json_response({"availabilityZoneInfo": zones})

    # Quotas

    def _limits(self, project: str) -> dict[str, int]:
        return {name: limit_of(self._store, project, name) for name in QUOTAS}

    def _used(self, project: str) -> dict[str, int]:
        groups = [group for group in self._store.list("nova.server_group") if group["project_id"] == project]
        return dict.fromkeys(QUOTAS, 0) | self._servers.life.used(project) | {"server_groups": len(groups)}

    async def _show_limits(self, request: web.Request) -> web.Response:
        project = request.query.get("tenant_id", caller_of(request).project_id)
        limits, used = self._limits(project), self._used(project)
        absolute = {
            "maxTotalInstances": limits["instances"],
            "maxTotalCores": limits["cores"],
            "maxTotalRAMSize": limits["ram"],
            "maxTotalKeypairs": limits["key_pairs"],
            "maxServerMeta": limits["metadata_items"],
            "maxServerGroups": limits["server_groups"],
            "maxServerGroupMembers": limits["server_group_members"],
            "totalInstancesUsed": used["instances"],
            "totalCoresUsed": used["cores"],
            "totalRAMUsed": used["ram"],
            "totalServerGroupsUsed": used["server_groups"],
        }
        return web.json_response({"limits": {"rate": [], "absolute": absolute}})

    async def _show_quota(self, request: web.Request) -> web.Response:
        project = request.match_info["project"]
        return web.json_response({"quota_set": {"id": project, **self._limits(project)}})

    async def _show_default_quota(self, request: web.Request) -> web.Response:
        return web.json_response({"quota_set": {"id": request.match_info["project"], **QUOTAS}})

    async def _show_quota_details(self, request: web.Request) -> web.Response:
        project = request.match_info["project"]
        used = self._used(project)
        details = {
            name: {"limit": limit, "in_use": used[name], "reserved": 0} for name, limit in self._limits(project).items()
        }
        return web.json_response({"quota_set": {"id": project, **details}})

    async def _set_quota(self, request: web.Request) -> web.Response:
        given = await json_body(request, "quota_set")
        given.pop("force", None)
        for name, limit in given.items():
            if name not in QUOTAS or not isinstance(limit, int):
                raise ApiError(400, f"Invalid input for field/attribute {name}. Value: {limit}.")
        project = request.match_info["project"]
        self._store.put("nova.quota", project, (self._store.get("nova.quota", project) or {}) | given)
        return web.json_response({"quota_set": self._limits(project)})

    async def _reset_quota(self, request: web.Request) -> web.Response:
        self._store.delete("nova.quota", request.match_info["project"])
        return web.Response(status=202)


# The first microversions (2.N) with soft policies, with one policy a group, with a group's owner.
_SOFT_POLICIES = 15
_ONE_POLICY = 64
_GROUP_OWNERS = 13
# ... with a flavor's description, with its extra specs, and with numbers for its swap.
_FLAVOR_DESCRIPTION = 55
_FLAVOR_SPECS = 61
_FLAVOR_SWAP = 75


@web.middleware
async def _negotiate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find out which microversion a request wants, and say in the answer which one it got."""
    try:
        request[MICROVERSION] = _requested_version(request)
    except ApiError as error:
        return _render(error)
    response = await handler(request)
    version = f"2.{minor_version(request)}"
    response.headers[_OPENSTACK_HEADER] = f"compute {version}"
    response.headers[_NOVA_HEADER] = version
    response.headers["Vary"] = f"{_OPENSTACK_HEADER}, {_NOVA_HEADER}"
    return response


def _requested_version(request: web.Request) -> int:
    wanted = request.headers.get(_NOVA_HEADER, f"2.{MIN_VERSION}")
    for part in request.headers.get(_OPENSTACK_HEADER, "").split(","):
        name, _, version = part.strip().partition(" ")
        if name == "compute":
            wanted = version.strip()
    if wanted == "latest":
        return MAX_VERSION
    match = re.fullmatch(r"([1-9]\d*)\.(0|[1-9]\d*)", wanted)
    if match is None:
        message = f"API Version String {wanted} is of invalid format. Must be of format MajorNum.MinorNum."
        raise ApiError(400, message)
    major, minor = int(match[1]), int(match[2])
    if not (2, MIN_VERSION) <= (major, minor) <= (2, MAX_VERSION):
        message = f"Version {wanted} is not supported by the API. "
        raise ApiError(406, f"{message}Minimum is 2.{MIN_VERSION} and maximum is 2.{MAX_VERSION}.")
    return minor


def _render(error: ApiError) -> web.Response:
    name = _FAULTS.get(error.status, "computeFault")
    return web.json_response({name: {"code": error.status, "message": error.message}}, status=error.status)


def _version_document(request: web.Request) -> Document:
    return {
        "id": "v2.1",
        "status": "CURRENT",
        "version": f"2.{MAX_VERSION}",
        "min_version": f"2.{MIN_VERSION}",
        "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": f"{request.url.origin()}/compute/v2.1/"}],
    }


def _keypair_view(request: web.Request, pair: Document, fields: tuple[str, ...]) -> Document:
    with_type = minor_version(request) > MIN_VERSION
    return {name: pair[name] for name in fields if name != "type" or with_type}


def _generate_key_pair() -> tuple[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private.decode(), public.decode() + " Generated-by-Nova"


def _fingerprint(public_key: str) -> str:
    """MD5 of the key in its wire format, as Nova has it."""
    try:
        key = load_ssh_public_key(public_key.strip().encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ApiError(400, "Keypair data is invalid: failed to generate fingerprint") from error
    wire = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    digest = hashlib.md5(base64.b64decode(wire), usedforsecurity=False).digest()
    return digest.hex(":")


def _flavor_view(request: web.Request, flavor: Document, detailed: bool) -> Document:
    minor = minor_version(request)
    root = f"{request.url.origin()}/compute"
    view: Document = {"id": flavor["id"], "name": flavor["name"]}
    view["links"] = [
        {"rel": "self", "href": f"{root}/v2.1/flavors/{flavor['id']}"},
        {"rel": "bookmark", "href": f"{root}/flavors/{flavor['id']}"},
    ]
    if minor >= _FLAVOR_DESCRIPTION:
        view["description"] = None
    if not detailed:
        return view
    view |= {
        "vcpus": flavor["vcpus"],
        "ram": flavor["ram"],
        "disk": flavor["disk"],
        "swap": 0 if minor >= _FLAVOR_SWAP else "",
        "rxtx_factor": 1.0,
        "OS-FLV-EXT-DATA:ephemeral": 0,
        "OS-FLV-DISABLED:disabled": False,
        "os-flavor-access:is_public": flavor["is_public"],
    }
    if minor >= _FLAVOR_SPECS:
        view["extra_specs"] = flavor["extra_specs"]
    return view
