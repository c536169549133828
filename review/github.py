"""GitHub's REST API, as far as one comment or one issue needs it."""

from collections.abc import Iterator
from typing import Any

import requests

from review import HostError

_TIMEOUT_SECONDS = 60
_PER_PAGE = 100
# Whom a workflow's GITHUB_TOKEN makes the author (GitHub docs, "GITHUB_TOKEN"). It cannot ask for its own user.
_ACTIONS = "github-actions[bot]"
# How tokens of users begin (GitHub docs, "GitHub's token formats"); those of apps, GITHUB_TOKEN too, begin with ghs_.
_OF_USERS = ("ghp_", "github_pat_", "gho_", "ghu_")
LIMIT = 65_000
"""Characters of a comment or issue; GitHub takes 65,536 (its answer to a longer one)."""


class GitHub:
    """The issues of a repository, pull requests among them; also of a GitHub Enterprise Server."""

    def __init__(self, api_url: str, repository: str, token: str, needs: str) -> None:
        """`api_url` as in GITHUB_API_URL, `repository` as owner/name, `needs` the permission that a job must have."""
        self._url, self._is_users = api_url.rstrip("/"), token.startswith(_OF_USERS)
        self.issues = f"{self._url}/repos/{repository}/issues"
        self._needs = needs
        self._session = requests.Session()
        self._session.headers.update(
            {
                "Authorization": f"Bearer {token}",
                "Accept": "application/vnd.github+json",
                "X-GitHub-Api-Version": "2022-11-28",
            }
        )

    def login(self) -> str:
        """The login of whoever writes with this token. Raises HostError."""
        return str(self._call("GET", f"{self._url}/user", "its user").json()["login"]) if self._is_users else _ACTIONS

    def all(self, url: str, what: str, **asked: str) -> Iterator[dict[str, Any]]:
        """Everything that a list has, page by page. `what` names it in errors. Raises HostError."""
        following: str | None = url
        parameters: dict[str, Any] | None = {**asked, "per_page": _PER_PAGE}
        while following is not None:
            answer = self._call("GET", following, what, params=parameters)
            yield from answer.json()
            # The next page's address has all parameters.
            following, parameters = answer.links.get("next", {}).get("url"), None

    def send(self, method: str, url: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """Creates or changes something, and returns it. Raises HostError."""
        sent: dict[str, Any] = self._call(method, url, what, json=body).json()
        return sent

    def _call(self, method: str, url: str, what: str, **content: Any) -> requests.Response:
        try:
            answer = self._session.request(method, url, timeout=_TIMEOUT_SECONDS, **content)
        except requests.RequestException as error:
            raise HostError(f"GitHub cannot be reached: {' '.join(str(error).split())}") from None
        if not answer.ok:
            raise HostError(
                f"GitHub refuses to {'show' if method == 'GET' else 'change'} {what} (HTTP {answer.status_code}): "
                f"the job needs `permissions: {self._needs}`"
            )
        return answer
