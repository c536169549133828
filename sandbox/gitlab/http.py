"""How GitLab's REST API reads parameters, refuses and paginates, as far as this sandbox needs it.

Sources: https://docs.gitlab.com/api/rest/ (authentication, pagination, status codes) and
https://docs.gitlab.com/api/rest/troubleshooting/ (error bodies).
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

API = "/api/v4"

# https://docs.gitlab.com/api/rest/#pagination
DEFAULT_PER_PAGE = 20
MAX_PER_PAGE = 100


class Refusal(web.HTTPException):
    """An error answer with GitLab's JSON body; raised by whatever refuses the request."""

    def __init__(self, status: int, body: Mapping[str, object], headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status
        super().__init__(text=json.dumps(body), content_type="application/json", headers=headers)


def unauthorized() -> Refusal:
    """No token, or one that is not known."""
    return Refusal(401, {"message": "401 Unauthorized"})


def forbidden(reason: str = "", headers: Mapping[str, str] | None = None) -> Refusal:
    """The token is known, but what it asks for is not allowed."""
    return Refusal(403, {"message": f"403 Forbidden - {reason}" if reason else "403 Forbidden"}, headers)


def not_found(what: str) -> Refusal:
    """`what` is the kind of the missing thing, for example Project."""
    return Refusal(404, {"message": f"404 {what} Not Found"})


def bad_request(reason: str) -> Refusal:
    """A request that is well formed but breaks a rule."""
    return Refusal(400, {"message": f"400 Bad request - {reason}"})


def _split(value: object) -> object:
    """Lists may come as arrays or as comma-separated text."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list):
        return value
    return list(dict.fromkeys(part.strip() if isinstance(part, str) else part for part in parts if part != ""))


TagList = Annotated[list[str], BeforeValidator(_split)]


class Parameters(BaseModel):
    """Base of the parameters of an endpoint; unknown ones are ignored, as GitLab does."""

    model_config = ConfigDict(extra="ignore")


P = TypeVar("P", bound=Parameters)

_COMPLAINTS = {"missing": "is missing", "literal_error": "does not have a valid value"}


async def parameters(request: web.Request, model: type[P]) -> P:
    """The request's query, form or JSON parameters.

    Raises:
        Refusal: 400, with every complaint in the words that GitLab uses.
    """
    given: dict[str, Any] = dict(request.query)
    # Rails writes lists as tag_list[]=a&tag_list[]=b.
    for key in {key for key in request.query if key.endswith("[]")}:
        given[key.removesuffix("[]")] = request.query.getall(key)
    if request.can_read_body:
        if request.content_type == "application/json":
            try:
                body = json.loads(await request.text() or "{}")
            except json.JSONDecodeError as error:
                raise Refusal(400, {"error": "The request body is not valid JSON"}) from error
            if not isinstance(body, dict):
                raise Refusal(400, {"error": "The request body is not a JSON object"})
            given |= body
        elif request.content_type in ("application/x-www-form-urlencoded", "multipart/form-data"):
            given |= dict(await request.post())
    try:
        return model.model_validate(given)
    except ValidationError as error:
        complaints = [f"{e['loc'][0]} {_COMPLAINTS.get(e['type'], 'is invalid')}" for e in error.errors() if e["loc"]]
        raise Refusal(400, {"error": ", ".join(complaints or [str(e["msg"]) for e in error.errors()])}) from error


def number(request: web.Request, name: str = "id") -> int:
    """A numeric part of the path.

    Raises:
        Refusal: 400 when it is not a number.
    """
    text = request.match_info[name]
    if not text.isascii() or not text.isdigit():
        raise Refusal(400, {"error": f"{name} is invalid"})
    return int(text)


def paginated(request: web.Request, items: list[dict[str, Any]]) -> web.Response:
    """One page of `items`, with the headers by which clients find the others."""
    try:
        page = max(1, int(request.query.get("page", 1)))
        per_page = min(MAX_PER_PAGE, max(1, int(request.query.get("per_page", DEFAULT_PER_PAGE))))
    except ValueError as error:
        raise Refusal(400, {"error": "page is invalid"}) from error
    pages = max(1, -(-len(items) // per_page))

    def link(target: int, relation: str) -> str:
        query = {**request.query, "page": str(target), "per_page": str(per_page)}
        return f'<{request.url.with_query(query)}>; rel="{relation}"'

    links = [link(1, "first"), link(pages, "last")]
    if page > 1:
        links.insert(0, link(page - 1, "prev"))
    if page < pages:
        links.insert(0, link(page + 1, "next"))
    headers = {
        "Link": ", ".join(links),
        "X-Page": str(page),
        "X-Per-Page": str(per_page),
        "X-Prev-Page": str(page - 1) if page > 1 else "",
        "X-Next-Page": str(page + 1) if page < pages else "",
        "X-Total": str(len(items)),
        "X-Total-Pages": str(pages),
    }
    return web.json_response(items[(page - 1) * per_page : page * per_page], headers=headers)


def now(later: timedelta = timedelta()) -> str:
    """The present, or a time later than that, as GitLab writes it."""
    return (datetime.now(UTC) + later).isoformat(timespec="milliseconds").replace("+00:00", "Z")
