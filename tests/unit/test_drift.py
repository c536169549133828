"""What `python -m review.drift` reads in the preview of a refresh, what it says, and where."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from review import HostError, drift, issues
from review.assessment import StackReview
from review.drift import main, render
from review.issues import MARKER, TITLE, GitHubIssues, GitLabIssues, tracker_of
from review.plan import Plan, read
from tests.unit.github import LOGINS, GitHubHandler, serving

NO_LIMIT = 10**9


def step(op: str, type_: str, name: str, old: dict[str, Any], new: dict[str, Any] | None, *reasons: str) -> Any:
    """A step as `pulumi refresh --preview-only --json` prints it: what is as it was has the operation refresh."""
    return {
        "op": op,
        "urn": f"urn:pulumi:app-dev::gitlab-runners::{type_}::{name}",
        "oldState": {"inputs": old},
        "newState": None if new is None else {"inputs": new},
        "detailedDiff": {reason: {"kind": "update", "inputDiff": False} for reason in reasons} or None,
    }


RULE = "openstack:networking/secGroupRule:SecGroupRule"
SERVER = "openstack:compute/instance:Instance"
STEPS = [
    step("refresh", SERVER, "app-dev-2", {"name": "a"}, {"name": "a"}),
    step("update", SERVER, "app-dev-1", {"metadata": {"team": "app"}}, {"metadata": {"team": "|x"}}, "metadata.team"),
    step("update", SERVER, "app-dev-3", {"name": "c"}, {"name": "c"}, "powerState"),
    step("update", "gitlab:index/userRunner:UserRunner", "app", {"token": "[secret]"}, {"token": "[secret]"}, "token"),
    step("delete", RULE, "app-dev-ssh", {"remoteIpPrefix": "192.0.2.0/24"}, None),
]
CHANGED = StackReview("app-dev", read(json.dumps({"steps": STEPS})))
SAME = StackReview("app-prod", read(json.dumps({"steps": STEPS[:1]})))
FAILED = StackReview("web-dev", Plan(), "the backend does not answer")


def test_what_differs_is_told_and_what_does_not_is_not() -> None:
    report = render([CHANGED, SAME], NO_LIMIT)
    assert report.startswith(f"{MARKER}\n")
    assert "app-dev-2" not in report
    assert "app-prod" not in report
    assert "  - `metadata.team`: `app` → `|x`\n" in report
    # Without a declared value that differs, the provider's own word for it.
    assert "`app-dev-3`\n  - `powerState`\n" in report
    assert "- **changed**: registration in GitLab `app`\n  - `token`: changed; it holds a secret\n" in report
    assert "- **gone**: " in report
    assert report == render([CHANGED, SAME], NO_LIMIT)


def test_nothing_that_differs_is_said_so() -> None:
    assert render([SAME], NO_LIMIT) == f"{MARKER}\nNothing differs from what was applied.\n"
    assert "- `web-dev`: `the backend does not answer`\n" in render([SAME, FAILED], NO_LIMIT)


@pytest.mark.parametrize("limit", [300, 1000])
def test_a_report_that_is_too_long_loses_its_end(limit: int) -> None:
    many = [StackReview(f"app-{number}", CHANGED.plan) for number in range(99)]
    report = render(many, limit)
    assert len(report.encode()) <= limit
    assert report.startswith(MARKER)
    assert "more lines: see the job's file and log" in report


class _Noted:
    limit = NO_LIMIT

    def __init__(self) -> None:
        self.posts: list[bool] = []

    def post(self, body: str, *, is_open: bool) -> str | None:
        assert body.startswith(MARKER)
        self.posts.append(is_open)
        return "https://gitlab.example.com/issues/1"


@pytest.mark.parametrize(
    ("reviews", "posts", "status"),
    [
        ([SAME], [False], 0),
        ([CHANGED, SAME], [True], 0),
        ([CHANGED, FAILED], [True], 1),
        ([SAME, FAILED], [], 1),
    ],
    ids=["nothing", "drift", "drift and a failure", "a failure alone"],
)
def test_the_issue_is_open_while_something_differs(
    reviews: list[StackReview], posts: list[bool], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = _Noted()
    found = {review.stack: (review.plan, review.error) for review in reviews}
    monkeypatch.setattr(drift, "previews", lambda *_: found)
    monkeypatch.setattr(drift, "tracker_of", lambda _: tracker)
    assert main([f"--output={tmp_path / 'drift.md'}"]) == status
    assert tracker.posts == posts
    assert (tmp_path / "drift.md").read_text() == render(reviews, GitLabIssues.limit)


def test_the_issues_are_those_of_the_jobs_project() -> None:
    assert tracker_of({}) is None
    gitlab = {"CI_API_V4_URL": "https://gitlab.example/sub/api/v4", "CI_PROJECT_ID": "5", "CI_JOB_TOKEN": "x"}
    with pytest.raises(HostError, match="REVIEW_TOKEN is empty"):
        tracker_of(gitlab)
    assert isinstance(tracker_of(gitlab | {"REVIEW_TOKEN": "x"}), GitLabIssues)
    github = {"GITHUB_REPOSITORY": "o/r"}
    with pytest.raises(HostError, match="GITHUB_TOKEN"):
        tracker_of(github)
    assert isinstance(tracker_of(github | {"GITHUB_TOKEN": "x"}), GitHubIssues)


class _GitHub(GitHubHandler):
    """Issues as GitHub's REST API has them (REST API docs, "Issues"), one a page."""

    issues: list[dict[str, Any]]
    changes: list[str]

    def do_GET(self) -> None:
        if self.path == "/user":
            return self.user()
        address = urlsplit(self.path)
        asked: dict[str, Any] = {key: values[0] for key, values in parse_qs(address.query).items()}
        page = int(asked.get("page", 1))
        wanted = asked["state"], asked["creator"]
        found = [each for each in self.issues if (each["state"], each["user"]["login"]) == wanted]
        link = f'<http://{self.headers["Host"]}{address.path}?{urlencode(asked | {"page": page + 1})}>; rel="next"'
        self.answer(200, found[page - 1 : page], {"Link": link} if page < len(found) else {})
        return None

    def do_POST(self) -> None:
        number = len(self.issues) + 1
        user = {"login": self.login()}
        made = {"number": number, "html_url": f"https://github.example/{number}", "state": "open", "user": user}
        self.issues.append(made | self._body())
        self.answer(201, self.issues[-1])

    def do_PATCH(self) -> None:
        issue = self.issues[int(self.path.rpartition("/")[2]) - 1]
        issue.update(self._body())
        self.answer(200, issue)

    def _body(self) -> dict[str, Any]:
        self.changes.append(f"{self.command} {self.path}")
        return self.body()


