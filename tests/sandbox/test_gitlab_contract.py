"""The contract between the GitLab double and its clients: python-gitlab, the provider's client, and GitLab Runner."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gitlab
import pytest
import requests
from aiohttp import web
from gitlab.exceptions import GitlabHttpError
from gitlab.v4.objects import ProjectMergeRequest

from review import HostError, issues
from review.comment import MARKER
from review.hosts import GitLabMergeRequest, MergeRequest
from sandbox.gitlab import Tokens, gitlab_app, seed
from sandbox.gitlab.access import ADMINISTRATOR_ID, PLATFORM_ID
from sandbox.gitlab.issues import ISSUES
from sandbox.gitlab.notes import NOTES
from sandbox.store import Store

GROUP_A, GROUP_B = 10, 11
PROJECT_A, PROJECT_B = 100, 101
TIMEOUT_S = 10


@dataclass(frozen=True)
class Sandbox:
    url: str
    tokens: Tokens

    def client(self, token: str) -> gitlab.Gitlab:
        return gitlab.Gitlab(self.url, private_token=token)

    def runner(self, **given: Any) -> dict[str, Any]:
        """A new group runner of team-a, unless something else is asked for; its id and token."""
        parameters = {"runner_type": "group_type", "group_id": GROUP_A, **given}
        created = self.client(self.tokens.platform).http_post("/user/runners", post_data=parameters)
        assert isinstance(created, dict)
        return created

    def call(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """What the runner, which has no client library, sends."""
        return requests.request(method, f"{self.url}{path}", timeout=TIMEOUT_S, **arguments)

    def take(self, runner: dict[str, Any], system_id: str = "r_000000000001") -> requests.Response:
        body = {"token": runner["token"], "system_id": system_id, "info": {"version": "19.4.1", "platform": "linux"}}
        return self.call("POST", "/api/v4/jobs/request", json=body)

    def post_job(self, **given: Any) -> int:
        answer = self.call("POST", "/sandbox/jobs", json={"project": PROJECT_A, "script": ["true"], **given})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    def job(self, job_id: int) -> dict[str, Any]:
        shown: dict[str, Any] = self.call("GET", f"/sandbox/jobs/{job_id}").json()
        return shown


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    store = Store(tmp_path / "store.sqlite")
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    loop = asyncio.new_event_loop()
    web_runner = web.AppRunner(gitlab_app(store, lambda: url))

    async def start() -> None:
        await web_runner.setup()
        await web.SockSite(web_runner, listener).start()

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Sandbox(url, seed(store))
    finally:
        asyncio.run_coroutine_threadsafe(web_runner.cleanup(), loop).result(TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(TIMEOUT_S)
        loop.close()
        store.close()


def refusal(status: int) -> Any:
    """The block must be refused with this status."""
    return pytest.raises(GitlabHttpError, match=rf"^{status}")


def test_seeding_twice_gives_the_same_tokens(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    assert seed(store) == seed(store)
    store.close()


def test_a_runner_is_created_read_updated_and_deleted(sandbox: Sandbox) -> None:
    created = sandbox.runner(description="docker on vm-1", tag_list=["docker", "linux"], maximum_timeout=3600)
    assert created["token"].startswith("glrt-")
    assert created["token_expires_at"] is None
    platform = sandbox.client(sandbox.tokens.platform)

    runner = platform.runners.get(created["id"])
    assert (runner.description, runner.tag_list, runner.runner_type) == (
        "docker on vm-1",
        ["docker", "linux"],
        "group_type",
    )
    assert (runner.run_untagged, runner.locked, runner.paused, runner.access_level) == (
        True,
        False,
        False,
        "not_protected",
    )
    assert [group["id"] for group in runner.groups] == [GROUP_A]
    assert (runner.status, runner.contacted_at, runner.online) == ("never_contacted", None, False)
    assert not hasattr(runner, "token")

    platform.runners.update(created["id"], {"paused": True, "tag_list": "a, b", "maintenance_note": "moves on Monday"})
    runner = platform.runners.get(created["id"])
    assert (runner.paused, runner.active, runner.tag_list) == (True, False, ["a", "b"])
    assert (runner.maintenance_note, runner.description) == ("moves on Monday", "docker on vm-1")

    platform.runners.delete(created["id"])
    with pytest.raises(gitlab.GitlabGetError) as gone:
        platform.runners.get(created["id"])
    assert gone.value.response_code == 404
    assert sandbox.take(created).status_code == 403


def test_tokens_expire_when_the_instance_says_so(sandbox: Sandbox) -> None:
    administrator = sandbox.client(sandbox.tokens.administrator)
    forever = sandbox.runner()
    settings = administrator.settings.get()
    settings.group_runner_token_expiration_interval = 7200
    settings.save()
    expiring = sandbox.runner()
    assert expiring["token_expires_at"].endswith("Z")
    platform = sandbox.client(sandbox.tokens.platform)
    assert platform.runners.get(expiring["id"]).token_expires_at == expiring["token_expires_at"]
    assert platform.runners.get(forever["id"]).token_expires_at is None
    assert sandbox.take(expiring).status_code == 204
    verified = sandbox.call("POST", "/api/v4/runners/verify", json={"token": expiring["token"], "system_id": "s_1"})
    assert verified.json() == expiring
    assert sandbox.runner(runner_type="project_type", project_id=PROJECT_A, group_id=None)["token_expires_at"] is None
    with refusal(403):
        platform.http_put("/application/settings", post_data={"runner_token_expiration_interval": 7200})
    with refusal(400):
        administrator.http_put("/application/settings", post_data={"runner_token_expiration_interval": 7199})


def test_lists_are_filtered_and_paginated(sandbox: Sandbox) -> None:
    ids = [sandbox.runner(tag_list=["docker", f"n{n}"])["id"] for n in range(25)]
    other = sandbox.runner(runner_type="project_type", project_id=PROJECT_B, paused=True)["id"]
    platform = sandbox.client(sandbox.tokens.platform)

    assert {r.id for r in platform.runners.list(get_all=True)} == {*ids, other}
    page = platform.runners.list(iterator=True, per_page=10)
    assert (page.total, page.total_pages, page.next_page) == (26, 3, 2)
    assert [r.id for r in platform.runners.list(paused=True)] == [other]
    assert [r.id for r in platform.runners.list(type="project_type")] == [other]
    assert [r.id for r in platform.runners.list(tag_list=["n3", "docker"])] == [ids[3]]
    assert platform.runners.list(status="online") == []
    assert [r.id for r in platform.projects.get("team-b/web").runners.list()] == [other]
    assert len(platform.groups.get(GROUP_A).runners.list(get_all=True)) == len(ids)
    assert len(sandbox.client(sandbox.tokens.administrator).runners.all(get_all=True)) == len(ids) + 1
    with refusal(403):
        platform.http_list("/runners/all")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runner_type": "team_type"}, "runner_type does not have a valid value"),
        ({"group_id": None}, "group_id is missing"),
        ({"maximum_timeout": "long"}, "maximum_timeout is invalid"),
        ({"description": "x" * 1025}, "Description is too long (maximum is 1024 characters)"),
        ({"maximum_timeout": 599}, "400 Bad request - Maximum timeout needs to be at least 10 minutes"),
        (
            {"run_untagged": False},
            "400 Bad request - Tags list can not be empty when runner is not allowed to pick untagged jobs",
        ),
    ],
)
def test_a_bad_runner_is_refused(sandbox: Sandbox, given: dict[str, Any], message: str) -> None:
    with refusal(400) as refused:
        sandbox.runner(**given)
    assert message in str(refused.value)


def test_a_bad_update_is_refused_by_field(sandbox: Sandbox) -> None:
    runner_id = sandbox.runner()["id"]
    headers = {"PRIVATE-TOKEN": sandbox.tokens.platform}
    answer = sandbox.call("PUT", f"/api/v4/runners/{runner_id}", headers=headers, json={"maximum_timeout": 10})
    assert (answer.status_code, answer.json()) == (
        400,
        {"message": {"maximum_timeout": ["needs to be at least 10 minutes"]}},
    )
    assert sandbox.call("PUT", f"/api/v4/runners/{runner_id}", headers=headers, json={}).status_code == 400


def test_tokens_may_do_what_their_scopes_say(sandbox: Sandbox) -> None:
    runner_id = sandbox.runner()["id"]
    runners, reader = sandbox.client(sandbox.tokens.runners), sandbox.client(sandbox.tokens.read_user)

    assert runners.personal_access_tokens.get("self").scopes == ["create_runner", "manage_runner"]
    assert runners.runners.get(runner_id).id == runner_id
    for forbidden in ("/user", "/version", "/runners", f"/groups/{GROUP_A}"):
        with refusal(403) as refused:
            runners.http_get(forbidden)
        assert "insufficient_scope" in str(refused.value)

    reader.auth()
    assert reader.user is not None
    assert reader.user.username == "platform"
    assert reader.version()[0].startswith("19.")
    answer = sandbox.call(
        "POST",
        "/api/v4/user/runners",
        headers={"Authorization": f"Bearer {sandbox.tokens.read_user}"},
        json={"runner_type": "group_type", "group_id": GROUP_A},
    )
    assert answer.status_code == 403
    assert answer.json() == {
        "error": "insufficient_scope",
        "error_description": "The request requires higher privileges than provided by the access token.",
        "scope": "api create_runner",
    }
    with pytest.raises(gitlab.GitlabAuthenticationError):
        sandbox.client("glpat-unknown").auth()


def test_instance_runners_belong_to_administrators(sandbox: Sandbox) -> None:
    with refusal(403) as refused:
        sandbox.runner(runner_type="instance_type")
    assert "403 Forbidden - Insufficient permissions" in str(refused.value)
    administrator = sandbox.client(sandbox.tokens.administrator)
    created = administrator.http_post("/user/runners", post_data={"runner_type": "instance_type"})
    assert isinstance(created, dict)
    platform = sandbox.client(sandbox.tokens.platform)
    assert platform.runners.get(created["id"]).is_shared
    with pytest.raises(gitlab.GitlabDeleteError, match="No access granted"):
        platform.runners.delete(created["id"])


def test_what_does_not_exist_is_not_found(sandbox: Sandbox) -> None:
    platform = sandbox.client(sandbox.tokens.platform)
    for path, message in (
        ("/projects/999", "404 Project Not Found"),
        ("/groups/team-z", "404 Group Not Found"),
        ("/runners/999", "404 Runner Not Found"),
        ("/nonsense", "404 Not Found"),
    ):
        with refusal(404) as refused:
            platform.http_get(path)
        assert message in str(refused.value)


def test_verifying_makes_a_runner_online_and_names_its_managers(sandbox: Sandbox) -> None:
    runner = sandbox.runner()
    for system_id in ("r_000000000001", "r_000000000002", "r_000000000001"):
        answer = sandbox.call("POST", "/api/v4/runners/verify", json={"token": runner["token"], "system_id": system_id})
        assert (answer.status_code, answer.json()) == (200, runner)
    platform = sandbox.client(sandbox.tokens.platform)
    assert platform.runners.get(runner["id"]).status == "online"
    managers = platform.http_list(f"/runners/{runner['id']}/managers")
    assert [(m["system_id"], m["status"]) for m in managers] == [
        ("r_000000000001", "online"),
        ("r_000000000002", "online"),
    ]
    assert sandbox.call("POST", "/api/v4/runners/verify", json={"token": "glrt-x"}).status_code == 403
    assert sandbox.call("POST", "/api/v4/runners/verify", json={}).json() == {"error": "token is missing"}


def test_a_reset_token_replaces_the_old_one(sandbox: Sandbox) -> None:
    runner = sandbox.runner()
    platform = sandbox.client(sandbox.tokens.platform)
    new = platform.http_post(f"/runners/{runner['id']}/reset_authentication_token")
    assert isinstance(new, dict)
    assert sandbox.take(runner).status_code == 403
    assert sandbox.take(new).status_code == 204
    assert sandbox.call("DELETE", "/api/v4/runners", json={"token": new["token"]}).status_code == 204


def test_tags_decide_which_job_a_runner_gets(sandbox: Sandbox) -> None:
    tagged = sandbox.runner(tag_list=["docker", "linux"], run_untagged=False)
    untagged = sandbox.runner()
    plain, docker, windows = (sandbox.post_job(tags=tags) for tags in ([], ["docker"], ["docker", "windows"]))
    assert sandbox.take(tagged).json()["id"] == docker
    assert sandbox.take(tagged).status_code == 204
    assert sandbox.take(untagged).json()["id"] == plain
    assert sandbox.take(untagged).status_code == 204
    assert sandbox.job(windows)["status"] == "pending"


def test_scope_protection_and_pausing_decide_too(sandbox: Sandbox) -> None:
    group_b = sandbox.runner(group_id=GROUP_B)
    protected = sandbox.runner(access_level="ref_protected")
    paused = sandbox.runner(paused=True)
    job = sandbox.post_job()
    assert [sandbox.take(r).status_code for r in (group_b, protected, paused)] == [204, 204, 204]
    platform = sandbox.client(sandbox.tokens.platform)
    platform.runners.update(paused["id"], {"paused": False})
    assert sandbox.take(paused).json()["id"] == job
    on_protected_branch = sandbox.post_job(protected=True)
    assert sandbox.take(protected).json()["id"] == on_protected_branch


def test_a_locked_runner_stays_with_its_project(sandbox: Sandbox) -> None:
    runner = sandbox.runner(runner_type="project_type", project_id=PROJECT_A, locked=True)
    job = sandbox.post_job(project=PROJECT_B)
    platform = sandbox.client(sandbox.tokens.platform)
    headers = {"PRIVATE-TOKEN": sandbox.tokens.platform}
    assign = {"headers": headers | {"Accept": "*/*"}, "json": {"runner_id": runner["id"]}}
    # Assigning needs the api scope.
    assert sandbox.call("POST", f"/api/v4/projects/{PROJECT_B}/runners", **assign).status_code == 403
    administrator = sandbox.client(sandbox.tokens.administrator)
    assert sandbox.take(runner).status_code == 204
    administrator.projects.get(PROJECT_B).runners.create({"runner_id": runner["id"]})
    assert sandbox.take(runner).json()["id"] == job
    assert {p["id"] for p in platform.runners.get(runner["id"]).projects} == {PROJECT_A, PROJECT_B}


def test_a_runners_jobs_are_listed_also_for_a_token_that_manages_runners(sandbox: Sandbox) -> None:
    runner = sandbox.runner(tag_list=["docker"])
    sandbox.post_job(tags=["docker"])
    running = sandbox.post_job(tags=["docker"])
    first = sandbox.take(runner).json()
    assert sandbox.take(runner).json()["id"] == running
    done = {"token": first["token"], "state": "success"}
    sandbox.call("PUT", f"/api/v4/jobs/{first['id']}", json=done)
    runners = sandbox.client(sandbox.tokens.runners)
    jobs = runners.http_list(f"/runners/{runner['id']}/jobs", status="running", get_all=True)
    assert [(job["id"], job["status"]) for job in jobs] == [(running, "running")]
    assert len(list(runners.http_list(f"/runners/{runner['id']}/jobs", get_all=True))) == 2


def test_a_job_is_run_as_gitlab_runner_does_it(sandbox: Sandbox) -> None:
    runner = sandbox.runner(maximum_timeout=600)
    job_id = sandbox.post_job(
        image="busybox",
        script=["echo grüße", "exit 3"],
        variables={"A": "1"},
        services=["redis", {"name": "db", "alias": "d"}],
    )
    payload = sandbox.take(runner).json()
    assert payload["id"] == job_id
    assert payload["steps"][0]["script"] == ["echo grüße", "exit 3"]
    assert payload["image"]["name"] == "busybox"
    assert [service["alias"] for service in payload["services"]] == [None, "d"]
    assert payload["runner_info"]["timeout"] == 600
    variables = {variable["key"]: variable["value"] for variable in payload["variables"]}
    assert (variables["A"], variables["GIT_STRATEGY"], variables["CI_PROJECT_PATH"]) == ("1", "none", "team-a/app")

    def append(start: int, text: bytes, token: str = payload["token"]) -> requests.Response:
        headers = {
            "JOB-TOKEN": token,
            "Content-Range": f"{start}-{start + len(text) - 1}",
            "Content-Type": "text/plain",
        }
        return sandbox.call("PATCH", f"/api/v4/jobs/{job_id}/trace", headers=headers, data=text)

    greeting = "grüße\n".encode()
    # A chunk may end in the middle of a character.
    assert append(0, greeting[:3]).headers["Range"] == "0-3"
    assert append(9, b"gap").status_code == 416
    assert append(9, b"gap").headers["Range"] == "0-3"
    answer = append(3, greeting[3:])
    assert (answer.status_code, answer.headers["Job-Status"]) == (202, "running")
    assert append(0, b"", token="other").status_code == 403

    shown = sandbox.job(job_id)
    assert (shown["status"], shown["trace"], shown["runner"]) == ("running", "grüße\n", runner["id"])
    assert shown["system_id"] == "r_000000000001"
    end = {"token": payload["token"], "state": "failed", "failure_reason": "script_failure", "exit_code": 3}
    assert sandbox.call("PUT", f"/api/v4/jobs/{job_id}", json=end).text == "200"
    shown = sandbox.job(job_id)
    assert (shown["status"], shown["failure_reason"], shown["exit_code"]) == ("failed", "script_failure", 3)
    late = append(len(greeting), b"late")
    assert (late.status_code, late.headers["Job-Status"]) == (403, "failed")
    assert "token" not in shown


def test_jobs_that_nobody_has_taken_can_be_canceled(sandbox: Sandbox) -> None:
    runner = sandbox.runner()
    taken, waiting = sandbox.post_job(), sandbox.post_job()
    assert sandbox.take(runner).json()["id"] == taken
    assert sandbox.call("DELETE", "/sandbox/jobs").status_code == 204
    assert [sandbox.job(job)["status"] for job in (taken, waiting)] == ["running", "canceled"]
    assert sandbox.take(runner).status_code == 204


def test_a_job_without_a_script_or_project_is_refused(sandbox: Sandbox) -> None:
    assert sandbox.call("POST", "/sandbox/jobs", json={"script": []}).status_code == 400
    assert sandbox.call("POST", "/sandbox/jobs", json={"script": "true", "project": 5}).status_code == 404


def merge_request(sandbox: Sandbox, token: str | None = None, project: int = PROJECT_A) -> ProjectMergeRequest:
    """A merge request that was just opened, as the client of a token sees it."""
    opened = sandbox.call("POST", "/sandbox/merge_requests", json={"project": project, "title": "A change"})
    assert opened.status_code == 201, opened.text
    client = sandbox.client(token or sandbox.tokens.administrator)
    return client.projects.get(project).mergerequests.get(opened.json()["iid"])


def test_notes_are_created_listed_changed_and_deleted(sandbox: Sandbox) -> None:
    request = merge_request(sandbox)
    assert request.web_url.endswith(f"/team-a/app/-/merge_requests/{request.iid}")
    first, second = (request.notes.create({"body": body}) for body in ("first", "second"))
    assert (first.system, first.noteable_type, first.noteable_iid) == (False, "MergeRequest", request.iid)
    assert first.author["username"] == "root"
    assert [note.id for note in request.notes.list(get_all=True)] == [second.id, first.id]
    assert [note.id for note in request.notes.list(get_all=True, sort="asc", per_page=1)] == [first.id, second.id]
    request.notes.update(first.id, {"body": "other"})
    changed = request.notes.get(first.id)
    assert (changed.body, changed.created_at) == ("other", first.created_at)
    assert changed.updated_at >= first.updated_at
    request.notes.delete(first.id)
    assert [note.id for note in request.notes.list(get_all=True)] == [second.id]
    with pytest.raises(gitlab.GitlabGetError, match="404 Note Not Found"):
        request.notes.get(first.id)


def test_a_note_is_neither_empty_nor_longer_than_a_million_characters(sandbox: Sandbox) -> None:
    request = merge_request(sandbox)
    assert len(request.notes.create({"body": "ä" * 1_000_000}).body) == 1_000_000
    for body in (" ", "x" * 1_000_001):
        with pytest.raises(gitlab.GitlabCreateError, match="400 Bad request - Note"):
            request.notes.create({"body": body})


def test_notes_belong_to_their_merge_request_and_their_author(sandbox: Sandbox) -> None:
    request, other = merge_request(sandbox), merge_request(sandbox, project=PROJECT_B)
    note = request.notes.create({"body": "the administrator's"})
    assert not other.notes.list(get_all=True)
    with pytest.raises(gitlab.GitlabGetError, match="404"):
        other.notes.get(note.id)
    # Its scopes allow to read, and only that.
    platform = sandbox.client(sandbox.tokens.platform).projects.get(PROJECT_A).mergerequests.get(request.iid)
    assert [each.id for each in platform.notes.list(get_all=True)] == [note.id]
    with pytest.raises(gitlab.GitlabCreateError, match="insufficient_scope"):
        platform.notes.create({"body": "x"})


def test_the_preview_comment_is_one_note_that_is_updated(sandbox: Sandbox, tmp_path: Path) -> None:
    request = merge_request(sandbox)
    person = request.notes.create({"body": f"{MARKER}\nlooks good"})
    with closing(Store(tmp_path / "store.sqlite")) as store:
        # No seeded token of another user may write one.
        store.put(NOTES, str(person.id), (store.get(NOTES, str(person.id)) or {}) | {"author_id": PLATFORM_ID})
    place = MergeRequest(sandbox.url, str(PROJECT_A), request.iid)
    host = GitLabMergeRequest(place, sandbox.tokens.administrator, job=False)
    assert host.post(f"{MARKER}\nnothing", create=False) is None
    first = host.post(f"{MARKER}\n/approve\nfirst push")
    assert host.post(f"{MARKER}\nsecond push") == first
    # Above the first page of a long discussion.
    for number in range(120):
        request.notes.create({"body": f"{number}: see {MARKER}"})
    assert host.post(f"{MARKER}\nthird push") == first
    notes = request.notes.list(get_all=True, sort="asc")
    assert [note.body for note in notes[:2]] == [person.body, f"{MARKER}\nthird push"]
    assert len(notes) == 122


def test_a_comment_that_cannot_be_posted_says_what_is_missing(sandbox: Sandbox) -> None:
    place = MergeRequest(sandbox.url, str(PROJECT_A), merge_request(sandbox).iid)
    with pytest.raises(HostError, match="a CI job token may read notes, but not write them"):
        GitLabMergeRequest(place, "a-job-token", job=True).post(MARKER)
    with pytest.raises(HostError, match="REVIEW_TOKEN needs the scope api"):
        GitLabMergeRequest(place, sandbox.tokens.platform, job=False).post(MARKER)
    with pytest.raises(HostError, match="cannot be reached"):
        GitLabMergeRequest(MergeRequest("http://127.0.0.1:9", "1", 1), "token", job=False).post(MARKER)


def test_issues_are_opened_listed_changed_and_closed(sandbox: Sandbox) -> None:
    project = sandbox.client(sandbox.tokens.administrator).projects.get(PROJECT_A)
    first, second = (project.issues.create({"title": title, "description": "x"}) for title in ("first", "second"))
    assert (first.state, first.author["username"]) == ("opened", "root")
    assert first.web_url.endswith(f"/team-a/app/-/issues/{first.iid}")
    assert [each.iid for each in project.issues.list(get_all=True, per_page=1)] == [second.iid, first.iid]
    project.issues.update(first.iid, {"description": "other", "state_event": "close"})
    changed = project.issues.get(first.iid)
    assert (changed.description, changed.state, changed.title) == ("other", "closed", "first")
    assert [each.iid for each in project.issues.list(get_all=True, state="opened")] == [second.iid]
    author = second.author["id"]
    assert [each.iid for each in project.issues.list(get_all=True, state="opened", author_id=author)] == [second.iid]
    assert not project.issues.list(get_all=True, author_id=author + 1000)
    assert not sandbox.client(sandbox.tokens.administrator).projects.get(PROJECT_B).issues.list(get_all=True)
    with pytest.raises(gitlab.GitlabGetError, match="404"):
        project.issues.get(99)
    with pytest.raises(gitlab.GitlabCreateError, match="title is invalid"):
        project.issues.create({"title": ""})
    with pytest.raises(gitlab.GitlabCreateError, match="400 Bad request - Description"):
        project.issues.create({"title": "x", "description": "x" * 1_048_577})
    with pytest.raises(gitlab.GitlabCreateError, match="insufficient_scope"):
        sandbox.client(sandbox.tokens.platform).projects.get(PROJECT_A).issues.create({"title": "x"})


def test_drift_is_one_issue_that_is_updated_and_closed(sandbox: Sandbox, tmp_path: Path) -> None:
    project = sandbox.client(sandbox.tokens.administrator).projects.get(PROJECT_A)
    copied = project.issues.create({"title": "a copy", "description": issues.MARKER})
    with closing(Store(tmp_path / "store.sqlite")) as store:
        # No seeded token of another user may open one.
        key = f"{PROJECT_A}/{copied.iid}"
        store.put(ISSUES, key, (store.get(ISSUES, key) or {}) | {"author_id": PLATFORM_ID})
    project.issues.create({"title": "a person's", "description": f"see {issues.MARKER}"})
    tracker = issues.GitLabIssues(sandbox.url, str(PROJECT_A), sandbox.tokens.administrator)
    assert tracker.post(f"{issues.MARKER}\nnothing", is_open=False) is None
    first = tracker.post(f"{issues.MARKER}\nfirst night", is_open=True)
    assert tracker.post(f"{issues.MARKER}\nsecond night", is_open=True) == first
    own = project.issues.list(get_all=True, author_id=ADMINISTRATOR_ID)
    (ours,) = (each for each in own if issues.is_ours(each.description))
    assert (ours.title, ours.description, ours.web_url) == (issues.TITLE, f"{issues.MARKER}\nsecond night", first)
    assert tracker.post(f"{issues.MARKER}\nnothing", is_open=False) == first
    assert project.issues.get(ours.iid).state == "closed"
    assert tracker.post(f"{issues.MARKER}\nthird night", is_open=True) != first
    assert len(project.issues.list(get_all=True, state="opened")) == 3
    assert project.issues.get(copied.iid).description == issues.MARKER
    with pytest.raises(HostError, match="REVIEW_TOKEN needs the scope api"):
        issues.GitLabIssues(sandbox.url, str(PROJECT_A), sandbox.tokens.platform).post("x", is_open=True)
    with pytest.raises(HostError, match="cannot be reached"):
        issues.GitLabIssues("http://127.0.0.1:9", "1", "token").post("x", is_open=True)
