"""What the services of the sandbox's OpenStack share: errors, callers, paging, and how a service is put together."""

import json
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import MultiMapping

Document = dict[str, Any]

LOG = logging.getLogger("sandbox.openstack")

# The page size of Nova and Glance where a client asks for more or for none (`[api] max_limit`, `limit_param_default`).
MAX_PAGE = 1000


class ApiError(Exception):
    """An answer that is an error: status, message, and for Neutron the exception's name."""

    def __init__(self, status: int, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and for which project."""

    user_id: str
    project_id: str
    roles: tuple[str, ...]


_CALLER = web.RequestKey("caller", Caller)

# How a service words an error.
ErrorRenderer = Callable[[ApiError], web.Response]
# Finds out who sent a request from its X-Auth-Token; None when nobody known did.
Authenticator = Callable[[web.Request], Caller | None]


def service(
    routes: Iterable[web.RouteDef],
    render: ErrorRenderer,
    authenticate: Authenticator,
    public: Sequence[str],
    outermost: Sequence[Middleware] = (),
) -> web.Application:
    """An application for one OpenStack service.

    Paths in `public` (without a slash at the end) need no token. The `outermost` middlewares see every response,
    errors included.
    """

    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return render(error)
        except web.HTTPException as error:
            return render(ApiError(error.status, error.reason))
        except Exception:
            LOG.exception("%s %s failed", request.method, request.path)
            return render(ApiError(500, "Unexpected error; the sandbox's log has the details."))

    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.rstrip("/") not in public:
            caller = authenticate(request)
            if caller is None:
                return unauthorized(request)
            request[_CALLER] = caller
        return await handler(request)

    app = web.Application(middlewares=[*outermost, errors, gate])
    app.add_routes(routes)
    return app


def unauthorized(request: web.Request) -> web.Response:
    """What keystonemiddleware answers to a request without a valid token."""
    message = "The request you have made requires authentication."
    return web.json_response(
        {"error": {"code": 401, "title": "Unauthorized", "message": message}},
        status=401,
        headers={"WWW-Authenticate": f'Keystone uri="{request.url.origin()}/identity"'},
    )


def caller_of(request: web.Request) -> Caller:
    """The caller that the gate let in."""
    return request[_CALLER]


async def json_body(request: web.Request, key: str | None = None) -> Document:
    """The request's JSON object, or the object under `key` in it.

    Raises ApiError 400 when there is none.
    """
    try:
        body = json.loads(await request.text())
    except ValueError as error:
        raise ApiError(400, "Malformed request body") from error
    value = body.get(key) if key is not None and isinstance(body, dict) else body
    if not isinstance(value, dict):
        raise ApiError(400, f"Unable to find '{key}' in request body" if key else "Malformed request body")
    return value


def new_id() -> str:
    """A UUID as OpenStack writes most ids."""
    return str(uuid.uuid4())


def now() -> str:
    """The time in UTC, to the second, as most services write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def naive_now() -> str:
    """The time in UTC as Cinder, Swift and parts of Nova write it: to the microsecond, and without a zone."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def is_uuid(value: object) -> bool:
    """Whether the value is a UUID in its usual spelling."""
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value.lower()
    except ValueError:
        return False


def text_of(value: object) -> str:
    """A value as it is written in a query string."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def sort(items: list[Document], keys: Sequence[str], directions: Sequence[str]) -> list[Document]:
    """Sort by the keys, the first counting most; directions are `asc` (default) or `desc`."""
    for position in reversed(range(len(keys))):
        down = position < len(directions) and directions[position] == "desc"
        key = keys[position]
        items = sorted(items, key=lambda item: text_of(item.get(key)), reverse=down)
    return items


def page(
    request: web.Request, items: list[Document], default: int | None = MAX_PAGE, key: str = "id"
) -> tuple[list[Document], str | None]:
    """The page that `limit` and `marker` ask for, and the address of the next one or None.

    `default` is the page size where no limit is given (None: all in one page); `key` names what a marker refers to.
    """
    query = request.query
    limit = default
    if "limit" in query:
        if not query["limit"].isdecimal():
            raise ApiError(400, f"Limit must be an integer 0 or greater and not '{query['limit']}'", "BadRequest")
        limit = min(int(query["limit"]), MAX_PAGE) or default
    if "marker" in query:
        ids = [item[key] for item in items]
        if query["marker"] not in ids:
            raise ApiError(400, f"marker [{query['marker']}] not found", "BadRequest")
        items = items[ids.index(query["marker"]) + 1 :]
    if limit is None or len(items) <= limit:
        return items, None
    items = items[:limit]
    return items, str(request.url.update_query(marker=items[-1][key], limit=limit))


def tags_match(tags: Sequence[str], query: MultiMapping[str]) -> bool:
    """The four tag filters that Nova and Neutron have in common; values are lists separated by commas."""
    have = set(tags)

    def wanted(name: str) -> set[str]:
        return {tag for value in query.getall(name, []) for tag in value.split(",") if tag}

    return (
        wanted("tags") <= have
        and ("tags-any" not in query or bool(wanted("tags-any") & have))
        and ("not-tags" not in query or not wanted("not-tags") <= have)
        and not (wanted("not-tags-any") & have)
    )
