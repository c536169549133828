"""The job queue: what a runner calls, and the control routes that put jobs into it.

Source: the API that GitLab Runner speaks, https://docs.gitlab.com/runner/ and gitlab-runner's `common/spec`; jobs are
handed out by https://docs.gitlab.com/ci/runners/configure_runners/ (tags, untagged jobs, protected branches, pausing).
"""

import secrets
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BeforeValidator, Field, field_validator

from sandbox.gitlab.access import PROJECTS
from sandbox.gitlab.http import API, Parameters, Refusal, TagList, forbidden, not_found, now, number, parameters
from sandbox.gitlab.instance import Instance
from sandbox.gitlab.runners import JOBS, Runners, serves
from sandbox.store import Store

TRACES = "gitlab_trace"

# https://docs.gitlab.com/ci/pipelines/settings/#set-a-limit-for-how-long-jobs-can-run: an hour, unless a runner's
# maximum timeout is shorter.
DEFAULT_TIMEOUT_S = 3600

# GitLab asks for 3 s while somebody watches the log; in the sandbox somebody always does, and waits for it.
TRACE_UPDATE_INTERVAL_S = 1

Document = dict[str, Any]


def _as_named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class _Service(Parameters):
    name: str
    alias: str | None = None
    command: list[str] | None = None
    entrypoint: list[str] | None = None
    variables: dict[str, str] = Field(default_factory=dict)


