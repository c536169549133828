"""To whom credentials are sent: two servers, of which the second is a stranger that must hear nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from clients import ClientError
from clients.gitlab import GITLAB_COM, GitLab, TokensUnknown, instance_url, token_expiries
from clients.openstack import connect
from clients.origin import keep_credentials
from tests.unit.server import Answer, Server, serving


@pytest.fixture
def ours() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def stranger() -> Iterator[Server]:
    with serving() as server:
        yield server


REDIRECTS = pytest.mark.parametrize("status", [301, 302, 303, 307, 308])


@REDIRECTS
def test_gitlabs_token_does_not_follow_a_redirect_to_a_stranger(ours: Server, stranger: Server, status: int) -> None:
    ours.answer = lambda _, path: (status, {"Location": f"{stranger.url}{path}"}, {})
    with pytest.raises(ClientError) as caught:
        GitLab(ours.url, {"token": "glpat-x"}, {}).check_token()
    assert str(caught.value) == (
        f"{ours.url} leads to {stranger.url}, which gets no credentials; if that is right, set gitlab:baseUrl to it"
    )
    assert (len(ours.asked), stranger.asked) == (1, [])


def test_one_within_gitlab_is_followed(ours: Server) -> None:
    known = {"scopes": ["api"]}
    moved: Answer = (302, {"Location": "/gitlab/api/v4/personal_access_tokens/self"}, {})
    ours.answer = lambda _, path: (200, {}, known) if path.startswith("/gitlab") else moved
    GitLab(ours.url, {"token": "glpat-x"}, {}).check_token()
    assert len(ours.asked) == 2


def test_nor_a_link_to_the_next_page_at_a_stranger(ours: Server, stranger: Server) -> None:
    ours.answer = lambda _, __: (200, {"Link": f'<{stranger.url}/2>; rel="next"'}, [{"id": 1, "description": "x"}])
    with pytest.raises(ClientError, match="which gets no credentials"):
        GitLab(ours.url, {"token": "glpat-x"}, {}).runners("project_type", 1, "x")
    assert stranger.asked == []


def test_a_runners_own_token_stays_too(ours: Server, stranger: Server) -> None:
    ours.answer = lambda _, path: (307, {"Location": f"{stranger.url}{path}"}, {})
    with pytest.raises(TokensUnknown, match="which gets no credentials"):
        token_expiries(ours.url, {}, {"app": "glrt-x"})
    assert stranger.asked == []


def test_a_token_goes_to_nobody_whom_no_one_has_named() -> None:
    with pytest.raises(ClientError, match="GitLab: no URL; set gitlab:baseUrl in the environment's file"):
        instance_url({}, {}, None)
    assert instance_url({}, {"GITLAB_BASE_URL": "https://gitlab.example/api/v4/"}, None) == "https://gitlab.example"
    assert instance_url({}, {}) == GITLAB_COM


def cloud(server: Server) -> dict[str, str]:
    names = {"tenantName": "project", "userDomainName": "Default", "projectDomainName": "Default"}
    return {"authUrl": f"{server.url}/v3", "userName": "user", "password": "secret", "region": "one", **names}


def versions(url: str) -> Answer:
    link = {"rel": "self", "href": f"{url}/v3/"}
    return 200, {}, {"version": {"id": "v3.14", "status": "stable", "links": [link]}}


@pytest.fixture(autouse=True)
def no_clouds(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Nothing of this machine's user says which cloud there is."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("status", [301, 302, 303, 305, 307, 308])
def test_a_password_does_not_follow_a_redirect_to_a_stranger(ours: Server, stranger: Server, status: int) -> None:
    moved = {"Location": f"{stranger.url}/v3/auth/tokens"}
    ours.answer = lambda method, _: versions(ours.url) if method == "GET" else (status, moved, {})
    with pytest.raises(ClientError) as caught:
        connect(cloud(ours))
    assert str(caught.value) == (
        f"{ours.url} leads to {stranger.url}, which gets no credentials; "
        "if that is right, set the cloud's auth_url, or its endpoint, to it"
    )
    assert ours.asked[-1] == "POST /v3/auth/tokens"
    assert stranger.asked == []


def test_nor_to_where_keystone_says_that_it_is(ours: Server, stranger: Server) -> None:
    ours.answer = lambda _, __: versions(stranger.url)
    with pytest.raises(ClientError):
        connect(cloud(ours))
    assert ours.asked[-1] == "POST /v3/auth/tokens"
    assert stranger.asked == []


def test_a_clouds_token_does_not_follow_a_service_to_a_stranger(ours: Server, stranger: Server) -> None:
    # The services of a cloud are where its catalogue says, on any origin.
    endpoint = {"interface": "public", "region_id": "one", "region": "one", "url": f"{ours.url}/compute", "id": "1"}
    catalogue = [{"type": "compute", "name": "nova", "id": "2", "endpoints": [endpoint]}]
    token = {"methods": ["password"], "expires_at": "2999-01-01T00:00:00.000000Z", "catalog": catalogue, "user": {}}

    def answer(method: str, path: str) -> Answer:
        if method == "POST":
            return 201, {"X-Subject-Token": "x"}, {"token": token}
        return (302, {"Location": f"{stranger.url}{path}"}, {}) if path.startswith("/compute") else versions(ours.url)

    ours.answer = answer
    connection = connect(cloud(ours))
    with pytest.raises(ClientError, match="which gets no credentials"):
        connection.session.get(f"{ours.url}/compute/servers")
    assert stranger.asked == []


@pytest.mark.parametrize(
    ("asked", "is_same"),
    [
        ("https://gitlab.example:443/x", True),
        ("https://GitLab.example/x", True),
        ("http://gitlab.example/x", False),
        ("https://gitlab.example:8443/x", False),
        ("https://gitlab.example.stranger.example/x", False),
        ("https://gitlab.example@stranger.example/x", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(asked: str, is_same: bool) -> None:
    session = requests.Session()
    sent: list[str] = []

    class Sink(requests.adapters.BaseAdapter):
        def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
            sent.append(request.url or "")
            answer = requests.Response()
            answer.status_code = 200
            return answer

        def close(self) -> None:
            """Nothing."""

    for prefix in ("http://", "https://"):
        session.mount(prefix, Sink())
    keep_credentials(session, "x", "https://gitlab.example/api/v4")
    if is_same:
        session.get(asked)
    else:
        with pytest.raises(ClientError, match="which gets no credentials"):
            session.get(asked)
    assert len(sent) == is_same
