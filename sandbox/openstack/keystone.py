"""Keystone: versions, tokens, catalog, projects, users, application and EC2 credentials (Identity API v3)."""

import hashlib
import hmac
import re
import secrets
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from sandbox.openstack.common import ApiError, Caller, Document, caller_of, json_body, service
from sandbox.store import Store

DOMAIN = {"id": "default", "name": "Default"}
REGION = "RegionOne"
ROLES = ({"id": "1" * 32, "name": "admin"}, {"id": "2" * 32, "name": "member"}, {"id": "3" * 32, "name": "reader"})

# Keystone's own default is an hour; a long debugging session should not have to log in again.
_LIFETIME = timedelta(hours=12)

# (type, name, path below the root of the API): each as DevStack registers it.
_SERVICES = (
    ("identity", "keystone", "/identity"),
    ("compute", "nova", "/compute/v2.1"),
    ("network", "neutron", "/network"),
    ("image", "glance", "/image"),
    ("block-storage", "cinder", "/volume/v3"),
    ("object-store", "swift", "/object-store/v1/AUTH_{project}"),
)

# The service types by the first parts of paths.
_SERVICE_TYPES = {path.split("/")[1]: kind for kind, _, path in _SERVICES}

_TITLES = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}


def hashed(secret: str) -> str:
    """What is stored of a password or secret: both are long and random, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keystone:
    """The identity service; it also tells the other services who a token belongs to."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def app(self) -> web.Application:
        """The application to be mounted at /identity."""
        routes = [
            web.get("", self._versions),
            web.get("/", self._versions),
            web.get("/v3", self._version),
            web.get("/v3/", self._version),
            web.post("/v3/auth/tokens", self._authenticate),
            web.get("/v3/auth/tokens", self._show_token),
            web.delete("/v3/auth/tokens", self._revoke_token),
            web.get("/v3/auth/catalog", self._show_catalog),
            web.get("/v3/auth/projects", self._list_own_projects),
            web.get("/v3/projects", self._list_projects),
            web.get("/v3/projects/{id}", self._show_project),
            web.get("/v3/users/{user_id}/projects", self._list_projects),
            web.get("/v3/users/{user_id}", self._show_user),
            web.get("/v3/domains/{id}", self._show_domain),
            web.get("/v3/regions", self._list_regions),
            web.get("/v3/users/{user_id}/application_credentials", self._list_credentials),
            web.post("/v3/users/{user_id}/application_credentials", self._create_credential),
            web.get("/v3/users/{user_id}/application_credentials/{id}", self._show_credential),
            web.delete("/v3/users/{user_id}/application_credentials/{id}", self._delete_credential),
            web.get("/v3/users/{user_id}/credentials/OS-EC2", self._list_ec2),
            web.post("/v3/users/{user_id}/credentials/OS-EC2", self._create_ec2),
            web.get("/v3/users/{user_id}/credentials/OS-EC2/{access}", self._show_ec2),
            web.delete("/v3/users/{user_id}/credentials/OS-EC2/{access}", self._delete_ec2),
        ]
        # POST /auth/tokens checks what is in its body; its other methods check X-Auth-Token themselves.
        return service(routes, _render, self.caller, public=["/identity", "/identity/v3", "/identity/v3/auth/tokens"])

    def caller(self, request: web.Request) -> Caller | None:
        """Whose request this is, going by X-Auth-Token; None for a token that is missing, unknown or expired."""
        token = self._token(request.headers.get("X-Auth-Token", ""))
        if token is None or not self._is_allowed(request, token):
            return None
        return Caller(token["user_id"], token["project_id"] or "", tuple(role["name"] for role in ROLES))

    def _is_allowed(self, request: web.Request, token: Document) -> bool:
        """As keystonemiddleware does it: a rule has the service's type, the method and a pattern of the path."""
        credential = self._store.get("keystone.application_credential", token.get("credential_id") or "")
        rules = credential.get("access_rules") if credential is not None else None
        if rules is None:
            return True
        service = _SERVICE_TYPES.get(request.path.split("/")[1], "")
        return any(
            (rule["service"], rule["method"]) == (service, request.method) and _fits(request.path, rule["path"])
            for rule in rules
        )

    def _token(self, token: str) -> Document | None:
        found = self._store.get("keystone.token", hashed(token))
        if found is None or found["expires_at"] <= _time(datetime.now(UTC)):
            return None
        return found

    # Versions

    async def _versions(self, request: web.Request) -> web.Response:
        return web.json_response({"versions": {"values": [_version_document(request)]}}, status=300)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": _version_document(request)})

    # Tokens

    async def _authenticate(self, request: web.Request) -> web.Response:
        auth = await json_body(request, "auth")
        identity = auth.get("identity")
        if not isinstance(identity, dict) or not isinstance(identity.get("methods"), list):
            raise ApiError(400, "Invalid input for field 'identity': 'methods' is a required property")
        methods = identity["methods"]
        project_id: str | None = None
        credential: Document | None = None
        if methods == ["password"]:
            user = self._user_by_password(identity.get("password", {}).get("user", {}))
        elif methods == ["token"]:
            token = self._token(identity.get("token", {}).get("id", ""))
            if token is None:
                raise _refused()
            user = self._get("user", token["user_id"])
        elif methods == ["application_credential"]:
            credential = self._credential(identity.get("application_credential", {}))
            user = self._get("user", credential["user_id"])
            project_id = credential["project_id"]
            if "scope" in auth:
                raise ApiError(401, "Application credentials cannot request a scope.")
        else:
            raise ApiError(401, f"Attempted to authenticate with an unsupported method: {methods}")
        scope = auth.get("scope")
        if project_id is None and isinstance(scope, dict) and "project" in scope:
            project_id = self._project_in_scope(scope["project"], user)["id"]
        elif project_id is None and scope != "unscoped" and not isinstance(scope, dict):
            project_id = user["default_project_id"]
        return self._issue(request, user, project_id, methods, credential)

    def _user_by_password(self, given: Document) -> Document:
        for user in self._store.list("keystone.user"):
            right = hmac.compare_digest(user["password"], hashed(str(given.get("password", ""))))
            if right and (given.get("id") == user["id"] or (given.get("name") == user["name"] and _in_domain(given))):
                return user
        raise _refused()

    def _credential(self, given: Document) -> Document:
        for credential in self._store.list("keystone.application_credential"):
            owner = self._get("user", credential["user_id"])
            user = given.get("user", {})
            named = given.get("name") == credential["name"] and (
                user.get("id") == owner["id"] or (user.get("name") == owner["name"] and _in_domain(user))
            )
            right = hmac.compare_digest(credential["secret"], hashed(str(given.get("secret", ""))))
            if right and (given.get("id") == credential["id"] or named):
                return credential
        raise _refused()

    def _project_in_scope(self, given: Document, user: Document) -> Document:
        for project in self._store.list("keystone.project"):
            named = given.get("name") == project["name"] and _in_domain(given)
            if project["id"] in user["project_ids"] and (given.get("id") == project["id"] or named):
                return project
        raise _refused()

    def _issue(
        self,
        request: web.Request,
        user: Document,
        project_id: str | None,
        methods: list[str],
        credential: Document | None,
    ) -> web.Response:
        issued = datetime.now(UTC)
        for old in self._store.list("keystone.token"):
            if old["expires_at"] <= _time(issued):
                self._store.delete("keystone.token", old["id"])
        secret = secrets.token_urlsafe(64)
        token = {
            "id": hashed(secret),
            "user_id": user["id"],
            "project_id": project_id,
            "methods": methods,
            "credential_id": credential["id"] if credential is not None else None,
            "audit_id": secrets.token_urlsafe(16),
            "issued_at": _time(issued),
            "expires_at": _time(issued + _LIFETIME),
        }
        self._store.put("keystone.token", token["id"], token)
        return self._token_response(request, token, secret, status=201)

    def _token_response(self, request: web.Request, token: Document, secret: str, status: int) -> web.Response:
        user = self._get("user", token["user_id"])
        view: Document = {
            "methods": token["methods"],
            "user": {"id": user["id"], "name": user["name"], "domain": DOMAIN, "password_expires_at": None},
            "audit_ids": [token["audit_id"]],
            "issued_at": token["issued_at"],
            "expires_at": token["expires_at"],
        }
        if token["project_id"] is not None:
            project = self._get("project", token["project_id"])
            view |= {
                "project": {"id": project["id"], "name": project["name"], "domain": DOMAIN},
                "is_domain": False,
                "roles": list(ROLES),
            }
            if "nocatalog" not in request.query:
                view["catalog"] = _catalog(request, token["project_id"])
        headers = {"X-Subject-Token": secret, "Vary": "X-Auth-Token"}
        return web.json_response({"token": view}, status=status, headers=headers)

    def _subject(self, request: web.Request) -> tuple[Document, str]:
        if self.caller(request) is None:
            raise _refused()
        secret = request.headers.get("X-Subject-Token", "")
        token = self._token(secret)
        if token is None:
            raise ApiError(404, "Could not find token.")
        return token, secret

    async def _show_token(self, request: web.Request) -> web.Response:
        token, secret = self._subject(request)
        return self._token_response(request, token, secret, status=200)

    async def _revoke_token(self, request: web.Request) -> web.Response:
        token, _ = self._subject(request)
        self._store.delete("keystone.token", token["id"])
        return web.Response(status=204)

    async def _show_catalog(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"catalog": _catalog(request, caller_of(request).project_id), "links": {"self": str(request.url)}}
        )

    # Projects, users, domains, regions

    async def _list_own_projects(self, request: web.Request) -> web.Response:
        ids = self._get("user", caller_of(request).user_id)["project_ids"]
        projects = [project for project in self._store.list("keystone.project") if project["id"] in ids]
        return _listing(request, "projects", [_project_view(project) for project in projects])

    async def _list_projects(self, request: web.Request) -> web.Response:
        projects = [_project_view(project) for project in self._store.list("keystone.project")]
        if "name" in request.query:
            projects = [project for project in projects if project["name"] == request.query["name"]]
        return _listing(request, "projects", projects)

    async def _show_project(self, request: web.Request) -> web.Response:
        return web.json_response({"project": _project_view(self._get("project", request.match_info["id"]))})

    async def _show_user(self, request: web.Request) -> web.Response:
        user = self._get("user", request.match_info["user_id"])
        fields = ("id", "name", "default_project_id")
        return web.json_response(
            {"user": {name: user[name] for name in fields} | {"domain_id": DOMAIN["id"], "enabled": True}}
        )

    async def _show_domain(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != DOMAIN["id"]:
            raise ApiError(404, f"Could not find domain: {request.match_info['id']}.")
        return web.json_response({"domain": DOMAIN | {"enabled": True, "description": ""}})

    async def _list_regions(self, request: web.Request) -> web.Response:
        return _listing(request, "regions", [{"id": REGION, "description": "", "parent_region_id": None}])

    # Application credentials

    async def _list_credentials(self, request: web.Request) -> web.Response:
        return _listing(request, "application_credentials", [_credential_view(c) for c in self._own(request)])

    async def _show_credential(self, request: web.Request) -> web.Response:
        return web.json_response({"application_credential": _credential_view(self._own_credential(request))})

    async def _create_credential(self, request: web.Request) -> web.Response:
        caller = caller_of(request)
        given = await json_body(request, "application_credential")
        if not isinstance(given.get("name"), str):
            raise ApiError(400, "Invalid input for field 'name': a name is required.")
        if self._is_restricted(request):
            message = "Using method 'application_credential' is not allowed for managing additional application "
            raise ApiError(403, f"{message}credentials.")
        named = [role.get("name", role.get("id")) for role in given.get("roles") or ROLES]
        roles = [role for role in ROLES if role["name"] in named or role["id"] in named]
        for name in named:
            if not any(name in (role["name"], role["id"]) for role in ROLES):
                raise ApiError(404, f"Could not find role: {name}.")
        if any(credential["name"] == given["name"] for credential in self._own(request)):
            details = f"Duplicate entry found with name {given['name']}."
            raise ApiError(409, f"Conflict occurred attempting to store application_credential - {details}")
        secret = given.get("secret") or secrets.token_urlsafe(48)
        credential = {
            "id": uuid.uuid4().hex,
            "name": given["name"],
            "description": given.get("description", ""),
            "secret": hashed(secret),
            "user_id": caller.user_id,
            "project_id": caller.project_id,
            "expires_at": None,
            "unrestricted": bool(given.get("unrestricted", False)),
            "roles": roles,
            "access_rules": _rules(given["access_rules"]) if "access_rules" in given else None,
        }
        self._store.put("keystone.application_credential", credential["id"], credential)
        return web.json_response(
            {"application_credential": _credential_view(credential) | {"secret": secret}}, status=201
        )

    async def _delete_credential(self, request: web.Request) -> web.Response:
        self._store.delete("keystone.application_credential", self._own_credential(request)["id"])
        return web.Response(status=204)

    def _is_restricted(self, request: web.Request) -> bool:
        """Whether the caller has logged in by an application credential that makes no others."""
        token = self._token(request.headers.get("X-Auth-Token", "")) or {}
        credential = self._store.get("keystone.application_credential", token.get("credential_id") or "")
        return credential is not None and not credential["unrestricted"]

    def _own(self, request: web.Request) -> list[Document]:
        if request.match_info["user_id"] != caller_of(request).user_id:
            raise ApiError(403, "You are not authorized to perform the requested action.")
        all_of_them = self._store.list("keystone.application_credential")
        return [credential for credential in all_of_them if credential["user_id"] == caller_of(request).user_id]

    def _own_credential(self, request: web.Request) -> Document:
        for credential in self._own(request):
            if credential["id"] == request.match_info["id"]:
                return credential
        raise ApiError(404, f"Could not find Application Credential: {request.match_info['id']}.")

    # EC2 credentials: an access key and its secret, for one user in one project

    def _own_ec2(self, request: web.Request) -> list[Document]:
        if request.match_info["user_id"] != caller_of(request).user_id:
            raise ApiError(403, "You are not authorized to perform the requested action.")
        return [each for each in self._store.list("keystone.ec2") if each["user_id"] == caller_of(request).user_id]

    def _ec2(self, request: web.Request) -> Document:
        for credential in self._own_ec2(request):
            if credential["access"] == request.match_info["access"]:
                return credential
        raise ApiError(404, f"Could not find credential: {hashed(request.match_info['access'])}.")

    async def _list_ec2(self, request: web.Request) -> web.Response:
        return _listing(request, "credentials", self._own_ec2(request))

    async def _show_ec2(self, request: web.Request) -> web.Response:
        return web.json_response({"credential": self._ec2(request)})

    async def _create_ec2(self, request: web.Request) -> web.Response:
        self._own_ec2(request)
        project = self._get("project", str((await json_body(request)).get("tenant_id")))
        credential = {
            "access": uuid.uuid4().hex,
            "secret": uuid.uuid4().hex,
            "user_id": caller_of(request).user_id,
            "tenant_id": project["id"],
            "trust_id": None,
        }
        self._store.put("keystone.ec2", str(credential["access"]), credential)
        return web.json_response({"credential": credential}, status=201)

    async def _delete_ec2(self, request: web.Request) -> web.Response:
        self._store.delete("keystone.ec2", self._ec2(request)["access"])
        return web.Response(status=204)

    def _get(self, kind: str, id: str) -> Document:
        found = self._store.get(f"keystone.{kind}", id)
        if found is None:
            raise ApiError(404, f"Could not find {kind}: {id}.")
        return found


def _refused() -> ApiError:
    return ApiError(401, "The request you have made requires authentication.")


def _render(error: ApiError) -> web.Response:
    body = {"code": error.status, "message": error.message, "title": _TITLES.get(error.status, "Internal Server Error")}
    return web.json_response({"error": body}, status=error.status)


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000000Z")


def _in_domain(given: Document) -> bool:
    domain = given.get("domain", {})
    # Keystone compares domain names without case.
    return domain.get("id") == DOMAIN["id"] or str(domain.get("name", "")).lower() == DOMAIN["name"].lower()


def _version_document(request: web.Request) -> Document:
    return {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{request.url.origin()}/identity/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }


def _catalog(request: web.Request, project: str) -> list[Document]:
    origin = request.url.origin()
    return [
        {
            "id": hashed(name)[:32],
            "type": kind,
            "name": name,
            "endpoints": [
                {
                    "id": hashed(name + interface)[:32],
                    "interface": interface,
                    "region": REGION,
                    "region_id": REGION,
                    "url": f"{origin}{path.format(project=project)}",
                }
                for interface in ("public", "internal", "admin")
            ],
        }
        for kind, name, path in _SERVICES
    ]


def _listing(request: web.Request, name: str, items: list[Document]) -> web.Response:
    links: dict[str, Any] = {"self": str(request.url), "previous": None, "next": None}
    return web.json_response({name: items, "links": links})


def _project_view(project: Document) -> Document:
    fixed = {"domain_id": DOMAIN["id"], "parent_id": DOMAIN["id"], "enabled": True, "is_domain": False}
    return {"id": project["id"], "name": project["name"], "description": "", "tags": [], "options": {}} | fixed


def _credential_view(credential: Document) -> Document:
    view = {name: value for name, value in credential.items() if name not in ("secret", "user_id")}
    # Shown only where there are some.
    return view if view.get("access_rules") else {name: view[name] for name in view if name != "access_rules"}


def _rules(given: Any) -> list[Document]:
    fields = ("path", "method", "service")
    if not isinstance(given, list) or not all(isinstance(rule.get(name), str) for rule in given for name in fields):
        raise ApiError(400, "Invalid input for field 'access_rules': path, method and service are needed.")
    return [{"id": uuid.uuid4().hex, **{name: rule[name] for name in fields}} for rule in given]


def _fits(path: str, pattern: str) -> bool:
    """`*` is anything in one part of a path, `**` in all (Keystone docs, "Access Rules")."""
    parts = re.split(r"(\*\*|\*)", pattern)
    expression = "".join({"**": ".*", "*": "[^/]+"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(expression, path) is not None
