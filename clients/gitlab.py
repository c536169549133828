"""What the program asks GitLab itself: whether the token may do what the stack needs, and where a runner's page is."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from threading import Lock
from typing import Any, Literal

import gitlab
import requests
from gitlab.exceptions import GitlabAuthenticationError, GitlabError

from clients import ClientError
from clients.origin import keep_credentials
from clients.provider_values import flag
from clients.text import one_line

Scope = Literal["project_type", "group_type", "instance_type"]
GITLAB_COM = "https://gitlab.com"
"""The provider's default."""
_TIMEOUT_SECONDS = 60
_MOST_PER_PAGE = 100
CONFIGURATION = ("baseUrl", "token", "insecure", "cacertFile")
"""Keys of the provider's configuration that `GitLab` and `instance_url` take."""
# The scopes that let a token create a runner, and read, change and delete it (GitLab docs, "Personal access tokens").
_CREATE = {"create_runner", "api"}
_MANAGE = {"manage_runner", "api"}
# Listing runners, which finding what an interrupted run left behind needs.
_LIST = {"read_api", "api"}
_RUNNERS_PATHS: dict[Scope, str] = {
    "project_type": "/projects/{}/runners",
    "group_type": "/groups/{}/runners",
    "instance_type": "/runners/all",
}
_TOKEN_EXPIRY = "query($id: CiRunnerID!) { runner(id: $id) { tokenExpiresAt } }"
# GitLab notes who verifies a token as one of its runner's managers: always the same one.
_SYSTEM_ID = "gitlab-runners"
# The token is not known or has expired; its runner belongs to nobody (GitLab docs, "Runners API").
_REFUSED_TOKEN = {requests.codes.forbidden, requests.codes.unprocessable}


def instance_url(config: Mapping[str, str], environment: Mapping[str, str], default: str | None = GITLAB_COM) -> str:
    """GitLab's web URL from the gitlab provider's configuration (`baseUrl` or GITLAB_BASE_URL), else the `default`.

    Raises ClientError where there is none of them: a token is sent to nobody whom no one has named.
    """
    base = config.get("baseUrl") or environment.get("GITLAB_BASE_URL") or default
    if base is None:
        raise ClientError(
            "GitLab: no URL; set gitlab:baseUrl in the environment's file, or GITLAB_BASE_URL, "
            f"for instance to {GITLAB_COM}/api/v4/"
        )
    return base.rstrip("/").removesuffix("/api/v4")


