"""What `make orphans` finds of a stack, whose jobs it waits for, and what it leaves, on the doubles."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gitlab
import pytest

from clients import ClientError
from clients.marks import Marks
from clients.orphans import Marked, in_openstack, unused_by_name
from clients.state import State
from renderers.autoscaler import GROUP_KEY
from scripts.orphans import Removal, Unknown
from tests.sandbox.inprocess import HOST, InProcess
from tests.sandbox.test_leftovers import MARKS, port, server

MINE = Marks("gitlab-runners", "dev")
RUNNERS: dict[str, Any] = {"app": {"project": 100, "tags": ["docker"]}}
_LOGIN = {"OS_AUTH_URL": "auth_url", "OS_USERNAME": "username", "OS_PASSWORD": "password"} | {
    f"OS_{name.upper()}": name for name in ("project_name", "user_domain_name", "project_domain_name")
}


@pytest.fixture
def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    with InProcess(tmp_path / "store.sqlite") as served:
        monkeypatch.delenv("ABORT_JOBS", raising=False)
        for variable, key in _LOGIN.items():
            monkeypatch.setenv(variable, served.auth()[key])
        monkeypatch.setenv("GITLAB_TOKEN", served.tokens.platform)
        monkeypatch.setenv("GITLAB_BASE_URL", served.gitlab_url)
        yield served


def unknown(*known: str, runners: dict[str, Any] = RUNNERS, **more: Any) -> Unknown:
    """What the stack `dev` has in the clouds and its state, with resources of these ids, does not know."""
    said = {"host": HOST, "runners": runners} | more
    config = {f"gitlab-runners:{key}": json.dumps(value) for key, value in said.items()}
    resources = [{"type": "any", "id": id_} for id_ in known]
    return Unknown("dev", config, set(), State(lambda: json.dumps({"deployment": {"resources": resources}})))


def removal(of: Unknown) -> Removal:
    return Removal(of, of.things(), of.runners())


class Runner:
    """The stack's runner in GitLab."""

    def __init__(self, clouds: InProcess, description: str = "dev app") -> None:
        self._client = gitlab.Gitlab(clouds.gitlab_url, private_token=clouds.tokens.platform)
        asked = {"runner_type": "project_type", "project_id": 100, "description": description}
        answer: Any = self._client.http_post("/user/runners", post_data=asked)
        self.id = str(answer["id"])

    @property
    def is_paused(self) -> bool:
        return bool(self._client.runners.get(self.id).paused)

    def pause(self) -> None:
        self._client.http_put(f"/runners/{self.id}", post_data={"paused": True})

    @property
    def is_there(self) -> bool:
        return self.id in {str(each.id) for each in self._client.runners.list(get_all=True)}


def test_the_marks_of_a_stack_are_no_others() -> None:
    assert MINE.describe("gitlab-runners, stack dev")
    assert MINE.describe(MINE.of_host("dev-1"))
    assert MINE.describe(f"{MINE.of_workers('app')}, key 1")
    for other in (
        "gitlab-runners, stack dev-2",
        "fork, stack dev",
        "",
        None,
        "gitlab-runners, stack dev2, host dev2-1",
    ):
        assert not MINE.describe(other)
    assert MINE.are_in({"Pulumi-Project": "gitlab-runners", "pulumi-stack": "dev", "team": "x"})
    for metadata in ({}, None, {"pulumi-stack": "dev"}, {"pulumi-project": "fork", "pulumi-stack": "dev"}):
        assert not MINE.are_in(metadata)
    assert MINE.may_name_key_pair("dev-0123abcd", ["app"])
    assert MINE.may_name_key_pair("dev-app-workers-0123abcd", ["app"])
    assert not MINE.may_name_key_pair("dev-2-0123abcd", ["app"])


def test_what_only_looks_like_the_stacks_is_not_found(clouds: InProcess) -> None:
    cloud = clouds.connect()
    made = server(cloud, port(cloud).id)
    cloud.compute.delete_server_metadata(made, list(MARKS))
    cloud.network.create_security_group(name="dev", description="gitlab-runners, stack dev-2")
    cloud.object_store.create_container(MINE.container)
    cloud.compute.create_keypair(name="dev-mine")
    assert in_openstack(cloud, MINE, {MINE.container}) == []
    assert unused_by_name(cloud, MINE, ["app"]) == []


