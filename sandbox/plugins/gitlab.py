"""Stand-in for the official gitlab plugin: user runners, over python-gitlab."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .common import Function, Plugin, PluginError, Resource, Work, innermost
from .difference import Change
from .facts import Habits
from .serve import main
from .values import Plain

if TYPE_CHECKING:
    import gitlab

DEFAULT_URL = "https://gitlab.com"
API_PATH = "/api/v4"
SHORTEST_MAXIMUM_TIMEOUT_SECONDS = 600
NOT_FOUND = 404


class UserRunner(Resource):
    """`gitlab.UserRunner`: a runner and its authentication token, which only the creation tells."""

    token = "gitlab:index/userRunner:UserRunner"
    habits = Habits(
        sets=frozenset({"tagLists"}),
        # The provider's schema marks nothing; its documentation says that a change of these makes a new runner.
        replaces=frozenset({"runnerType", "groupId", "projectId"}),
    )
    # Pulumi's names -> the API's (https://docs.gitlab.com/api/users/#create-a-runner-linked-to-a-user).
    members: ClassVar[Mapping[str, str]] = {
        "accessLevel": "access_level",
        "description": "description",
        "locked": "locked",
        "maintenanceNote": "maintenance_note",
        "maximumTimeout": "maximum_timeout",
        "paused": "paused",
        "tagLists": "tag_list",
        "untagged": "run_untagged",
    }
    scopes: ClassVar[Mapping[str, str]] = {"group_type": "groupId", "project_type": "projectId"}

    def __init__(self, plugin: "GitLab") -> None:
        self._plugin = plugin

    def check(self, wanted: Plain) -> list[tuple[str, str]]:
        faults = []
        kind = wanted.get("runnerType")
        if isinstance(kind, str):
            if kind not in (*self.scopes, "instance_type"):
                faults.append(("runnerType", f"must be instance_type, group_type or project_type, not {kind!r}"))
            faults += [
                (name, f"is required for a runner of type {kind}" if kind == needs else f"does not fit the type {kind}")
                for needs, name in self.scopes.items()
                if (kind == needs) != (name in wanted)
            ]
        level = wanted.get("accessLevel")
        if isinstance(level, str) and level not in ("not_protected", "ref_protected"):
            faults.append(("accessLevel", f"must be not_protected or ref_protected, not {level!r}"))
        timeout = wanted.get("maximumTimeout")
        if isinstance(timeout, int) and timeout < SHORTEST_MAXIMUM_TIMEOUT_SECONDS:
            faults.append(("maximumTimeout", f"must be at least {SHORTEST_MAXIMUM_TIMEOUT_SECONDS}, not {timeout}"))
        return faults

    def create(self, wanted: Plain, work: Work) -> None:
        request = {"runner_type": wanted["runnerType"], **self._members(wanted)}
        request |= {"group_id": wanted["groupId"]} if "groupId" in wanted else {}
        request |= {"project_id": wanted["projectId"]} if "projectId" in wanted else {}
        made = _document(self._plugin.client.http_post("/user/runners", post_data=request))
        work.made(str(made["id"]), token=made["token"])

    def read(self, id: str, state: Plain) -> Plain | None:
        try:
            runner = _document(self._plugin.client.http_get(f"/runners/{id}"))
        except Exception as error:
            if getattr(error, "response_code", None) == NOT_FOUND:
                return None
            raise
        found = {name: runner.get(member) for name, member in self.members.items()}
        found["runnerType"] = runner["runner_type"]
        for kind, owners in (("groupId", "groups"), ("projectId", "projects")):
            # GitLab tells no owners to a token that may not see them: the state keeps what it has.
            if runner.get(owners):
                found[kind] = runner[owners][0]["id"]
        return found

    def update(self, id: str, state: Plain, wanted: Plain, changes: Mapping[str, Change], work: Work) -> None:
        self._plugin.client.http_put(f"/runners/{id}", post_data=self._members(wanted))

    def delete(self, id: str, state: Plain, work: Work) -> None:
        try:
            self._plugin.client.http_delete(f"/runners/{id}")
        except Exception as error:
            if getattr(error, "response_code", None) != NOT_FOUND:
                raise

    def _members(self, wanted: Plain) -> dict[str, Any]:
        return {member: wanted[name] for name, member in self.members.items() if name in wanted}


class GitLab(Plugin):
    """The plugin."""

    name = "gitlab"
    keeps_half_done = False
    unknown_config: ClassVar[frozenset[str]] = frozenset({"configFile", "context"})

    def __init__(self) -> None:
        self._client: gitlab.Gitlab | None = None
        super().__init__()

    def resources(self) -> list[Resource]:
        """User runners."""
        return [UserRunner(self)]

    def functions(self) -> Mapping[str, Function]:
        """The token's user."""
        return {"gitlab:index/getCurrentUser:getCurrentUser": self.get_current_user}

    def connect(self) -> None:
        """No call yet: python-gitlab asks for nothing in advance."""
        if refused := sorted(self.unknown_config & self.config.keys()):
            raise PluginError(
                f"{' and '.join(refused)} is not implemented by the stand-in for the official gitlab plugin"
            )

    @property
    def client(self) -> "gitlab.Gitlab":
        """The client that the provider's configuration or GITLAB_BASE_URL and GITLAB_TOKEN describe."""
        if self._client is None:
            import gitlab  # noqa: PLC0415
            import requests  # noqa: PLC0415

            url = self.config.get("baseUrl") or os.environ.get("GITLAB_BASE_URL") or DEFAULT_URL
            token = self.config.get("token") or os.environ.get("GITLAB_TOKEN")
            if not token:
                raise PluginError("no token: set gitlab:token in the stack's configuration, or GITLAB_TOKEN")
            session = requests.Session()
            session.headers.update(self.config.get("headers", {}))
            if "clientCert" in self.config:
                session.cert = (self.config["clientCert"], self.config["clientKey"])
            self._client = gitlab.Gitlab(
                url.rstrip("/").removesuffix(API_PATH),
                private_token=token,
                ssl_verify=False if self.config.get("insecure") else self.config.get("cacertFile", True),
                session=session,
            )
        return self._client

    def explain(self, error: Exception) -> str | None:
        """Errors of python-gitlab and of the connection."""
        import requests  # noqa: PLC0415
        from gitlab.exceptions import GitlabError  # noqa: PLC0415

        if isinstance(error, GitlabError):
            return f"GitLab answered: {error}"
        if isinstance(error, requests.RequestException):
            return f"{innermost(error)} (GitLab at {self.client.url})"
        return None

    def get_current_user(self, arguments: Plain) -> Plain:
        """The user that the token belongs to."""
        user = _document(self.client.http_get("/user"))
        id = str(user["id"])
        namespace = str(user.get("namespace_id") or "")
        return {
            "id": id,
            "globalId": f"gid://gitlab/User/{id}",
            "name": user["name"],
            "username": user["username"],
            "bot": user.get("bot", False),
            "publicEmail": user.get("public_email") or "",
            "namespaceId": namespace,
            "globalNamespaceId": f"gid://gitlab/Namespaces::UserNamespace/{namespace}",
            "groupCount": 0,
        }


def _document(answer: Any) -> dict[str, Any]:
    """A JSON object from GitLab; anything else is an error (a login page, say)."""
    if not isinstance(answer, dict):
        raise PluginError("GitLab's answer is not a JSON object: is the base URL that of its API?")
    return answer


if __name__ == "__main__":
    main(GitLab())
