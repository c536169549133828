"""`python -m sandbox`: an OpenStack, a GitLab and a Docker Engine on this machine, to try and test the program with."""

import argparse
import asyncio
import fcntl
import hashlib
import http.client
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from sandbox import engine as engines
from sandbox import gitlab, job, openstack
from sandbox.app import LOOPBACK, STORE_FILE, Ports, load_ports, save_ports, serve
from sandbox.engine import Engine, EngineError
from sandbox.faults import Faults
from sandbox.images import ImageError, Images, ensure_images
from sandbox.packages import PackageError
from sandbox.processes import Process
from sandbox.store import Store
from sandbox.vm import VirtualMachines

CLOUD = "sandbox"

# Seconds. On a restart every server boots again before the APIs answer.
START_TIMEOUT = 120.0
STOP_TIMEOUT = 20.0
POLL = 0.05

# What `down` removes from the state directory: what `up` and the process put there, and nothing else.
_LEFTOVERS = ("env", "clouds.yaml", "engine.json", "sandbox.pid", "vms", "log")
_STATE_FILES = (STORE_FILE, f"{STORE_FILE}-wal", f"{STORE_FILE}-shm")


class SandboxError(RuntimeError):
    """The sandbox cannot be brought up or down; the message says why."""


def up(state: Path) -> None:
    """Bring everything up, or find it running, and write the environment file; idempotent.

    Raises SandboxError, EngineError, ImageError or PackageError.
    """
    with _locked(state):
        engine = engines.ensure(state, _say)
        (state / "engine.json").write_text(json.dumps(asdict(engine)) + "\n")
        images = ensure_images(engine, _say)
        fingerprint = _fingerprint(engine)
        store = Store(state / STORE_FILE)
        credentials, tokens = openstack.seed(store), gitlab.seed(store)
        status = _status(state)
        if status is None or status["fingerprint"] != fingerprint:
            if status is not None:
                _say("the sandbox that runs is of another version: starting it anew")
            _stop_process(state)
            save_ports(store, _free_ports(load_ports(store)))
            _start_process(state, fingerprint, load_ports(store))
        ports = load_ports(store)
        store.close()
        _write_clouds(state, ports, credentials)
        _write_environment(state, ports, engine, images, tokens)
    _say(f"OpenStack: http://{LOOPBACK}:{ports.openstack}/identity, GitLab: http://{LOOPBACK}:{ports.gitlab}")


def down(state: Path, keep_state: bool) -> None:
    """End everything that `up` started for this state directory, and remove what it left; idempotent.

    With `keep_state` the store stays: the next `up` finds the same clouds again, its servers with empty disks.
    """
    if not state.exists():
        return
    with _locked(state):
        _stop_process(state)
        _wipe_machines(state)
        engines.stop(state)
        for name in _LEFTOVERS if keep_state else (*_LEFTOVERS, *_STATE_FILES):
            path = state / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if not keep_state:
            (state / "lock").unlink()
    if not any(state.iterdir()):
        state.rmdir()


def show_status(state: Path) -> bool:
    """Print what runs; whether the sandbox is up."""
    status = _status(state)
    if status is None:
        print("The sandbox is down.")
        return False
    environment = read_environment(state)
    print(f"OpenStack  {yaml.safe_load((state / 'clouds.yaml').read_text())['clouds'][CLOUD]['auth']['auth_url']}")
    print(f"GitLab     {environment['GITLAB_BASE_URL']}")
    print(f"Docker     {environment['SANDBOX_DOCKER_HOST']}")
    print(f"Log        {state / 'log' / 'sandbox.log'}")
    for server in status["servers"]:
        print(f"Server     {server['name']}  {server['status']}  {server['id']}")
    return True


def read_environment(state: Path) -> dict[str, str]:
    """The variables in the environment file. Raises SandboxError when the sandbox has never been up."""
    try:
        text = (state / "env").read_text()
    except FileNotFoundError as error:
        raise SandboxError(f"no sandbox in {state}: run `python -m sandbox up` first") from error
    words = (word.partition("=") for word in shlex.split(text, comments=True) if word != "export")
    return {name: value for name, _, value in words}


# The process


def _start_process(state: Path, fingerprint: str, ports: Ports) -> None:
    log_file = state / "log" / "sandbox.log"
    log_file.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "sandbox", "--state", str(state), "serve", fingerprint]
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    Process.of(process.pid).write(state / "sandbox.pid")
    deadline = time.monotonic() + START_TIMEOUT
    while _ask(ports.gitlab, "/sandbox/status") is None:
        if process.poll() is not None:
            last = "\n".join(log_file.read_text(errors="replace").splitlines()[-5:])
            raise SandboxError(f"the sandbox's process ended with status {process.returncode}; {log_file}:\n{last}")
        if time.monotonic() > deadline:
            _stop_process(state)
            raise SandboxError(f"the sandbox does not answer after {START_TIMEOUT:.0f} s, see {log_file}")
        time.sleep(POLL)


def _stop_process(state: Path) -> None:
    process = Process.read(state / "sandbox.pid")
    if process is None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_TIMEOUT
        if process.alive:
            os.kill(process.pid, number)
        while process.alive and time.monotonic() < deadline:
            time.sleep(POLL)
    (state / "sandbox.pid").unlink()


def _status(state: Path) -> dict[str, Any] | None:
    """What the running process says of itself; None when none runs."""
    process = Process.read(state / "sandbox.pid")
    if process is None or not process.alive:
        return None
    store = Store(state / STORE_FILE)
    ports = load_ports(store)
    store.close()
    return _ask(ports.gitlab, "/sandbox/status")


