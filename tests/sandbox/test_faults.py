"""Any request to the sandbox can be found in its log and made to fail, and a client sees the failure it would see."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gitlab
import pytest
import requests
from openstack.connection import Connection
from openstack.exceptions import HttpException

from sandbox.faults import Fault, Faults
from tests.sandbox.inprocess import TIMEOUT_S, InProcess


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[InProcess]:
    with InProcess(tmp_path / "store.sqlite") as running:
        yield running


@pytest.fixture
def cloud(sandbox: InProcess) -> Connection:
    """Logged in and through with discovery, so that the next request is the one that a test makes."""
    connection = sandbox.connect()
    _ = connection.compute.get_endpoint(), connection.network.get_endpoint()
    list(connection.network.networks())
    list(connection.compute.servers())
    sandbox.control("DELETE", "requests")
    return connection


def _groups(cloud: Connection) -> int:
    return len([group for group in cloud.network.security_groups() if group.name == "fleet"])


def test_every_request_is_logged_with_its_number(sandbox: InProcess, cloud: Connection) -> None:
    list(cloud.network.networks())
    gitlab.Gitlab(sandbox.gitlab_url, private_token=sandbox.tokens.platform).version()
    cloud.network.create_security_group(name="fleet")
    log = sandbox.requests(background=False)
    assert [(entry["n"], entry["api"], entry["method"], entry["path"], entry["status"]) for entry in log] == [
        (1, "openstack", "GET", "/network/v2.0/networks", 200),
        (2, "gitlab", "GET", "/api/v4/version", 200),
        (3, "openstack", "POST", "/network/v2.0/security-groups", 201),
    ]


def test_polling_and_control_have_no_number(sandbox: InProcess) -> None:
    requests.post(f"{sandbox.gitlab_url}/api/v4/runners/verify", json={"token": "none"}, timeout=TIMEOUT_S)
    log = sandbox.requests()
    assert {entry["path"] for entry in log} == {"/api/v4/runners/verify", "/sandbox/requests"}
    assert {(entry["n"], entry["background"]) for entry in log} == {(None, True)}


def test_the_nth_request_gets_the_status_and_only_that_one(sandbox: InProcess, cloud: Connection) -> None:
    sandbox.control("POST", "faults", {"n": 2, "do": "status", "status": 500})
    cloud.network.create_security_group(name="fleet")
    with pytest.raises(HttpException) as error:
        cloud.network.create_security_group(name="fleet")
    assert error.value.status_code == 500
    assert "injected" in str(error.value)
    assert _groups(cloud) == 1
    assert [entry["n"] for entry in sandbox.requests(fault="status")] == [2]


def test_a_dropped_request_is_not_handled(sandbox: InProcess, cloud: Connection) -> None:
    sandbox.control("POST", "faults", {"do": "drop"})
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{sandbox.auth_url}/v3", timeout=TIMEOUT_S)
    assert sandbox.requests(fault="drop")[0]["status"] is None
    sandbox.control("POST", "faults", {"do": "drop", "method": "POST"})
    with pytest.raises(Exception, match=r"(?i)connect"):
        cloud.network.create_security_group(name="fleet")
    assert _groups(cloud) == 0


def test_a_lost_answer_leaves_the_change_made(sandbox: InProcess, cloud: Connection) -> None:
    sandbox.control("POST", "faults", {"do": "lose", "method": "POST"})
    with pytest.raises(Exception, match=r"(?i)connect"):
        cloud.network.create_security_group(name="fleet")
    assert _groups(cloud) == 1
    assert sandbox.requests(fault="lose")[0]["status"] == 201


def test_a_delay_only_delays(sandbox: InProcess, cloud: Connection) -> None:
    sandbox.control("POST", "faults", {"do": "delay", "seconds": 0.3})
    begun = time.monotonic()
    list(cloud.network.networks())
    assert time.monotonic() - begun > 0.3
    assert sandbox.requests(fault="delay")[0]["status"] == 200


@pytest.mark.parametrize(
    ("filters", "hit"),
    [
        ({"api": "gitlab"}, [2]),
        ({"method": "post|delete"}, [3]),
        ({"path": "/ports/.+"}, [4]),
        ({"path": "/ports", "n": 2}, [4]),
        ({"times": 2, "n": 2}, [2, 3]),
    ],
)
async def test_filters_narrow_what_is_counted(filters: dict[str, Any], hit: list[int]) -> None:
    faults = Faults()
    faults.add(Fault.model_validate({"do": "status", **filters}))
    for api, method, path in (
        ("openstack", "GET", "/network/v2.0/ports"),
        ("gitlab", "GET", "/api/v4/runners/1"),
        ("docker", "POST", "/v1.45/containers/create"),
        ("openstack", "GET", "/network/v2.0/ports/1"),
    ):
        decision = await faults.before(api, method, path)  # type: ignore[arg-type]
        faults.after(decision, 200)
    assert [entry["n"] for entry in faults.requests() if entry["fault"]] == hit


async def test_a_background_request_is_hit_only_on_request() -> None:
    faults = Faults()
    faults.add(Fault(do="status"))
    assert (await faults.before("gitlab", "POST", "/api/v4/jobs/request", background=True)).action == "pass"
    faults.add(Fault(do="drop", background=True))
    assert (await faults.before("gitlab", "POST", "/api/v4/jobs/request", background=True)).action == "drop"


def test_faults_are_listed_and_cleared(sandbox: InProcess, cloud: Connection) -> None:
    sandbox.control("POST", "faults", {"do": "status", "times": 100})
    assert [fault["do"] for fault in sandbox.control("GET", "faults")] == ["status"]
    sandbox.control("DELETE", "faults")
    assert sandbox.control("GET", "faults") == []
    assert list(cloud.network.networks())


@pytest.mark.parametrize(
    "wrong", [{}, {"do": "explode"}, {"do": "drop", "n": 0}, {"do": "drop", "path": "("}, {"no": 1}]
)
def test_a_wrong_fault_is_refused(sandbox: InProcess, wrong: dict[str, Any]) -> None:
    answer = requests.post(f"{sandbox.gitlab_url}/sandbox/faults", json=wrong, timeout=TIMEOUT_S)
    assert answer.status_code == 400
    assert answer.json()["message"]
