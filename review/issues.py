"""Where drift is told: one issue of the project, in GitLab or on GitHub, that is opened, updated, and closed again."""

from collections.abc import Mapping
from typing import Protocol

import gitlab
import requests
from gitlab.exceptions import GitlabError

from clients import ClientError
from clients.origin import keep_credentials
from review import HostError
from review.github import LIMIT, GitHub

MARKER = "<!-- gitlab-runners:drift -->"
"""First line of the issue's description, by which it is found again."""
TITLE = "Runners differ from what was applied"
_TIMEOUT_SECONDS = 60
_PER_PAGE = 100


class Tracker(Protocol):
    """Where the issues of a project are. Every method may raise HostError."""

    limit: int
    """Bytes that a description may have, below the host's own limit in characters."""

    def post(self, body: str, *, is_open: bool) -> str | None:
        """Makes `body` the description of the issue that is open, and opens one where there is none; its URL.

        With `is_open` false the issue is closed; where there is none, the answer is None.
        """


def is_ours(description: str | None) -> bool:
    """Whether an issue is this program's."""
    return (description or "").lstrip().startswith(MARKER)


class GitLabIssues:
    """The issues of a project in any GitLab instance."""

    # 1,048,576 characters (GitLab docs, Issues API).
    limit = 990_000

    def __init__(self, url: str, project: str, token: str, ca_file: str | None = None) -> None:
        """GitLab's web URL, the project's id or path, a token with the scope api; `ca_file` names further CAs."""
        self._url, self._project = url, project
        session = requests.Session()
        keep_credentials(session, "check CI_API_V4_URL", url)
        self._client = gitlab.Gitlab(
            url, private_token=token, ssl_verify=ca_file or True, timeout=_TIMEOUT_SECONDS, session=session
        )

    def post(self, body: str, *, is_open: bool) -> str | None:
        """See Tracker."""
        try:
            return self._post(body, is_open)
        except GitlabError as error:
            hint = ""
            if error.response_code in (401, 403, 404):
                hint = ": REVIEW_TOKEN needs the scope api, and its user the role Reporter in this project"
            message = " ".join(str(error.error_message).split())
            raise HostError(
                f"GitLab at {self._url} refuses to show or change the issues of project {self._project} "
                f"({message}){hint}"
            ) from None
        except requests.RequestException as error:
            raise HostError(f"GitLab at {self._url} cannot be reached: {' '.join(str(error).split())}") from None
        except ClientError as error:
            raise HostError(str(error)) from None

    def _post(self, body: str, is_open: bool) -> str | None:
        issues = self._client.projects.get(self._project, lazy=True).issues
        user = self._client.http_get("/user")
        assert isinstance(user, dict)
        # Whoever may open issues can copy the marker: only those of this token's own user count.
        for issue in issues.list(iterator=True, per_page=_PER_PAGE, state="opened", author_id=user["id"]):
            if is_ours(issue.description):
                change = {} if issue.description.strip() == body.strip() else {"description": body}
                if not is_open:
                    change["state_event"] = "close"
                if change:
                    issues.update(issue.iid, change)
                return str(issue.web_url)
        return str(issues.create({"title": TITLE, "description": body}).web_url) if is_open else None


class GitHubIssues:
    """The issues of a repository of GitHub or a GitHub Enterprise Server."""

    limit = LIMIT
    _WHAT = "the issues of this repository"

    def __init__(self, api_url: str, repository: str, token: str) -> None:
        """`api_url` as in GITHUB_API_URL, `repository` as owner/name, a workflow's GITHUB_TOKEN or a user's."""
        self._github = GitHub(api_url, repository, token, "issues: write")

    def post(self, body: str, *, is_open: bool) -> str | None:
        """See Tracker."""
        # Whoever may open issues can copy the marker: only those of this token's own user count.
        creator = self._github.login()
        for issue in self._github.all(self._github.issues, self._WHAT, state="open", creator=creator):
            # Pull requests are issues too.
            if "pull_request" not in issue and is_ours(issue["body"]):
                change = {} if issue["body"].strip() == body.strip() else {"body": body}
                if not is_open:
                    change["state"] = "closed"
                if change:
                    self._github.send("PATCH", f"{self._github.issues}/{issue['number']}", self._WHAT, change)
                return str(issue["html_url"])
        if not is_open:
            return None
        made = self._github.send("POST", self._github.issues, self._WHAT, {"title": TITLE, "body": body})
        return str(made["html_url"])


def tracker_of(environment: Mapping[str, str]) -> Tracker | None:
    """The issues of the project that a CI job belongs to, from its variables; None outside of CI.

    Raises HostError when a variable is missing.
    """
    if environment.get("CI_API_V4_URL"):
        if not environment.get("REVIEW_TOKEN"):
            # A CI job token cannot reach issues (GitLab docs, "CI/CD job token").
            raise HostError("there is no token for the issue: REVIEW_TOKEN is empty")
        return GitLabIssues(
            environment["CI_API_V4_URL"].removesuffix("/api/v4"),
            environment["CI_PROJECT_ID"],
            environment["REVIEW_TOKEN"],
            environment.get("CI_SERVER_TLS_CA_FILE"),
        )
    if environment.get("GITHUB_REPOSITORY"):
        if not environment.get("GITHUB_TOKEN"):
            raise HostError("there is no token for the issue: hand GITHUB_TOKEN to this step")
        return GitHubIssues(
            environment.get("GITHUB_API_URL", "https://api.github.com"),
            environment["GITHUB_REPOSITORY"],
            environment["GITHUB_TOKEN"],
        )
    return None
