"""Runners: https://docs.gitlab.com/api/runners/ and https://docs.gitlab.com/api/users/#create-a-runner-linked-to-a-user."""

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from sandbox.gitlab.access import GROUPS, PROJECTS, USERS, Caller, authenticate
from sandbox.gitlab.http import (
    API,
    Parameters,
    Refusal,
    TagList,
    bad_request,
    forbidden,
    not_found,
    now,
    number,
    paginated,
    parameters,
)
from sandbox.gitlab.instance import Instance
from sandbox.store import Store

RUNNERS = "gitlab_runner"
JOBS = "gitlab_job"
MANAGERS = "gitlab_runner_manager"

# https://docs.gitlab.com/ci/runners/runners_scope/ and "Runner statuses" in its documentation.
ONLINE_FOR = timedelta(hours=2)
STALE_AFTER = timedelta(days=7)

# https://docs.gitlab.com/ci/runners/configure_runners/#set-the-maximum-job-timeout: 10 minutes at least.
MINIMUM_TIMEOUT_S = 600
# Of a description and of a maintenance note (GitLab's model of a runner).
MAXIMUM_TEXT_LENGTH = 1024
MAXIMUM_TAGS = 50

RunnerType = Literal["instance_type", "group_type", "project_type"]
AccessLevel = Literal["not_protected", "ref_protected"]
Document = dict[str, Any]

# What the prefix of a created runner's token tells: https://docs.gitlab.com/security/tokens/#token-prefixes.
_TOKEN_PARTITION = {"instance_type": "t1", "group_type": "t2", "project_type": "t3"}


class _RunnerFields(Parameters):
    description: str | None = None
    paused: bool | None = None
    locked: bool | None = None
    run_untagged: bool | None = None
    tag_list: TagList | None = None
    access_level: AccessLevel | None = None
    maximum_timeout: int | None = None
    maintenance_note: str | None = None


class _NewRunner(_RunnerFields):
    runner_type: RunnerType
    group_id: int | None = None
    project_id: int | None = None


class _ChangedRunner(_RunnerFields):
    active: bool | None = None


class _RunnerToken(Parameters):
    token: str
    system_id: str | None = None


class _ManagerName(Parameters):
    token: str
    system_id: str


class _ProjectRunner(Parameters):
    runner_id: int


class _Filter(Parameters):
    scope: str | None = None
    type: RunnerType | None = None
    status: Literal["active", "paused", "online", "offline", "never_contacted", "stale"] | None = None
    paused: bool | None = None
    tag_list: TagList | None = None
    version_prefix: Annotated[str | None, Field(pattern=r"^[\d+.]+")] = None


class _JobFilter(Parameters):
    status: Literal["pending", "running", "success", "failed", "canceled"] | None = None