class _Refused(ClientError):
    """GitLab's answer is an error; `status` is the HTTP status."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


class TokensUnknown(ClientError):
    """GitLab does not tell anything about tokens: it does not answer, or not as an API would."""


def token_expiries(url: str, config: Mapping[str, str], tokens: Mapping[str, str]) -> dict[str, datetime | None]:
    """When authentication tokens of runners expire, by the runners' names in the stack file; None for never.

    `url` is the web URL, `config` the provider's configuration, of which no token is used. Each token is asked for
    once. Raises TokensUnknown, and ClientError with a line for each token that GitLab refuses.
    """
    answers: dict[str, datetime | _Refused | None] = {}
    client = _client(url, config)
    for token in dict.fromkeys(tokens.values()):
        try:
            with _explained(url):
                answer = client.http_post("/runners/verify", post_data={"token": token, "system_id": _SYSTEM_ID})
        except _Refused as refused:
            if refused.status not in _REFUSED_TOKEN:
                raise TokensUnknown(str(refused)) from refused
            answers[token] = refused
        except ClientError as error:
            raise TokensUnknown(str(error)) from error
        else:
            if not isinstance(answer, dict):
                raise TokensUnknown(f"GitLab at {url} does not answer as an API would; check gitlab:baseUrl")
            answers[token] = _time(answer.get("token_expires_at"))
    expiries, refusals = {}, []
    for name, token in tokens.items():
        known = answers[token]
        if isinstance(known, _Refused):
            refusals.append(f"runners.{name}.token: {known}: it has expired, or there is no such runner")
        else:
            expiries[name] = known
    if refusals:
        raise ClientError("\n".join(refusals))
    return expiries


def _client(url: str, config: Mapping[str, str], token: str | None = None) -> gitlab.Gitlab:
    session = requests.Session()
    keep_credentials(session, "set gitlab:baseUrl to it", url)
    return gitlab.Gitlab(
        url, private_token=token, ssl_verify=_ssl_verify(config), timeout=_TIMEOUT_SECONDS, session=session
    )


def _ssl_verify(config: Mapping[str, str]) -> bool | str:
    if flag("gitlab:insecure", config.get("insecure", "false")):
        return False
    return config.get("cacertFile", True)


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except GitlabAuthenticationError as error:
        raise ClientError(f"GitLab at {url} refuses the token: {one_line(error.error_message)}") from error
    except requests.RequestException as error:
        raise ClientError(f"GitLab at {url} cannot be reached: {one_line(error)}") from error
    except GitlabError as error:
        raise _Refused(f"GitLab at {url}: {one_line(error.error_message)}", error.response_code) from error


class GitLab:
    """One GitLab instance with the token that the provider uses. Every method may raise ClientError."""

    def __init__(self, url: str, config: Mapping[str, str], environment: Mapping[str, str]) -> None:
        """`url` is the web URL; the rest comes from the provider's configuration and environment variables."""
        token = config.get("token") or environment.get("GITLAB_TOKEN")
        if not token:
            raise ClientError(
                "GitLab: no token; set it with `pulumi config set --secret gitlab:token` or in GITLAB_TOKEN"
            )
        self.url = url
        self._client = _client(url, config, token)
        self._scopes: set[str] | None = None
        self._pages: dict[tuple[Scope, int | None], str | None] = {}
        self._runners: dict[tuple[Scope, int | None], list[dict[str, Any]]] = {}
        self._listing = Lock()

    def check_token(self) -> None:
        """Checks that GitLab answers and that the token's scopes allow to create and manage runners."""
        try:
            token = self._get("/personal_access_tokens/self")
        except _Refused as refused:
            if refused.status == requests.codes.not_found:
                # Not a personal, group or project access token: GitLab tells the scopes of no other kind.
                return
            raise
        self._scopes = set(token["scopes"])
        missing = [sorted(wanted)[-1] for wanted in (_CREATE, _MANAGE) if not wanted & self._scopes]
        if missing:
            raise ClientError(
                f"GitLab: the token has the scopes {', '.join(sorted(self._scopes))}, but not {' and '.join(missing)}"
            )

    @property
    def can_list(self) -> bool:
        """Whether the token may list runners."""
        return self._scopes is None or bool(_LIST & self._scopes)

    def runners(self, scope: Scope, owner: int | None, description: str) -> dict[int, bool]:
        """Ids of an owner's runners with this exact description, and whether no manager ever contacted GitLab.

        `owner` is the project's or group's id, None for instance runners. Each owner's are listed once, when this is
        first asked: the runners that are registered in the meantime would make the list longer for each of them. None
        are told of an owner whose runners the token's user may not list; that one may not create any there either.
        """
        with self._listing:
            if (scope, owner) not in self._runners:
                self._runners[scope, owner] = self._listed(scope, owner)
            described = [each for each in self._runners[scope, owner] if each["description"] == description]
        # A group's list has the runners of the groups above it too (GitLab docs, "Runners API").
        return {
            int(each["id"]): each["status"] == "never_contacted"
            for each in described
            if scope != "group_type" or self._belongs_to_group(int(each["id"]), owner)
        }

    def _listed(self, scope: Scope, owner: int | None) -> list[dict[str, Any]]:
        path = _RUNNERS_PATHS[scope].format(owner)
        try:
            with _explained(self.url):
                return list(self._client.http_list(path, get_all=True, per_page=_MOST_PER_PAGE, type=scope))
        except _Refused as refused:
            if refused.status == requests.codes.forbidden:
                return []
            raise

    def _belongs_to_group(self, runner: int, group: int | None) -> bool:
        try:
            groups = self._get(f"/runners/{runner}").get("groups") or []
        except _Refused as refused:
            if refused.status in {requests.codes.forbidden, requests.codes.not_found}:
                return False
            raise
        return group in {each["id"] for each in groups}

    def has_running_jobs(self, runner: int) -> bool:
        """Whether a runner has jobs that run; one that is gone has none."""
        try:
            with _explained(self.url):
                jobs = self._client.http_list(f"/runners/{runner}/jobs", status="running", per_page=1, get_all=False)
                return bool(list(jobs))
        except _Refused as refused:
            if refused.status == requests.codes.not_found:
                return False
            raise

    def token_expiry(self, runner: int) -> datetime | None:
        """When a runner's authentication token expires; None for never, or where GitLab does not tell this token.

        The Runners API tells it from 19.4 on, GraphQL in older ones too, but only to a token that may read.
        """
        try:
            found = self._get(f"/runners/{runner}")
        except _Refused as refused:
            if refused.status == requests.codes.not_found:
                return None
            raise
        expiry = found.get("token_expires_at")
        if "token_expires_at" not in found and self.can_list:
            with _explained(self.url):
                variables = {"id": f"gid://gitlab/Ci::Runner/{runner}"}
                answer: Any = self._client.http_post(
                    f"{self.url}/api/graphql", post_data={"query": _TOKEN_EXPIRY, "variables": variables}
                )
            expiry = ((answer.get("data") or {}).get("runner") or {}).get("tokenExpiresAt")
        return _time(expiry)

    def is_paused(self, runner: int) -> bool:
        """Whether a runner gets no jobs."""
        return bool(self._get(f"/runners/{runner}")["paused"])

    def set_paused(self, runner: int, paused: bool) -> None:
        """Whether a runner shall get no jobs from now on; those that it has go on."""
        with _explained(self.url):
            self._client.http_put(f"/runners/{runner}", post_data={"paused": paused})

    def delete_runner(self, runner: int) -> None:
        """Removes a registration by its id."""
        with _explained(self.url):
            self._client.runners.delete(runner)

    def runners_url(self, scope: Scope, owner: int | None) -> str | None:
        """URL below which the pages of an owner's runners lie; `owner` as in `runners`. Each is asked for once.

        It needs the path of the project or group, which only a token with read_api may read: else it is None.
        """
        if (scope, owner) not in self._pages:
            self._pages[scope, owner] = self._runners_url(scope, owner)
        return self._pages[scope, owner]

    def _runners_url(self, scope: Scope, owner: int | None) -> str | None:
        if scope == "instance_type":
            return f"{self.url}/admin/runners"
        kind = "project" if scope == "project_type" else "group"
        try:
            return f"{self._get(f'/{kind}s/{owner}')['web_url']}/-/runners"
        except _Refused as refused:
            if refused.status == requests.codes.forbidden:
                return None
            if refused.status == requests.codes.not_found:
                raise ClientError(f"GitLab: there is no {kind} {owner} that the token's user can see") from refused
            raise

    def _get(self, path: str) -> dict[str, Any]:
        with _explained(self.url):
            answer = self._client.http_get(path)
        if not isinstance(answer, dict):
            raise ClientError(f"GitLab at {self.url} does not answer {path} as an API would; check gitlab:baseUrl")
        return answer
