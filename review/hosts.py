"""Where the comment goes: the notes of a merge request in GitLab, the comments of a pull request on GitHub."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import gitlab
import requests
from gitlab.exceptions import GitlabAuthenticationError, GitlabError

from clients import ClientError
from clients.origin import keep_credentials
from review import HostError
from review.comment import MARKER
from review.github import LIMIT, GitHub

_TIMEOUT_SECONDS = 60
_PER_PAGE = 100


class Host(Protocol):
    """A merge request or pull request. Every method may raise HostError."""

    limit: int
    """Bytes that a comment may have, below the host's own limit in characters."""

    def post(self, body: str, *, create: bool = True) -> str | None:
        """Puts the comment there, or into the place of the one that is there; its URL.

        Where there is none and `create` is false, nothing is done and the answer is None.
        """


def is_ours(body: str | None) -> bool:
    """Whether a comment is one of this program's."""
    return (body or "").lstrip().startswith(MARKER)


@dataclass(frozen=True)
class MergeRequest:
    """Which merge request: GitLab's web URL, the project's id or path, the request's number in it."""

    url: str
    project: str
    iid: int


class GitLabMergeRequest:
    """A merge request of any GitLab instance."""

    # 1,000,000 characters (GitLab docs, Notes API).
    limit = 990_000

    def __init__(self, place: MergeRequest, token: str, *, job: bool, ca_file: str | None = None) -> None:
        """`job` says that the token is a CI job token, `ca_file` names further CAs.

        A job token may read notes and not write them (GitLab docs, "CI/CD job token"); should an instance allow more,
        it is used.
        """
        self._place, self._job = place, job
        tokens: dict[str, Any] = {"job_token" if job else "private_token": token}
        session = requests.Session()
        keep_credentials(session, "check CI_API_V4_URL", place.url)
        self._client = gitlab.Gitlab(
            place.url, **tokens, ssl_verify=ca_file or True, timeout=_TIMEOUT_SECONDS, session=session
        )

    def post(self, body: str, *, create: bool = True) -> str | None:
        """See Host."""
        with self._explained():
            project = self._client.projects.get(self._place.project, lazy=True)
            request = project.mergerequests.get(self._place.iid, lazy=True)
            # Whoever may comment can copy the marker: only notes of this token's own user count.
            user = self._user()
            for note in request.notes.list(iterator=True, per_page=_PER_PAGE, sort="asc", order_by="created_at"):
                if is_ours(note.body) and not note.system and note.author["id"] == user:
                    if note.body.strip() != body.strip():
                        request.notes.update(note.id, {"body": body})
                    return self._address(note.id)
            return self._address(request.notes.create({"body": body}).id) if create else None

    def _user(self) -> int:
        """Id of whoever writes with this token; a job's acts for the user who started it (GitLab docs, Jobs API)."""
        answer = self._client.http_get("/job" if self._job else "/user")
        assert isinstance(answer, dict)
        return int(answer["user"]["id"] if self._job else answer["id"])

    def _address(self, note: int) -> str:
        place = self._place
        return f"{place.url}/api/v4/projects/{place.project}/merge_requests/{place.iid}/notes/{note}"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        what = f"merge request !{self._place.iid} of project {self._place.project}"
        try:
            yield
        except GitlabError as error:
            refused = isinstance(error, GitlabAuthenticationError) or error.response_code in (401, 403, 404)
            hint = ""
            if self._job and refused:
                hint = (
                    ": a CI job token may read notes, but not write them; put a project access token with the scope "
                    "api and the role Reporter into the CI/CD variable REVIEW_TOKEN"
                )
            elif refused:
                hint = ": REVIEW_TOKEN needs the scope api, and its user the role Reporter in this project"
            message = " ".join(str(error.error_message).split())
            raise HostError(f"GitLab at {self._place.url} refuses to show or change {what} ({message}){hint}") from None
        except requests.RequestException as error:
            raise HostError(f"GitLab at {self._place.url} cannot be reached: {' '.join(str(error).split())}") from None
        except ClientError as error:
            raise HostError(str(error)) from None


class GitHubPullRequest:
    """A pull request of GitHub or a GitHub Enterprise Server."""

    limit = LIMIT

    def __init__(self, api_url: str, repository: str, number: int, token: str) -> None:
        """`api_url` as in GITHUB_API_URL, `repository` as owner/name."""
        self._github = GitHub(api_url, repository, token, "pull-requests: write")
        self._what = f"the comments of pull request #{number}"
        self._comments = f"{self._github.issues}/{number}/comments"

    def post(self, body: str, *, create: bool = True) -> str | None:
        """See Host."""
        # Whoever may comment can copy the marker: only comments of this token's own user count.
        login = self._github.login()
        for comment in self._github.all(self._comments, self._what):
            # The user of an account that was deleted is null.
            if is_ours(comment["body"]) and (comment.get("user") or {}).get("login") == login:
                if comment["body"].strip() != body.strip():
                    url = f"{self._github.issues}/comments/{comment['id']}"
                    self._github.send("PATCH", url, self._what, {"body": body})
                return str(comment["html_url"])
        if not create:
            return None
        return str(self._github.send("POST", self._comments, self._what, {"body": body})["html_url"])


def host_of(environment: Mapping[str, str]) -> Host | None:
    """The merge request or pull request that a CI job belongs to, from its variables; None when it belongs to none.

    Raises HostError when a variable is missing.
    """
    iid = environment.get("CI_MERGE_REQUEST_IID")
    if iid is not None:
        token, job = environment.get("REVIEW_TOKEN"), environment.get("CI_JOB_TOKEN")
        if not token and not job:
            raise HostError("there is no token for the comment: REVIEW_TOKEN is empty")
        # In a fork's pipeline CI_PROJECT_ID is the fork's.
        project = environment.get("CI_MERGE_REQUEST_PROJECT_ID") or environment["CI_PROJECT_ID"]
        return GitLabMergeRequest(
            MergeRequest(environment["CI_API_V4_URL"].removesuffix("/api/v4"), project, int(iid)),
            token or job or "",
            job=not token,
            ca_file=environment.get("CI_SERVER_TLS_CA_FILE"),
        )
    pull = re.fullmatch(r"refs/pull/(\d+)/(merge|head)", environment.get("GITHUB_REF", ""))
    if pull is not None:
        if not environment.get("GITHUB_TOKEN"):
            raise HostError("there is no token for the comment: hand GITHUB_TOKEN to this step")
        return GitHubPullRequest(
            environment.get("GITHUB_API_URL", "https://api.github.com"),
            environment["GITHUB_REPOSITORY"],
            int(pull[1]),
            environment["GITHUB_TOKEN"],
        )
    return None


def base_of(environment: Mapping[str, str]) -> str | None:
    """The revision that a CI job's change is to be compared with, from its variables."""
    if environment.get("CI_MERGE_REQUEST_DIFF_BASE_SHA"):
        return environment["CI_MERGE_REQUEST_DIFF_BASE_SHA"]
    branch = environment.get("GITHUB_BASE_REF")
    return f"origin/{branch}" if branch else None
