"""The instance around the runners: its version, users, groups and projects.

Sources: https://docs.gitlab.com/api/metadata/, /api/users/, /api/groups/, /api/projects/, /api/settings/ and
/api/personal_access_tokens/ of the same documentation.
"""

from collections.abc import Callable
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field

from sandbox.gitlab.access import ANY_SCOPE, GROUPS, PROJECTS, Caller, authenticate
from sandbox.gitlab.http import API, Parameters, forbidden, not_found, now, parameters
from sandbox.store import Store

# The GitLab that this sandbox behaves like.
GITLAB_VERSION = "19.4.1-ee"
GITLAB_REVISION = "5a4d0b0c19e"

Document = dict[str, Any]
_SETTINGS = "gitlab_settings"
# Two hours at least (Settings API).
_Interval = Annotated[int, Field(ge=7200)]


class _Settings(Parameters):
    """For how many seconds the tokens of runners that are registered from now on hold; for ever when absent."""

    runner_token_expiration_interval: _Interval | None = None
    group_runner_token_expiration_interval: _Interval | None = None
    project_runner_token_expiration_interval: _Interval | None = None


class Instance:
    """Finds and shows users, groups and projects, and serves the endpoints that read them."""

    def __init__(self, store: Store, external_url: Callable[[], str]) -> None:
        self._store = store
        self.external_url = external_url

    def routes(self) -> list[web.RouteDef]:
        """The routes."""
        return [
            web.get(f"{API}/version", self._read_version),
            web.get(f"{API}/metadata", self._read_version),
            web.get(f"{API}/user", self._read_user),
            web.get(f"{API}/personal_access_tokens/self", self._read_own_access_token),
            web.get(f"{API}/application/settings", self._settings),
            web.put(f"{API}/application/settings", self._settings),
            web.get(f"{API}/projects/{{id}}", self._read_project),
            web.get(f"{API}/groups/{{id}}", self._read_group),
        ]

    async def _read_version(self, request: web.Request) -> web.Response:
        authenticate(self._store, request, "read_user")
        kas = {"enabled": False, "externalUrl": None, "externalK8sProxyUrl": None, "version": None}
        version = {"version": GITLAB_VERSION, "revision": GITLAB_REVISION, "kas": kas, "enterprise": True}
        return web.json_response(version)

    async def _read_user(self, request: web.Request) -> web.Response:
        caller = authenticate(self._store, request, "read_user")
        user = self.user(caller.user) | {"email": f"{caller.user['username']}@example.com", "bot": False}
        return web.json_response(user | ({"is_admin": True} if caller.is_admin else {}))

    async def _read_own_access_token(self, request: web.Request) -> web.Response:
        token = authenticate(self._store, request, *ANY_SCOPE).token
        shown = {field: token[field] for field in ("id", "name", "scopes", "user_id", "created_at")}
        state = {"revoked": False, "active": True, "last_used_at": now(), "expires_at": None, "description": ""}
        return web.json_response(shown | state)

    async def _settings(self, request: web.Request) -> web.Response:
        if not authenticate(self._store, request).is_admin:
            raise forbidden()
        changes = await parameters(request, _Settings) if request.method == "PUT" else _Settings()
        settings = self._known_settings() | changes.model_dump(exclude_unset=True)
        self._store.put(_SETTINGS, "1", settings)
        return web.json_response(settings)

    def _known_settings(self) -> Document:
        return self._store.get(_SETTINGS, "1") or _Settings().model_dump()

    def runner_token_interval(self, runner_type: str) -> int | None:
        """Seconds for which the token of a new runner holds; None is for ever."""
        prefix = {"group_type": "group_", "project_type": "project_"}.get(runner_type, "")
        interval: int | None = self._known_settings()[f"{prefix}runner_token_expiration_interval"]
        return interval

    async def _read_project(self, request: web.Request) -> web.Response:
        project = self.require_project(authenticate(self._store, request), request)
        return web.json_response(self.project(project))

    async def _read_group(self, request: web.Request) -> web.Response:
        group = self.require_group(authenticate(self._store, request), request)
        return web.json_response(self.group(group))

    def find_project(self, key: str) -> Document | None:
        """A project by id or by full path."""
        for project in self._store.list(PROJECTS):
            if key in (str(project["id"]), self.project_path(project)):
                return project
        return None

    def require_project(self, caller: Caller, request: web.Request) -> Document:
        """The project that the path names; a private one of somebody else's is not found."""
        project = self.find_project(request.match_info["id"])
        if project is None or not self.owns_project(caller, project):
            raise not_found("Project")
        return project

    def require_group(self, caller: Caller, request: web.Request) -> Document:
        """The group that the path names, likewise."""
        key = request.match_info["id"]
        for group in self._store.list(GROUPS):
            if key in (str(group["id"]), group["path"]) and caller.owns(group):
                return group
        raise not_found("Group")

    def owns_project(self, caller: Caller, project: Document) -> bool:
        """Whether the caller may do everything in the project."""
        return caller.owns(self._group_of(project))

    def project_path(self, project: Document) -> str:
        """A project's full path, for example team-a/app."""
        return f"{self._group_of(project)['path']}/{project['path']}"

    def _group_of(self, project: Document) -> Document:
        group = self._store.get(GROUPS, str(project["group_id"]))
        if group is None:
            raise LookupError(f"project {project['id']} is in group {project['group_id']}, which does not exist")
        return group

    def user(self, user: Document) -> Document:
        """A user, as shown to others."""
        shown = {field: user[field] for field in ("id", "username", "name", "created_at")}
        web_url = f"{self.external_url()}/{user['username']}"
        return shown | {"state": "active", "locked": False, "avatar_url": None, "web_url": web_url}

    def project(self, project: Document) -> Document:
        """A project's details."""
        path = self.project_path(project)
        return {
            "id": project["id"],
            "description": None,
            "name": project["path"],
            "name_with_namespace": path.replace("/", " / "),
            "path": project["path"],
            "path_with_namespace": path,
            "created_at": project["created_at"],
            "web_url": f"{self.external_url()}/{path}",
            "default_branch": "main",
            "namespace": self.group(self._group_of(project)) | {"kind": "group"},
        }

    def group(self, group: Document) -> Document:
        """A group's details."""
        path = group["path"]
        web_url = f"{self.external_url()}/groups/{path}"
        names = {"name": path, "path": path, "full_name": path, "full_path": path}
        return {"id": group["id"], "web_url": web_url, "parent_id": None, **names}
