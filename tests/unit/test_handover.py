"""How slots go from an old manager to its successor: the scripts, and what they are told when."""

import asyncio
import os
import shutil
import subprocess
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from clients import ClientError, managers
from clients.managers import Container, hand_over
from components.handover import _HandoverProvider
from renderers.config_toml import config_toml
from renderers.handover import (
    BUSY_WORKERS,
    CONFIGURATION_FOLDER,
    TOKEN_DIGEST,
    held_back,
    limited,
    released,
    token_digest,
)
from tests.configurations import PLAIN

DECLARED = config_toml(replace(PLAIN, token="glrt-t1_secret", listen_address="127.0.0.1:9252"))
NO_EXECUTOR = 'executor = "none until the old manager has free slots"'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(DECLARED)
    file.chmod(0o600)
    return file


def sh(config: Path, script: str, path: str = os.defpath) -> str:
    """Runs a script where the configuration is in another folder, and nothing listens to signals."""
    script = script.replace(CONFIGURATION_FOLDER, str(config.parent)).replace("kill -HUP 1", "true")
    done = subprocess.run(["sh", "-c", script], env={"PATH": path}, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_manager_and_the_program_find_the_same_registration_by_its_token(config: Path) -> None:
    assert sh(config, TOKEN_DIGEST) == token_digest(DECLARED)
    assert "secret" not in token_digest(DECLARED)
    assert token_digest(DECLARED) == token_digest(DECLARED.replace("concurrent = 4", "concurrent = 2"))
    assert token_digest(DECLARED) != token_digest(DECLARED.replace("secret", "another"))


def test_what_is_handed_over_ends_as_it_was_declared(config: Path) -> None:
    config.write_text(held_back(DECLARED))
    assert NO_EXECUTOR in config.read_text()
    sh(config, limited(2))
    assert config.read_text() == DECLARED.replace("concurrent = 4", "concurrent = 2")
    sh(config, limited(0))
    assert config.read_text() == held_back(DECLARED)
    sh(config, released(4))
    assert config.read_text() == DECLARED
    assert config.stat().st_mode & 0o777 == 0o600


def test_until_it_is_released_an_upload_is_older_than_what_the_manager_has_read(config: Path) -> None:
    sh(config, limited(1))
    read = config.stat().st_mtime
    config.write_text(DECLARED)
    os.utime(config)
    assert config.stat().st_mtime < read
    sh(config, limited(1))
    sh(config, released(4))
    assert config.stat().st_mtime < read


class _Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(b"# TYPE gitlab_runner_worker_slots_number gauge\ngitlab_runner_worker_slots_number 3\n")

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def test_a_manager_whose_image_has_no_wget_is_asked_for_its_workers_by_bash(config: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "sed", "sh", "timeout"):
        (tools / tool).symlink_to(shutil.which(tool) or pytest.fail(f"there is no {tool}"))
    with HTTPServer(("127.0.0.1", 0), _Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config.write_text(DECLARED.replace("127.0.0.1:9252", f"127.0.0.1:{server.server_port}"))
        busy = sh(config, BUSY_WORKERS, path=str(tools))
        server.shutdown()
    assert busy == "3"
    assert sh(config, BUSY_WORKERS, path=str(tools)) == ""


@dataclass
class Engine:
    """Old managers with the number of busy workers that each tells, one look after the other, until it ends."""

    old: dict[str, list[str]]
    tokens: dict[str, str] = field(default_factory=dict)
    heard: list[str] = field(default_factory=list)

    async def managers(self, _labels: object) -> list[Container]:
        found = [Container(id_, "running" if told else "exited", "app", id_) for id_, told in self.old.items()]
        return [*found, Container("new", "running", "app", "new")]

    async def sh(self, container: str, script: str) -> str:
        if script == TOKEN_DIGEST:
            return self.tokens.get(container, "token")
        assert container == "new"
        self.heard.append(next(name for name, known in SCRIPTS.items() if known == script))
        return ""

    async def ask(self, container: str, script: str) -> str:
        return self.old[container].pop(0) if script == BUSY_WORKERS else await self.sh(container, script)

    async def quit(self, container: str) -> None:
        self.heard.append(f"{container} quits")


SCRIPTS = {**{f"limit {jobs}": limited(jobs) for jobs in range(5)}, "released": released(4)}


@pytest.fixture(autouse=True)
def _without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managers, "_POLL_SECONDS", 0)


def handed_over(engine: Engine, grace: int = 60) -> list[str]:
    successors = {"app": {"id_": "new", "jobs": 3, "concurrent": 4}}
    asyncio.run(hand_over(engine, {}, successors, grace))  # type: ignore[arg-type]
    return engine.heard


@pytest.mark.parametrize(
    ("old", "heard"),
    [
        ({}, []),
        ({"old": ["4", "3", "3", "1"]}, ["old quits", "limit 0", "limit 2", "released"]),
        ({"old": ["1", "0"]}, ["old quits", "limit 2", "limit 3", "released"]),
        ({"old": ["", "", "1"]}, ["old quits", "limit 0", "limit 2", "released"]),
        ({"old": []}, ["released"]),
    ],
    ids=["a new stack", "all slots taken", "free slots", "no metrics", "ended meanwhile"],
)
def test_a_successor_gets_what_the_old_manager_leaves(old: dict[str, list[str]], heard: list[str]) -> None:
    assert handed_over(Engine(old)) == heard


def test_several_old_managers_count_together() -> None:
    heard = handed_over(Engine({"older": ["1", "1"], "old": ["2", "1"]}))
    assert (sorted(heard[:2]), heard[2:]) == (["old quits", "older quits"], ["limit 0", "limit 1", "released"])


def test_a_manager_of_another_registration_is_left_alone() -> None:
    assert handed_over(Engine({"foreign": ["1"]}, tokens={"foreign": "another"})) == ["released"]


def test_jobs_that_outlast_the_grace_fail_the_update_in_one_line() -> None:
    with pytest.raises(ClientError, match="old jobs of runner app still run after -1 s"):
        handed_over(Engine({"old": ["1"] * 9}), grace=-1)


def test_only_other_managers_are_a_reason_to_hand_over() -> None:
    provider = _HandoverProvider()
    before = {"managers": {"app": "1"}, "slots": {"app": {"jobs": 1, "concurrent": 1}}}
    assert not provider.diff("id", before, before | {"slots": {"app": {"jobs": 2, "concurrent": 2}}}).changes
    assert provider.diff("id", before, before | {"managers": {"app": "2"}}).changes


@pytest.mark.parametrize(("stopped", "changes"), [([], False), (["app"], True)])
def test_managers_that_were_seen_stopped_are_a_reason_too(stopped: list[str], changes: bool) -> None:
    before = {"managers": {"app": "1"}, "slots": {"app": {"jobs": 1, "concurrent": 1}}}
    provider = _HandoverProvider()
    assert provider.diff("id", before, before | {"stopped": stopped}).changes == changes
    assert "stopped" not in provider.declared(before | {"stopped": stopped})


class Existing:
    """An engine that existed already, with one manager that ends some looks after its signal."""

    def __init__(self, looks: int) -> None:
        self.looks, self.heard = looks, list[str]()

    async def managers(self, _labels: object) -> list[Container]:
        self.looks -= 1
        return [
            Container("m1", "running" if self.looks > 0 else "exited", "app", "m1"),
            Container("m2", "running", "b", ""),
        ]

    async def quit(self, container: str, signal: str) -> None:
        self.heard.append(f"{signal} {container}")

    async def resume(self, _labels: object, containers: set[str]) -> None:
        self.heard.append(f"resume {' '.join(containers)}")


def removed(monkeypatch: pytest.MonkeyPatch, engine: Existing, **more: object) -> None:
    monkeypatch.setattr("components.handover.Engine", lambda *_arguments: engine)
    labels = {"gitlab-runners.stack": "dev"}
    _HandoverProvider().delete(
        "id", {"url": "tcp://host", "options": [], "managers": {"app": "m1"}, "grace": 60, "labels": labels} | more
    )


def test_on_an_engine_that_existed_jobs_end_before_the_managers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Existing(looks=3)
    removed(monkeypatch, engine)
    assert engine.heard == ["QUIT m1"]


def test_there_jobs_are_aborted_where_the_stack_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABORT_JOBS", "dev")
    engine = Existing(looks=3)
    removed(monkeypatch, engine)
    assert engine.heard == ["TERM m1"]


def test_there_managers_whose_jobs_outlast_the_grace_are_at_work_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Existing(looks=9)
    with pytest.raises(ClientError, match="jobs still run on tcp://host after -1 s"):
        removed(monkeypatch, engine, grace=-1)
    assert engine.heard == ["QUIT m1", "resume m1"]


def test_managers_that_stay_and_those_of_a_machine_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Existing(looks=9)
    removed(monkeypatch, engine, labels={"gitlab-runners.stack": "dev", "gitlab-runners.server": "id"})
    assert engine.heard == []
    props = {"managers": {"app": "stays"}, "grace": 60}
    _HandoverProvider().diff("id", props, props)
    removed(monkeypatch, engine, managers={"app": "stays"})
    assert engine.heard == []
