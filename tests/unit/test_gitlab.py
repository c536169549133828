"""What the program asks GitLab, against answers of older and newer ones."""

from datetime import UTC, datetime
from typing import Any

import pytest

from clients.gitlab import GitLab

URL = "https://gitlab.example"
EXPIRY = datetime(2026, 12, 1, 12, tzinfo=UTC)


def asked(
    monkeypatch: pytest.MonkeyPatch, runner: dict[str, Any], scopes: set[str]
) -> tuple[datetime | None, list[str]]:
    """What a GitLab that shows a runner like this says about its token, and the paths that it was asked for."""
    client = GitLab(URL, {"token": "glpat-x"}, {})
    client._scopes = scopes
    paths: list[str] = []

    def get(path: str, **_: Any) -> dict[str, Any]:
        paths.append(path)
        return runner

    def post(path: str, **_: Any) -> dict[str, Any]:
        paths.append(path)
        return {"data": {"runner": {"tokenExpiresAt": "2026-12-01T12:00:00Z"}}}

    monkeypatch.setattr(client._client, "http_get", get)
    monkeypatch.setattr(client._client, "http_post", post)
    return client.token_expiry(7), paths


def test_what_an_owner_has_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = GitLab(URL, {"token": "glpat-x"}, {})
    paths: list[str] = []

    def get(path: str) -> dict[str, Any]:
        paths.append(path)
        return {"web_url": f"{URL}{path}"}

    def listed(path: str, **_: Any) -> list[dict[str, Any]]:
        paths.append(path)
        return [
            {"id": 7, "description": "dev app", "status": "never_contacted"},
            {"id": 8, "description": "dev web", "status": "offline"},
        ]

    monkeypatch.setattr(client._client, "http_get", get)
    monkeypatch.setattr(client._client, "http_list", listed)
    assert [client.runners_url("project_type", owner) for owner in (1, 2, 1)] == [
        f"{URL}/projects/{owner}/-/runners" for owner in (1, 2, 1)
    ]
    found = [client.runners("project_type", 1, description) for description in ("dev app", "dev web", "other")]
    assert found == [{7: True}, {8: False}, {}]
    assert paths == ["/projects/1", "/projects/2", "/projects/1/runners"]


def test_a_runner_of_a_group_above_is_not_the_groups_own(monkeypatch: pytest.MonkeyPatch) -> None:
    client = GitLab(URL, {"token": "glpat"}, {})
    groups = {"/runners/7": [{"id": 10}], "/runners/8": [{"id": 1}]}
    listed = [{"id": id_, "description": "dev app", "status": "online"} for id_ in (7, 8)]
    monkeypatch.setattr(client._client, "http_get", lambda path: {"groups": groups[path]})
    monkeypatch.setattr(client._client, "http_list", lambda _path, **_: listed)
    assert client.runners("group_type", 10, "dev app") == {7: False}


def test_the_runners_api_tells_when_a_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"id": 7, "token_expires_at": "2026-12-01T12:00:00.000Z"}
    assert asked(monkeypatch, known, {"manage_runner"}) == (EXPIRY, ["/runners/7"])
    assert asked(monkeypatch, known | {"token_expires_at": None}, {"api"}) == (None, ["/runners/7"])


def test_an_older_gitlab_tells_it_in_graphql(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, {"id": 7}, {"api"}) == (EXPIRY, ["/runners/7", f"{URL}/api/graphql"])


def test_but_not_to_a_token_that_may_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, {"id": 7}, {"create_runner", "manage_runner"}) == (None, ["/runners/7"])