class Runners:
    """The runner endpoints, and what the job queue needs to know about runners."""

    def __init__(self, store: Store, instance: Instance) -> None:
        self._store = store
        self._instance = instance

    def routes(self) -> list[web.RouteDef]:
        """The routes; fixed paths come before those with an id."""
        return [
            web.post(f"{API}/user/runners", self._create),
            web.get(f"{API}/runners", self._list_owned),
            web.delete(f"{API}/runners", self._delete_by_token),
            web.get(f"{API}/runners/all", self._list_all),
            web.post(f"{API}/runners/verify", self._verify),
            web.post(f"{API}/runners/reset_authentication_token", self._reset_own_token),
            web.delete(f"{API}/runners/managers", self._delete_manager),
            web.get(f"{API}/runners/{{id}}", self._read),
            web.put(f"{API}/runners/{{id}}", self._update),
            web.delete(f"{API}/runners/{{id}}", self._delete),
            web.get(f"{API}/runners/{{id}}/managers", self._list_managers),
            web.get(f"{API}/runners/{{id}}/jobs", self._list_jobs),
            web.post(f"{API}/runners/{{id}}/reset_authentication_token", self._reset_token),
            web.get(f"{API}/projects/{{id}}/runners", self._list_of_project),
            web.post(f"{API}/projects/{{id}}/runners", self._assign),
            web.delete(f"{API}/projects/{{id}}/runners/{{runner_id}}", self._unassign),
            web.get(f"{API}/groups/{{id}}/runners", self._list_of_group),
        ]

    # For the job queue.

    def by_token(self, token: str) -> Document | None:
        """The runner with this authentication token."""
        matches = (r for r in self._store.list(RUNNERS) if secrets.compare_digest(r["token"].encode(), token.encode()))
        found = next(matches, None)
        # ISO times of one zone compare as text.
        return found if found is None or (found["token_expires_at"] or "9") > now() else None

    def heard_from(self, runner: Document, system_id: str | None, info: Document, address: str | None) -> None:
        """Note that a manager of `runner` has called: what makes it online."""
        runner["contacted_at"] = now()
        self._store.put(RUNNERS, str(runner["id"]), runner)
        key = f"{runner['id']}/{system_id or '<legacy>'}"
        manager = self._store.get(MANAGERS, key) or {
            "id": self._store.next_number(MANAGERS),
            "runner_id": runner["id"],
            "system_id": system_id or "<legacy>",
            "created_at": now(),
        }
        manager |= {"contacted_at": runner["contacted_at"], "ip_address": address}
        for field in ("version", "revision", "platform", "architecture"):
            manager[field] = info.get(field) or manager.get(field)
        self._store.put(MANAGERS, key, manager)

    # Creating, reading, changing, deleting.

    async def _create(self, request: web.Request) -> web.Response:
        caller = authenticate(self._store, request, "create_runner")
        new = await parameters(request, _NewRunner)
        scope: list[int] = []
        allowed = caller.is_admin
        if new.runner_type == "group_type":
            if new.group_id is None:
                raise Refusal(400, {"error": "group_id is missing"})
            group = self._store.get(GROUPS, str(new.group_id))
            scope, allowed = [new.group_id], group is not None and caller.owns(group)
        elif new.runner_type == "project_type":
            if new.project_id is None:
                raise Refusal(400, {"error": "project_id is missing"})
            project = self._store.get(PROJECTS, str(new.project_id))
            scope, allowed = [new.project_id], project is not None and self._instance.owns_project(caller, project)
        if not allowed:
            raise forbidden("Insufficient permissions")
        runner: Document = {
            "id": 0,
            "runner_type": new.runner_type,
            "group_ids": scope if new.runner_type == "group_type" else [],
            "project_ids": scope if new.runner_type == "project_type" else [],
            "description": new.description,
            "paused": bool(new.paused),
            "locked": bool(new.locked),
            "run_untagged": new.run_untagged is not False,
            "tag_list": new.tag_list or [],
            "access_level": new.access_level or "not_protected",
            "maximum_timeout": new.maximum_timeout,
            "maintenance_note": new.maintenance_note,
            "created_by": caller.user["id"],
            "created_at": now(),
            "contacted_at": None,
            **self._new_token(new.runner_type),
        }
        complaints = _complaints(runner)
        if complaints:
            raise bad_request(" and ".join(f"{_words(field)} {text}" for field, text in complaints.items()))
        runner["id"] = self._store.next_number(RUNNERS)
        self._store.put(RUNNERS, str(runner["id"]), runner)
        return web.json_response(_credentials(runner), status=201)

    async def _read(self, request: web.Request) -> web.Response:
        caller, runner = self._find(request)
        if runner["runner_type"] != "instance_type" and not self._may_change(caller, runner):
            raise forbidden("No access granted")
        return web.json_response(self._details(runner, caller))

    async def _update(self, request: web.Request) -> web.Response:
        caller, runner = self._find(request)
        self._require_change(caller, runner)
        changes = (await parameters(request, _ChangedRunner)).model_dump(exclude_unset=True)
        if not changes:
            fields = ", ".join(["description", "active", *list(_RunnerFields.model_fields)[1:]])
            raise Refusal(400, {"error": f"{fields} are missing, at least one parameter must be provided"})
        if {"active", "paused"} <= changes.keys():
            raise Refusal(400, {"error": "active, paused are mutually exclusive"})
        if "active" in changes:
            changes["paused"] = not changes.pop("active")
        clearable = ("description", "maximum_timeout", "maintenance_note")
        runner |= {field: value for field, value in changes.items() if value is not None or field in clearable}
        complaints = _complaints(runner)
        if complaints:
            raise Refusal(400, {"message": {field: [text] for field, text in complaints.items()}})
        self._store.put(RUNNERS, str(runner["id"]), runner)
        return web.json_response(self._details(runner, caller))

    async def _delete(self, request: web.Request) -> web.Response:
        caller, runner = self._find(request)
        if len(runner["project_ids"]) > 1 and not caller.is_admin:
            raise forbidden("Runner associated with more than one project")
        self._require_change(caller, runner)
        self._remove(runner)
        return web.Response(status=204)

    async def _list_managers(self, request: web.Request) -> web.Response:
        caller, runner = self._find(request)
        if runner["runner_type"] != "instance_type":
            self._require_change(caller, runner)
        managers = [m for m in self._store.list(MANAGERS) if m["runner_id"] == runner["id"]]
        shown = [
            {field: value for field, value in manager.items() if field != "runner_id"}
            | {
                "status": _status(manager),
                "job_execution_status": self._execution_status(runner["id"], manager["system_id"]),
            }
            for manager in managers
        ]
        return paginated(request, shown)

    async def _reset_token(self, request: web.Request) -> web.Response:
        caller, runner = self._find(request)
        self._require_change(caller, runner)
        return self._with_new_token(runner)

    # What the runner itself calls.

    async def _verify(self, request: web.Request) -> web.Response:
        given = await parameters(request, _RunnerToken)
        runner = self._require_token(given.token)
        self.heard_from(runner, given.system_id, {}, request.remote)
        return web.json_response(_credentials(runner))

    async def _reset_own_token(self, request: web.Request) -> web.Response:
        return self._with_new_token(self._require_token((await parameters(request, _RunnerToken)).token))

    async def _delete_by_token(self, request: web.Request) -> web.Response:
        self._remove(self._require_token((await parameters(request, _RunnerToken)).token))
        return web.Response(status=204)

    async def _delete_manager(self, request: web.Request) -> web.Response:
        given = await parameters(request, _ManagerName)
        runner = self._require_token(given.token)
        if not self._store.delete(MANAGERS, f"{runner['id']}/{given.system_id}"):
            raise not_found("Runner manager")
        return web.Response(status=204)

    async def _list_jobs(self, request: web.Request) -> web.Response:
        """The jobs that a runner has, or had; of each what tells it from the others."""
        caller, runner = self._find(request)
        if not self._may_change(caller, runner):
            raise forbidden("No access granted")
        status = (await parameters(request, _JobFilter)).status
        jobs = [job for job in self._store.list(JOBS) if job["runner"] == runner["id"]]
        shown = [
            {
                field: job[field]
                for field in ("id", "name", "stage", "status", "created_at", "started_at", "finished_at")
            }
            for job in jobs
            if status in (None, job["status"])
        ]
        return paginated(request, shown)

    # Lists.

    async def _list_owned(self, request: web.Request) -> web.Response:
        caller = authenticate(self._store, request)
        return await self._list(request, (r for r in self._store.list(RUNNERS) if self._may_change(caller, r)))

    async def _list_all(self, request: web.Request) -> web.Response:
        if not authenticate(self._store, request).is_admin:
            raise forbidden()
        return await self._list(request, self._store.list(RUNNERS))

    async def _list_of_project(self, request: web.Request) -> web.Response:
        project = self._instance.require_project(authenticate(self._store, request), request)
        return await self._list(request, (r for r in self._store.list(RUNNERS) if serves(r, project)))

    async def _list_of_group(self, request: web.Request) -> web.Response:
        group = self._instance.require_group(authenticate(self._store, request), request)
        available = (
            runner
            for runner in self._store.list(RUNNERS)
            if runner["runner_type"] == "instance_type" or group["id"] in runner["group_ids"]
        )
        return await self._list(request, available)

    async def _list(self, request: web.Request, runners: Iterable[Document]) -> web.Response:
        wanted = await parameters(request, _Filter)
        shown = [self._summary(runner) for runner in runners if self._matches(runner, wanted)]
        shown.sort(key=lambda runner: -int(runner["id"]))
        return paginated(request, shown)

    def _matches(self, runner: Document, wanted: _Filter) -> bool:
        versions = [str(m.get("version")) for m in self._store.list(MANAGERS) if m["runner_id"] == runner["id"]]
        return (
            (wanted.type is None or runner["runner_type"] == wanted.type)
            and (wanted.paused is None or runner["paused"] == wanted.paused)
            and (wanted.tag_list is None or set(wanted.tag_list) <= set(runner["tag_list"]))
            and (wanted.status is None or _in_scope(runner, wanted.status))
            and (wanted.scope is None or _in_scope(runner, wanted.scope))
            and (wanted.version_prefix is None or any(v.startswith(wanted.version_prefix) for v in versions))
        )

    # Projects of a project runner.

    async def _assign(self, request: web.Request) -> web.Response:
        caller = authenticate(self._store, request)
        project = self._instance.require_project(caller, request)
        runner = self._require_runner((await parameters(request, _ProjectRunner)).runner_id)
        if runner["runner_type"] == "group_type":
            raise forbidden("Runner is a group runner")
        if not caller.is_admin and runner["locked"]:
            raise forbidden("Runner is locked")
        self._require_change(caller, runner)
        if project["id"] in runner["project_ids"]:
            raise bad_request("Runner has already been taken")
        runner["project_ids"].append(project["id"])
        self._store.put(RUNNERS, str(runner["id"]), runner)
        return web.json_response(self._summary(runner), status=201)

    async def _unassign(self, request: web.Request) -> web.Response:
        caller = authenticate(self._store, request)
        project = self._instance.require_project(caller, request)
        runner = self._require_runner(number(request, "runner_id"))
        if project["id"] not in runner["project_ids"]:
            raise not_found("Runner")
        if not caller.is_admin and runner["locked"]:
            raise forbidden("Runner is locked")
        if runner["project_ids"][0] == project["id"]:
            raise forbidden("You cannot unassign a runner from the owner project. Delete the runner instead")
        runner["project_ids"].remove(project["id"])
        self._store.put(RUNNERS, str(runner["id"]), runner)
        return web.Response(status=204)

    # Finding and allowing.

    def _find(self, request: web.Request) -> tuple[Caller, Document]:
        caller = authenticate(self._store, request, "manage_runner")
        return caller, self._require_runner(number(request))

    def _require_runner(self, runner_id: int) -> Document:
        runner = self._store.get(RUNNERS, str(runner_id))
        if runner is None:
            raise not_found("Runner")
        return runner

    def _require_token(self, token: str) -> Document:
        runner = self.by_token(token)
        if runner is None:
            raise forbidden()
        return runner

    def _may_change(self, caller: Caller, runner: Document) -> bool:
        if caller.is_admin:
            return True
        groups = (self._store.get(GROUPS, str(group_id)) for group_id in runner["group_ids"])
        projects = (self._store.get(PROJECTS, str(project_id)) for project_id in runner["project_ids"])
        return any(group and caller.owns(group) for group in groups) or any(
            project and self._instance.owns_project(caller, project) for project in projects
        )

    def _require_change(self, caller: Caller, runner: Document) -> None:
        if not self._may_change(caller, runner):
            raise forbidden("No access granted")

    def _remove(self, runner: Document) -> None:
        self._store.delete(RUNNERS, str(runner["id"]))
        for manager in self._store.list(MANAGERS):
            if manager["runner_id"] == runner["id"]:
                self._store.delete(MANAGERS, f"{runner['id']}/{manager['system_id']}")

    def _with_new_token(self, runner: Document) -> web.Response:
        runner |= self._new_token(runner["runner_type"])
        self._store.put(RUNNERS, str(runner["id"]), runner)
        return web.json_response({field: runner[field] for field in ("token", "token_expires_at")}, status=201)

    def _new_token(self, runner_type: str) -> Document:
        interval = self._instance.runner_token_interval(runner_type)
        end = now(timedelta(seconds=interval)) if interval is not None else None
        return {"token": f"glrt-{_TOKEN_PARTITION[runner_type]}_{secrets.token_urlsafe(15)}", "token_expires_at": end}

    # Showing.

    def _summary(self, runner: Document) -> Document:
        creator = self._store.get(USERS, str(runner["created_by"]))
        return {
            "id": runner["id"],
            "description": runner["description"],
            "ip_address": None,
            "active": not runner["paused"],
            "paused": runner["paused"],
            "is_shared": runner["runner_type"] == "instance_type",
            "runner_type": runner["runner_type"],
            "name": None,
            "online": _status(runner) == "online",
            "created_by": self._instance.user(creator) if creator else None,
            "created_at": runner["created_at"],
            "status": _rest_status(runner),
            "job_execution_status": self._execution_status(runner["id"]),
        }

    def _execution_status(self, runner_id: int, system_id: str | None = None) -> str:
        """`active` while the runner (or one of its managers) has a job."""
        for job in self._store.list(JOBS):
            if job["status"] == "running" and job["runner"] == runner_id and system_id in (None, job["system_id"]):
                return "active"
        return "idle"

    def _details(self, runner: Document, caller: Caller) -> Document:
        managers = [m for m in self._store.list(MANAGERS) if m["runner_id"] == runner["id"]]
        latest = max(managers, key=lambda manager: str(manager["contacted_at"]), default=Document())
        projects = (self._store.get(PROJECTS, str(project_id)) for project_id in runner["project_ids"])
        groups = (self._store.get(GROUPS, str(group_id)) for group_id in runner["group_ids"])
        return self._summary(runner) | {
            **{field: runner[field] for field in ("tag_list", "run_untagged", "locked", "maximum_timeout")},
            "access_level": runner["access_level"],
            **{field: latest.get(field) for field in ("version", "revision", "platform", "architecture")},
            "contacted_at": runner["contacted_at"],
            "token_expires_at": runner["token_expires_at"],
            "maintenance_note": runner["maintenance_note"] if self._may_change(caller, runner) else None,
            "projects": [self._instance.project(project) for project in projects if project],
            "groups": [self._instance.group(group) for group in groups if group],
        }


