"""Merge requests and their notes: https://docs.gitlab.com/api/notes/#merge-requests.

A merge request is made here by a control route, `POST /sandbox/merge_requests` {project, title}, since the sandbox has
no repositories. Quick actions are carried out nowhere and Markdown is only kept.
"""

from typing import Any, Literal

from aiohttp import web

from sandbox.gitlab.access import USERS, Caller, authenticate
from sandbox.gitlab.http import API, Parameters, bad_request, forbidden, not_found, now, number, paginated, parameters
from sandbox.gitlab.instance import Document, Instance
from sandbox.store import Store

MERGE_REQUESTS = "gitlab_merge_request"
NOTES = "gitlab_note"

# "The content of a note. Limited to 1,000,000 characters."
MAXIMUM_BODY_LENGTH = 1_000_000


class _Body(Parameters):
    body: str


class _Order(Parameters):
    sort: Literal["asc", "desc"] = "desc"
    order_by: Literal["created_at", "updated_at"] = "created_at"


class _MergeRequest(Parameters):
    project: int
    title: str = "A change"


class Notes:
    """The endpoints of merge requests and their notes."""

    def __init__(self, store: Store, instance: Instance) -> None:
        self._store = store
        self._instance = instance

    def routes(self) -> list[web.RouteDef]:
        """The routes."""
        request = f"{API}/projects/{{id}}/merge_requests/{{iid}}"
        return [
            web.post("/sandbox/merge_requests", self._open),
            web.get(request, self._read_request),
            web.get(f"{request}/notes", self._list),
            web.post(f"{request}/notes", self._create),
            web.get(f"{request}/notes/{{note}}", self._read),
            web.put(f"{request}/notes/{{note}}", self._update),
            web.delete(f"{request}/notes/{{note}}", self._delete),
        ]

    async def _open(self, request: web.Request) -> web.Response:
        given = await parameters(request, _MergeRequest)
        project = self._instance.find_project(str(given.project))
        if project is None:
            raise not_found("Project")
        iid = self._store.next_number(f"{MERGE_REQUESTS}/{project['id']}")
        document = {"iid": iid, "project_id": project["id"], "title": given.title, "created_at": now()}
        self._store.put(MERGE_REQUESTS, f"{project['id']}/{iid}", document)
        return web.json_response(self._shown_request(project, document), status=201)

    async def _read_request(self, request: web.Request) -> web.Response:
        _, project, merge_request = self._find(request)
        return web.json_response(self._shown_request(project, merge_request))

    async def _list(self, request: web.Request) -> web.Response:
        _, _, merge_request = self._find(request)
        order = await parameters(request, _Order)
        notes = [self._shown(note) for note in self._store.list(NOTES) if _belongs(note, merge_request)]
        notes.sort(key=lambda note: (note[order.order_by], note["id"]), reverse=order.sort == "desc")
        return paginated(request, notes)

    async def _create(self, request: web.Request) -> web.Response:
        caller, _, merge_request = self._find(request)
        body = await _body(request)
        id_ = self._store.next_number(NOTES)
        moment = now()
        note = {
            "id": id_,
            "project_id": merge_request["project_id"],
            "iid": merge_request["iid"],
            "author_id": caller.user["id"],
            "body": body,
            "created_at": moment,
            "updated_at": moment,
        }
        self._store.put(NOTES, str(id_), note)
        return web.json_response(self._shown(note), status=201)

    async def _read(self, request: web.Request) -> web.Response:
        _, _, merge_request = self._find(request)
        return web.json_response(self._shown(self._note(request, merge_request)))

    async def _update(self, request: web.Request) -> web.Response:
        caller, _, merge_request = self._find(request)
        note = self._own(caller, self._note(request, merge_request))
        note |= {"body": await _body(request), "updated_at": now()}
        self._store.put(NOTES, str(note["id"]), note)
        return web.json_response(self._shown(note))

    async def _delete(self, request: web.Request) -> web.Response:
        caller, _, merge_request = self._find(request)
        note = self._own(caller, self._note(request, merge_request))
        self._store.delete(NOTES, str(note["id"]))
        return web.Response(status=204)

    def _find(self, request: web.Request) -> tuple[Caller, Document, Document]:
        caller = authenticate(self._store, request)
        project = self._instance.require_project(caller, request)
        merge_request = self._store.get(MERGE_REQUESTS, f"{project['id']}/{number(request, 'iid')}")
        if merge_request is None:
            raise not_found("Merge Request")
        return caller, project, merge_request

    def _note(self, request: web.Request, merge_request: Document) -> Document:
        note = self._store.get(NOTES, str(number(request, "note")))
        if note is None or not _belongs(note, merge_request):
            raise not_found("Note")
        return note

    @staticmethod
    def _own(caller: Caller, note: Document) -> Document:
        # Maintainers may change the notes of others too; the sandbox knows no roles below the owner of a group.
        if not caller.is_admin and note["author_id"] != caller.user["id"]:
            raise forbidden()
        return note

    def _shown(self, note: Document) -> dict[str, Any]:
        author = self._store.get(USERS, str(note["author_id"]))
        return {
            "id": note["id"],
            "type": None,
            "body": note["body"],
            "author": self._instance.user(author) if author else None,
            "created_at": note["created_at"],
            "updated_at": note["updated_at"],
            "system": False,
            "noteable_id": note["iid"],
            "noteable_type": "MergeRequest",
            "project_id": note["project_id"],
            "resolvable": False,
            "confidential": False,
            "internal": False,
            "imported": False,
            "imported_from": "none",
            "noteable_iid": note["iid"],
        }

    def _shown_request(self, project: Document, merge_request: Document) -> dict[str, Any]:
        path = self._instance.project_path(project)
        return {
            "id": merge_request["iid"],
            **merge_request,
            "state": "opened",
            "web_url": f"{self._instance.external_url()}/{path}/-/merge_requests/{merge_request['iid']}",
        }


def _belongs(note: Document, merge_request: Document) -> bool:
    return (note["project_id"], note["iid"]) == (merge_request["project_id"], merge_request["iid"])


async def _body(request: web.Request) -> str:
    body = (await parameters(request, _Body)).body
    if not body.strip():
        raise bad_request("""Note {:note=>["can't be blank"]}""")
    if len(body) > MAXIMUM_BODY_LENGTH:
        raise bad_request(f"""Note {{:note=>["is too long (maximum is {MAXIMUM_BODY_LENGTH} characters)"]}}""")
    return body
