"""Who is asking, and what their token may do.

Sources: https://docs.gitlab.com/security/tokens/access_token_scopes/ and the scope that each endpoint's documentation
names. `api` may do all that its user may, `read_api` only read; `manage_runner` reaches only paths with a runner's id
(so it can neither list runners nor read the user), `create_runner` only POST /user/runners. A token may always look at
itself (https://docs.gitlab.com/api/personal_access_tokens/#self-inform).
"""

import secrets
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from sandbox.gitlab.http import Refusal, now, unauthorized
from sandbox.store import Store

USERS = "gitlab_user"
GROUPS = "gitlab_group"
PROJECTS = "gitlab_project"
ACCESS_TOKENS = "gitlab_access_token"

ADMINISTRATOR_ID = 1
PLATFORM_ID = 2


@dataclass(frozen=True)
class Tokens:
    """The access tokens of a fresh sandbox; all but `administrator` belong to the user `platform`."""

    #: create_runner, manage_runner and read_api: all that the program uses, look-ups and listing included.
    platform: str
    #: create_runner and manage_runner alone: cannot list runners, nor read the user, a project or a group.
    runners: str
    #: read_user alone: cannot do anything with runners.
    read_user: str
    #: api and admin_mode of an administrator.
    administrator: str


_SEEDED_TOKENS = {
    "platform": (PLATFORM_ID, ["create_runner", "manage_runner", "read_api"]),
    "runners": (PLATFORM_ID, ["create_runner", "manage_runner"]),
    "read_user": (PLATFORM_ID, ["read_user"]),
    "administrator": (ADMINISTRATOR_ID, ["api", "admin_mode"]),
}


def seed(store: Store) -> Tokens:
    """Create users, groups, projects and access tokens in an empty store; in a used one, only return its tokens."""
    for user_id, username, name, admin in (
        (ADMINISTRATOR_ID, "root", "Administrator", True),
        (PLATFORM_ID, "platform", "Platform", False),
    ):
        _put_once(store, USERS, user_id, {"username": username, "name": name, "is_admin": admin})
    for group_id, path in ((10, "team-a"), (11, "team-b")):
        _put_once(store, GROUPS, group_id, {"path": path, "owner_id": PLATFORM_ID})
    for project_id, group_id, path in ((100, 10, "app"), (101, 11, "web")):
        _put_once(store, PROJECTS, project_id, {"path": path, "group_id": group_id})
    known = {token["name"]: str(token["token"]) for token in store.list(ACCESS_TOKENS)}
    for name, (user_id, scopes) in _SEEDED_TOKENS.items():
        if name not in known:
            known[name] = f"glpat-{secrets.token_urlsafe(15)}"
            number = store.next_number(ACCESS_TOKENS)
            document = {"name": name, "token": known[name], "user_id": user_id, "scopes": scopes}
            _put_once(store, ACCESS_TOKENS, number, document)
    return Tokens(**{name: known[name] for name in _SEEDED_TOKENS})


def _put_once(store: Store, kind: str, number: int, document: dict[str, Any]) -> None:
    if store.get(kind, str(number)) is None:
        store.put(kind, str(number), {"id": number, **document, "created_at": now()})


@dataclass(frozen=True)
class Caller:
    """A user with the access token that is used."""

    user: dict[str, Any]
    token: dict[str, Any]

    @property
    def is_admin(self) -> bool:
        """Whether the user administers the whole instance."""
        return bool(self.user["is_admin"])

    def owns(self, group: dict[str, Any]) -> bool:
        """Whether the user may do everything in this group and its projects."""
        return self.is_admin or bool(group["owner_id"] == self.user["id"])


def authenticate(store: Store, request: web.Request, *scopes: str) -> Caller:
    """The caller, if the request's access token has one of `scopes`, `api`, or `read_api` for a read request.

    Raises:
        Refusal: 401 without a known token, 403 when its scopes do not suffice.
    """
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    value = request.headers.get("PRIVATE-TOKEN") or (bearer.strip() if scheme.lower() == "bearer" else "")
    value = value or request.query.get("private_token") or request.query.get("access_token") or ""
    for token in store.list(ACCESS_TOKENS):
        if secrets.compare_digest(str(token["token"]).encode(), value.encode()):
            break
    else:
        raise unauthorized()
    accepted = ["api", *(["read_api"] if request.method in ("GET", "HEAD") else []), *scopes]
    if not set(accepted) & set(token["scopes"]):
        description = "The request requires higher privileges than provided by the access token."
        error = {"error": "insufficient_scope", "error_description": description, "scope": " ".join(accepted)}
        raise Refusal(403, error)
    user = store.get(USERS, str(token["user_id"]))
    if user is None:
        raise unauthorized()
    return Caller(user, token)


#: Every scope there is here: for the endpoint that any token may call.
ANY_SCOPE = ("read_user", "create_runner", "manage_runner", "read_api", "admin_mode")