def test_workers_are_known_by_their_group(clouds: InProcess) -> None:
    cloud = clouds.connect()
    worker = server(cloud, port(cloud).id, name="dev-app-worker-1")
    cloud.compute.set_server_metadata(worker, **{GROUP_KEY: "the-group"})
    assert [each.id for each in unknown().things() if each.is_worker] == [worker.id]
    assert unknown("the-group").things() == []


@pytest.mark.parametrize("was_paused", [False, True])
def test_a_runner_that_the_state_knows_gets_no_jobs_only_for_the_time_being(
    clouds: InProcess, monkeypatch: pytest.MonkeyPatch, was_paused: bool
) -> None:
    runner, cloud = Runner(clouds), clouds.connect()
    server(cloud, port(cloud).id)
    if was_paused:
        runner.pause()
    found = unknown(runner.id)
    paused = []

    def fail(_: Marked) -> None:
        paused.append(runner.is_paused)
        raise ClientError("the cloud is away")

    monkeypatch.setattr(found, "remove", fail)
    with pytest.raises(ClientError, match=r"^the cloud is away$"):
        removal(found).run()
    assert paused == [True]
    assert runner.is_paused == was_paused
    monkeypatch.undo()


def test_a_stacks_runner_goes_with_its_machines_and_others_stay(clouds: InProcess) -> None:
    runner, cloud = Runner(clouds), clouds.connect()
    other, doubtful = Runner(clouds, "dev-2 app"), Runner(clouds, "for all")
    server(cloud, port(cloud).id)
    described = {"app": RUNNERS["app"], "all": RUNNERS["app"] | {"description": "for all"}}
    assert removal(unknown(runners=described)).run() == []
    assert not list(cloud.compute.servers())
    assert not runner.is_there
    assert other.is_there
    # Its description does not name the stack: it is paused meanwhile, and never removed.
    assert doubtful.is_there
    assert not doubtful.is_paused


def test_protected_runners_stay(clouds: InProcess) -> None:
    runner = Runner(clouds)
    assert removal(unknown(protect=True)).run() == [f"runner dev app ({runner.id}): the stack has protect: true"]
    assert runner.is_there


@pytest.mark.parametrize(
    ("runners", "why"),
    [
        ({"app": {"token": "glrt-given"}}, "runner app has a token that was given"),
        (RUNNERS, "GitLab has no runner with the description of app"),
    ],
)
def test_machines_whose_jobs_nobody_knows_stay_unless_jobs_are_aborted(
    clouds: InProcess, monkeypatch: pytest.MonkeyPatch, runners: dict[str, Any], why: str
) -> None:
    cloud = clouds.connect()
    made = server(cloud, port(cloud).id)
    with pytest.raises(
        ClientError, match=rf"^server dev-1 \({made.id}\) may run jobs, .*: {why}\. Nothing was removed"
    ):
        removal(unknown(runners=runners)).run()
    assert cloud.compute.find_server(made.id) is not None
    monkeypatch.setenv("ABORT_JOBS", "dev")
    assert removal(unknown(runners=runners)).run() == []
    assert cloud.compute.find_server(made.id) is None


def test_nothing_is_removed_while_an_update_runs(clouds: InProcess) -> None:
    cloud = clouds.connect()
    server(cloud, port(cloud).id)
    pending = [{"type": "creating", "resource": {"type": "any"}}]
    config = {"gitlab-runners:host": json.dumps(HOST), "gitlab-runners:runners": json.dumps(RUNNERS)}
    state = State(lambda: json.dumps({"deployment": {"pending_operations": pending}}))
    with pytest.raises(ClientError, match=r"^an update of dev is under way, .*nothing was removed$"):
        removal(Unknown("dev", config, set(), state)).run()
    assert len(list(cloud.compute.servers())) == 1


def test_what_a_living_machine_uses_stays(clouds: InProcess) -> None:
    cloud = clouds.connect()
    used = cloud.network.create_port(network_id=port(cloud).network_id, name="dev-1", description=MINE.of_host("dev-1"))
    living = server(cloud, used.id)
    assert removal(unknown(living.id)).run() == [f"port dev-1 ({used.id}): server {living.id} uses it"]
    assert cloud.network.find_port(used.id) is not None