def serves(runner: Document, project: Document) -> bool:
    """Whether a runner is there for the jobs of a project, tags and protection aside."""
    return (
        runner["runner_type"] == "instance_type"
        or project["group_id"] in runner["group_ids"]
        or project["id"] in runner["project_ids"]
    )


def _credentials(runner: Document) -> Document:
    return {field: runner[field] for field in ("id", "token", "token_expires_at")}


def _complaints(runner: Document) -> dict[str, str]:
    """What is wrong with a runner, by field, in GitLab's words."""
    complaints = {}
    if runner["maximum_timeout"] is not None and runner["maximum_timeout"] < MINIMUM_TIMEOUT_S:
        complaints["maximum_timeout"] = "needs to be at least 10 minutes"
    for field in ("description", "maintenance_note"):
        if len(runner[field] or "") > MAXIMUM_TEXT_LENGTH:
            complaints[field] = f"is too long (maximum is {MAXIMUM_TEXT_LENGTH} characters)"
    if not runner["tag_list"] and not runner["run_untagged"]:
        complaints["tags_list"] = "can not be empty when runner is not allowed to pick untagged jobs"
    if len(runner["tag_list"]) > MAXIMUM_TAGS:
        complaints["tags_list"] = f"Too many tags specified. Please limit the number of tags to {MAXIMUM_TAGS}"
    return complaints