def _ask(port: int, path: str) -> dict[str, Any] | None:
    """GET from the control API; None when nothing answers there."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if answer.status != http.client.OK:
        return None
    status: dict[str, Any] = json.loads(body)
    return status


def _fingerprint(engine: Engine) -> str:
    """Stands for the code that a process runs and the engine it uses."""
    digest = hashlib.sha256(repr(engine).encode())
    package = Path(__file__).parent
    for source in sorted(package.rglob("*.py")):
        # The stand-in plugins are programs of their own.
        if not source.is_relative_to(package / "plugins"):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _free_ports(wanted: Ports) -> Ports:
    """The ports that the sandbox had, as far as they are still free."""
    chosen: list[int] = []
    sockets = []
    for port in (wanted.openstack, wanted.gitlab):
        probe = socket.socket()
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sockets.append(probe)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            probe.bind((LOOPBACK, 0))
        chosen.append(probe.getsockname()[1])
    for probe in sockets:
        probe.close()
    return Ports(*chosen)


def _wipe_machines(state: Path) -> None:
    """Remove the machines' containers from an engine that was there before the sandbox and stays after it."""
    saved = state / "engine.json"
    if not saved.exists() or not (state / STORE_FILE).exists():
        return
    engine = Engine(**json.loads(saved.read_text()))
    if engine.namespace is not None or not engines.answers(engine.docker_host):
        return
    store = Store(state / STORE_FILE)
    machines = VirtualMachines(state, engine, Faults(), store)

    async def wipe() -> None:
        for server in store.list("nova.server"):
            await machines.wipe(server["id"])

    asyncio.run(wipe())
    store.close()


# Files


def _write_clouds(state: Path, ports: Ports, credentials: openstack.Credentials) -> None:
    url = f"http://{LOOPBACK}:{ports.openstack}/identity"
    common = {"region_name": "RegionOne", "interface": "public", "identity_api_version": 3}
    password = {
        "auth_url": url,
        "username": credentials.username,
        "password": credentials.password,
        "project_name": credentials.project,
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    }
    application = {
        "auth_url": url,
        "application_credential_id": credentials.application_credential_id,
        "application_credential_secret": credentials.application_credential_secret,
    }
    clouds = {
        CLOUD: {"auth": password, **common},
        f"{CLOUD}-application": {"auth_type": "v3applicationcredential", "auth": application, **common},
    }
    _write_private(state / "clouds.yaml", yaml.safe_dump({"clouds": clouds}, sort_keys=False))


def _write_environment(state: Path, ports: Ports, engine: Engine, images: Images, tokens: gitlab.Tokens) -> None:
    variables = {
        "OS_CLIENT_CONFIG_FILE": str(state / "clouds.yaml"),
        "OS_CLOUD": CLOUD,
        "GITLAB_BASE_URL": f"http://{LOOPBACK}:{ports.gitlab}/api/v4",
        "GITLAB_TOKEN": tokens.platform,
        "SANDBOX_GITLAB_URL": f"http://{engine.gateway}:{ports.gitlab}",
        "SANDBOX_CONTROL_URL": f"http://{LOOPBACK}:{ports.gitlab}/sandbox",
        "SANDBOX_GITLAB_RUNNERS_TOKEN": tokens.runners,
        "SANDBOX_GITLAB_READ_USER_TOKEN": tokens.read_user,
        "SANDBOX_GITLAB_ADMINISTRATOR_TOKEN": tokens.administrator,
        "SANDBOX_DOCKER_HOST": engine.docker_host,
        "SANDBOX_RUNNER_IMAGE": images.runner,
        "SANDBOX_JOB_IMAGE": images.job,
    }
    _write_private(state / "env", _exports(variables))


def _exports(variables: Mapping[str, str]) -> str:
    # Always quoted, as the file's readers may expect: shlex.quote leaves out quotes that a shell does not need.
    quoted = {name: value.replace("'", "'\"'\"'") for name, value in variables.items()}
    return "".join(f"export {name}='{value}'\n" for name, value in quoted.items())


def _write_private(path: Path, text: str) -> None:
    """Write a file with secrets, whole or not at all."""
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Only one `up` or `down` at a time."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(message: str) -> None:
    print(f"sandbox: {message}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """The command line; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    parser.add_argument("--state", type=Path, help="directory of its state (.sandbox)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="bring it up, or find it running")
    ending = commands.add_parser("down", help="end it and remove what it left")
    ending.add_argument("--keep-state", action="store_true", help="keep what the clouds hold")
    commands.add_parser("status", help="what runs; exit status 1 when nothing does")
    commands.add_parser("env", help="the environment of clients, for a shell's eval")
    commands.add_parser("job", help="run one job in GitLab and show its trace", add_help=False)
    serving = commands.add_parser("serve", help="the process itself, as `up` starts it")
    serving.add_argument("fingerprint")
    asked, rest = parser.parse_known_args(arguments)
    if rest and asked.command != "job":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _run(asked, rest)
    except (SandboxError, EngineError, ImageError, PackageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(asked: argparse.Namespace, rest: Sequence[str]) -> int:
    state = (asked.state or Path(".sandbox")).resolve()
    match asked.command:
        case "up":
            up(state)
        case "down":
            down(state, asked.keep_state)
        case "status":
            return 0 if show_status(state) else 1
        case "env":
            print(_exports(read_environment(state)), end="")
        case "job":
            if asked.state is not None or "GITLAB_BASE_URL" not in os.environ:
                os.environ.update(read_environment(state))
            return job.main(rest)
        case "serve":
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
            asyncio.run(serve(state, asked.fingerprint))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