class _NewJob(Parameters):
    project: int | str = 100
    name: str = "job"
    stage: str = "test"
    tags: TagList = Field(default_factory=list)
    image: str | None = None
    pull_policy: list[str] | None = None
    services: list[Annotated[_Service, BeforeValidator(_as_named)]] = Field(default_factory=list)
    script: list[str] = Field(min_length=1)
    variables: dict[str, str] = Field(default_factory=dict)
    protected: bool = False
    timeout: int = DEFAULT_TIMEOUT_S

    @field_validator("script", mode="before")
    @classmethod
    def _one_line_is_a_script(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class _JobRequest(Parameters):
    token: str
    system_id: str | None = None
    info: dict[str, Any] = Field(default_factory=dict)


class _JobUpdate(Parameters):
    token: str
    state: Literal["running", "success", "failed"] | None = None
    failure_reason: str | None = None
    exit_code: int | None = None


class Jobs:
    """The endpoints under /jobs and /sandbox/jobs."""

    def __init__(self, store: Store, instance: Instance, runners: Runners) -> None:
        self._store = store
        self._instance = instance
        self._runners = runners

    def routes(self) -> list[web.RouteDef]:
        """The routes."""
        return [
            web.post(f"{API}/jobs/request", self._request),
            web.patch(f"{API}/jobs/{{id}}/trace", self._append_trace),
            web.put(f"{API}/jobs/{{id}}", self._update),
            web.post("/sandbox/jobs", self._post),
            web.get("/sandbox/jobs", self._list),
            web.delete("/sandbox/jobs", self._cancel_pending),
            web.get("/sandbox/jobs/{id}", self._read),
        ]

    # What the runner calls.

    async def _request(self, request: web.Request) -> web.Response:
        asked = await parameters(request, _JobRequest)
        runner = self._runners.by_token(asked.token)
        if runner is None:
            raise forbidden()
        self._runners.heard_from(runner, asked.system_id, asked.info, request.remote)
        if runner["paused"]:
            return web.Response(status=204)
        for job in self._store.list(JOBS):
            if job["status"] == "pending" and self._may_run(runner, job):
                job |= {"status": "running", "runner": runner["id"], "system_id": asked.system_id, "started_at": now()}
                self._store.put(JOBS, str(job["id"]), job)
                return web.json_response(self._payload(job, runner), status=201)
        return web.Response(status=204)

    def _may_run(self, runner: Document, job: Document) -> bool:
        project = self._store.get(PROJECTS, str(job["project"]))
        return (
            project is not None
            and serves(runner, project)
            and set(job["tags"]) <= set(runner["tag_list"])
            and (bool(job["tags"]) or bool(runner["run_untagged"]))
            and (runner["access_level"] != "ref_protected" or bool(job["protected"]))
        )

    async def _append_trace(self, request: web.Request) -> web.Response:
        job = self._authenticate(request, request.headers.get("JOB-TOKEN", ""))
        if "Content-Range" not in request.headers:
            raise Refusal(400, {"error": "400 Missing header Content-Range"})
        start_text = request.headers["Content-Range"].partition("-")[0]
        start = int(start_text) if start_text.isdigit() else 0
        # One character a byte: ranges count bytes, and a chunk may end inside a UTF-8 sequence.
        trace = self._trace(job)
        if start > len(trace):
            headers = {"Range": f"0-{len(trace)}"}
            raise Refusal(416, {"error": "416 Range Not Satisfiable"}, headers)
        trace = trace[:start] + (await request.read()).decode("latin-1")
        self._store.put(TRACES, str(job["id"]), {"bytes": trace})
        headers = {
            "Job-Status": job["status"],
            "Range": f"0-{len(trace)}",
            "X-GitLab-Trace-Update-Interval": str(TRACE_UPDATE_INTERVAL_S),
        }
        return web.Response(status=202, headers=headers, text=f"0-{len(trace)}")

    async def _update(self, request: web.Request) -> web.Response:
        change = await parameters(request, _JobUpdate)
        job = self._authenticate(request, change.token)
        if change.state in ("success", "failed"):
            job |= {"status": change.state, "finished_at": now(), "exit_code": change.exit_code}
            if change.state == "failed":
                job["failure_reason"] = change.failure_reason or "unknown_failure"
            self._store.put(JOBS, str(job["id"]), job)
        headers = {"Job-Status": job["status"], "X-GitLab-Trace-Update-Interval": str(TRACE_UPDATE_INTERVAL_S)}
        return web.Response(text="200", headers=headers)

    def _authenticate(self, request: web.Request, token: str) -> Document:
        """The running job, to whoever has its token; a runner that is refused gives the job up."""
        job = self._store.get(JOBS, str(number(request)))
        if job is None or not secrets.compare_digest(str(job["token"]).encode(), token.encode()):
            raise forbidden()
        if job["status"] != "running":
            raise forbidden("Job is not running", {"Job-Status": job["status"]})
        return job

    def _payload(self, job: Document, runner: Document) -> Document:
        """What a runner needs to run the job."""
        project = self._store.get(PROJECTS, str(job["project"])) or Document()
        path = self._instance.project_path(project)
        timeout = min(int(job["timeout"]), runner["maximum_timeout"] or int(job["timeout"]))
        sha = "0" * 40
        url = self._instance.external_url()
        predefined = {
            "CI": "true",
            "GITLAB_CI": "true",
            "CI_SERVER": "yes",
            "CI_SERVER_URL": url,
            "CI_API_V4_URL": f"{url}{API}",
            "CI_JOB_ID": str(job["id"]),
            "CI_JOB_NAME": job["name"],
            "CI_JOB_STAGE": job["stage"],
            "CI_JOB_URL": f"{url}/{path}/-/jobs/{job['id']}",
            "CI_PIPELINE_ID": str(job["id"]),
            "CI_PROJECT_ID": str(job["project"]),
            "CI_PROJECT_NAME": project["path"],
            "CI_PROJECT_PATH": path,
            "CI_PROJECT_DIR": f"/builds/{path}",
            "CI_COMMIT_SHA": sha,
            "CI_COMMIT_REF_NAME": "main",
            "CI_COMMIT_REF_PROTECTED": str(job["protected"]).lower(),
            "CI_RUNNER_ID": str(runner["id"]),
            "CI_RUNNER_DESCRIPTION": runner["description"] or "",
            "CI_RUNNER_TAGS": str(runner["tag_list"]),
            # The sandbox has no repositories.
            "GIT_STRATEGY": "none",
        }
        variables = [_variable(key, value) for key, value in (predefined | job["variables"]).items()]
        secret = _variable("CI_JOB_TOKEN", job["token"]) | {"public": False, "masked": True}
        return {
            "id": job["id"],
            "token": job["token"],
            "allow_git_fetch": True,
            "job_info": {
                "id": job["id"],
                "name": job["name"],
                "stage": job["stage"],
                "project_id": job["project"],
                "project_name": project["path"],
                "project_full_name": path,
                "time_in_queue_seconds": 0,
                "project_jobs_running_on_instance_runners_count": "0",
            },
            "git_info": {
                "repo_url": f"{url}/{path}.git",
                "repo_object_format": "sha1",
                "ref": "main",
                "sha": sha,
                "before_sha": sha,
                "ref_type": "branch",
                "refspecs": ["+refs/heads/main:refs/remotes/origin/main"],
                "depth": 20,
                "protected": job["protected"],
            },
            "runner_info": {"timeout": timeout, "runner_session_url": None},
            "inputs": [],
            "variables": [*variables, secret],
            "steps": [
                {
                    "name": "script",
                    "script": job["script"],
                    "timeout": timeout,
                    "when": "on_success",
                    "allow_failure": False,
                }
            ],
            "image": (_image({"name": job["image"], "pull_policy": job.get("pull_policy")}) if job["image"] else None),
            "services": [_image(service) for service in job["services"]],
            "artifacts": None,
            "cache": [],
            "credentials": [],
            "dependencies": [],
            "hooks": [],
            "features": {
                "trace_sections": True,
                "token_mask_prefixes": ["glpat-", "glrt-", "glcbt-"],
                "failure_reasons": [
                    "unknown_failure",
                    "script_failure",
                    "runner_system_failure",
                    "job_execution_timeout",
                    "image_pull_failure",
                    "runner_configuration_error",
                    "runner_external_dependency_failure",
                    "runner_interrupted",
                    "job_canceled",
                ],
            },
        }

    # What the sandbox's own tools call.

    async def _post(self, request: web.Request) -> web.Response:
        new = await parameters(request, _NewJob)
        project = self._instance.find_project(str(new.project))
        if project is None:
            raise not_found("Project")
        job_id = self._store.next_number(JOBS)
        job = {
            "id": job_id,
            "token": f"glcbt-{secrets.token_urlsafe(15)}",
            **new.model_dump(),
            "project": project["id"],
            "status": "pending",
            "runner": None,
            "system_id": None,
            "failure_reason": None,
            "exit_code": None,
            "created_at": now(),
            "started_at": None,
            "finished_at": None,
        }
        self._store.put(JOBS, str(job_id), job)
        return web.json_response(self._shown(job), status=201)

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response([self._shown(job) for job in self._store.list(JOBS)])

    async def _cancel_pending(self, _: web.Request) -> web.Response:
        for job in self._store.list(JOBS):
            if job["status"] == "pending":
                self._store.put(JOBS, str(job["id"]), job | {"status": "canceled", "finished_at": now()})
        return web.Response(status=204)

    async def _read(self, request: web.Request) -> web.Response:
        job = self._store.get(JOBS, str(number(request)))
        if job is None:
            raise not_found("Job")
        trace = self._trace(job).encode("latin-1").decode(errors="replace")
        return web.json_response(self._shown(job) | {"trace": trace})

    def _trace(self, job: Document) -> str:
        return str((self._store.get(TRACES, str(job["id"])) or {"bytes": ""})["bytes"])

    @staticmethod
    def _shown(job: Document) -> Document:
        return {field: value for field, value in job.items() if field != "token"}


def _variable(key: str, value: object) -> Document:
    return {"key": key, "value": value, "public": True, "file": False, "masked": False, "raw": True}


def _image(source: Document) -> Document:
    variables = [_variable(key, value) for key, value in source.get("variables", {}).items()]
    return {
        "name": source["name"],
        "alias": source.get("alias"),
        "command": source.get("command"),
        "entrypoint": source.get("entrypoint"),
        "ports": [],
        "variables": variables,
        "pull_policy": source.get("pull_policy"),
        "executor_opts": {},
    }