def _words(field: str) -> str:
    return field.replace("_", " ").capitalize()


def _status(contacted: Document) -> str:
    """Of a runner or a manager: never_contacted, online, offline or stale."""
    moment = datetime.now(UTC)
    last = contacted["contacted_at"] or contacted["created_at"]
    silent_for = moment - datetime.fromisoformat(last.replace("Z", "+00:00"))
    if silent_for > STALE_AFTER:
        return "stale"
    if contacted["contacted_at"] is None:
        return "never_contacted"
    return "online" if silent_for <= ONLINE_FOR else "offline"


def _rest_status(runner: Document) -> str:
    """`status` as REST shows it: a paused runner that has been in contact is `paused`."""
    status = _status(runner)
    return "paused" if runner["paused"] and status in ("online", "offline") else status


def _in_scope(runner: Document, scope: str) -> bool:
    match scope:
        case "active" | "paused":
            return bool(runner["paused"]) == (scope == "paused")
        case "shared" | "specific":
            is_shared: bool = runner["runner_type"] == "instance_type"
            return is_shared == (scope == "shared")
        case "online" | "offline" | "never_contacted" | "stale":
            return _status(runner) == scope
        case "instance_type" | "group_type" | "project_type":
            return bool(runner["runner_type"] == scope)
        case _:
            raise Refusal(400, {"message": "Scope contains invalid value"})