@pytest.fixture
def github() -> Iterator[tuple[str, type[_GitHub]]]:
    handler = type("Handler", (_GitHub,), {"issues": [], "changes": []})
    with serving(handler) as url:
        yield url, handler


@pytest.mark.parametrize(("token", "login"), LOGINS.items())
def test_on_github_there_is_one_issue_that_is_updated_and_closed(
    github: tuple[str, type[_GitHub]], token: str, login: str
) -> None:
    url, handler = github
    handler.issues += [
        {"number": 1, "state": "open", "user": {"login": "somebody"}, "body": MARKER},
        {"number": 2, "state": "open", "user": {"login": login}, "body": None},
        {"number": 3, "state": "open", "user": {"login": login}, "body": MARKER, "pull_request": {}},
    ]
    tracker = GitHubIssues(url, "owner/name", token)
    assert tracker.post(f"{MARKER}\nnothing", is_open=False) is None
    first = tracker.post(f"{MARKER}\nfirst", is_open=True)
    assert tracker.post(f"{MARKER}\nsecond", is_open=True) == first
    assert tracker.post(f"{MARKER}\nsecond", is_open=True) == first
    assert tracker.post(f"{MARKER}\nnothing", is_open=False) == first
    made = handler.issues[3]
    assert (made["title"], made["body"], made["state"]) == (TITLE, f"{MARKER}\nnothing", "closed")
    change = "PATCH /repos/owner/name/issues/4"
    assert handler.changes == ["POST /repos/owner/name/issues", change, change]
    assert tracker.post(f"{MARKER}\nthird", is_open=True) == "https://github.example/5"


def test_github_that_refuses_is_told_in_one_line(github: tuple[str, type[_GitHub]]) -> None:
    with pytest.raises(HostError, match=r"HTTP 403\): the job needs `permissions: issues: write`"):
        GitHubIssues(github[0], "owner/name", "wrong").post(MARKER, is_open=True)
    with pytest.raises(HostError, match="GitHub cannot be reached"):
        issues.GitHubIssues("http://127.0.0.1:9", "owner/name", "ghs_token").post(MARKER, is_open=True)
