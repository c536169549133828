"""Issues of a project: https://docs.gitlab.com/api/issues/. Nobody is notified, and Markdown is only kept."""

from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import StringConstraints

from sandbox.gitlab.access import USERS, Caller, authenticate
from sandbox.gitlab.http import API, Parameters, bad_request, forbidden, not_found, now, number, paginated, parameters
from sandbox.gitlab.instance import Document, Instance
from sandbox.store import Store

ISSUES = "gitlab_issue"

# "The description of an issue. Limited to 1,048,576 characters."
MAXIMUM_DESCRIPTION_LENGTH = 1_048_576


class _Filter(Parameters):
    state: Literal["opened", "closed", "all"] = "all"
    author_id: int | None = None


class _New(Parameters):
    title: Annotated[str, StringConstraints(min_length=1)]
    description: str | None = None


class _Update(Parameters):
    title: Annotated[str, StringConstraints(min_length=1)] | None = None
    description: str | None = None
    state_event: Literal["close", "reopen"] | None = None


class Issues:
    """The endpoints of issues."""

    def __init__(self, store: Store, instance: Instance) -> None:
        self._store = store
        self._instance = instance

    def routes(self) -> list[web.RouteDef]:
        """The routes."""
        issues = f"{API}/projects/{{id}}/issues"
        return [
            web.get(issues, self._list),
            web.post(issues, self._create),
            web.get(f"{issues}/{{iid}}", self._read),
            web.put(f"{issues}/{{iid}}", self._update),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        project = self._instance.require_project(authenticate(self._store, request), request)
        wanted = await parameters(request, _Filter)
        found = [
            issue
            for issue in self._store.list(ISSUES)
            if issue["project_id"] == project["id"]
            and wanted.state in ("all", issue["state"])
            and wanted.author_id in (None, issue["author_id"])
        ]
        # The newest first, unless asked otherwise.
        found.sort(key=lambda issue: int(issue["iid"]), reverse=True)
        return paginated(request, [self._shown(project, issue) for issue in found])

    async def _create(self, request: web.Request) -> web.Response:
        caller = authenticate(self._store, request)
        project = self._instance.require_project(caller, request)
        given = await parameters(request, _New)
        iid = self._store.next_number(f"{ISSUES}/{project['id']}")
        moment = now()
        issue = {
            "id": self._store.next_number(ISSUES),
            "iid": iid,
            "project_id": project["id"],
            "author_id": caller.user["id"],
            "title": given.title,
            "description": _checked(given.description),
            "state": "opened",
            "created_at": moment,
            "updated_at": moment,
            "closed_at": None,
        }
        self._store.put(ISSUES, f"{project['id']}/{iid}", issue)
        return web.json_response(self._shown(project, issue), status=201)

    async def _read(self, request: web.Request) -> web.Response:
        _, project, issue = self._find(request)
        return web.json_response(self._shown(project, issue))

    async def _update(self, request: web.Request) -> web.Response:
        caller, project, issue = self._find(request)
        # Who plans here may change those of others too; the sandbox knows no roles below the owner of a group.
        if not caller.is_admin and issue["author_id"] != caller.user["id"]:
            raise forbidden()
        given = await parameters(request, _Update)
        if not given.model_fields_set:
            raise bad_request("at least one parameter must be provided")
        issue |= {"updated_at": now()}
        if given.title is not None:
            issue["title"] = given.title
        if given.description is not None:
            issue["description"] = _checked(given.description)
        if given.state_event is not None:
            closes = given.state_event == "close"
            issue |= {"state": "closed" if closes else "opened", "closed_at": now() if closes else None}
        self._store.put(ISSUES, f"{project['id']}/{issue['iid']}", issue)
        return web.json_response(self._shown(project, issue))

    def _find(self, request: web.Request) -> tuple[Caller, Document, Document]:
        caller = authenticate(self._store, request)
        project = self._instance.require_project(caller, request)
        issue = self._store.get(ISSUES, f"{project['id']}/{number(request, 'iid')}")
        if issue is None:
            raise not_found("Issue")
        return caller, project, issue

    def _shown(self, project: Document, issue: Document) -> dict[str, Any]:
        author = self._store.get(USERS, str(issue["author_id"]))
        path = self._instance.project_path(project)
        return {
            **{key: value for key, value in issue.items() if key != "author_id"},
            "author": self._instance.user(author) if author else None,
            "type": "ISSUE",
            "labels": [],
            "web_url": f"{self._instance.external_url()}/{path}/-/issues/{issue['iid']}",
        }


def _checked(description: str | None) -> str | None:
    if description is not None and len(description) > MAXIMUM_DESCRIPTION_LENGTH:
        raise bad_request(f"Description is too long (maximum is {MAXIMUM_DESCRIPTION_LENGTH} characters)")
    return description
