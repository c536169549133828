"""The sandbox's VMs, seen through the OpenSSH client and Docker's API."""

import asyncio
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import asyncssh
import pytest
import pytest_asyncio
from aiohttp import web

from sandbox.engine import Engine, ensure, stop
from sandbox.faults import Fault, Faults
from sandbox.processes import Process
from sandbox.store import Store
from sandbox.vm import SSH_PORT, VirtualMachine, VirtualMachines

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8 on the loopback interface"),
    pytest.mark.skipif(not shutil.which("ssh"), reason="needs the OpenSSH client"),
]

VM_ID = "0d4f1c52-7a34-4c43-8f0e-5a8a5d2f6f6e"


def address(tmp_path: Path, last: int = 10) -> str:
    """A loopback address that no test running at the same time has."""
    digest = hashlib.sha256(str(tmp_path).encode()).digest()
    return f"127.{100 + digest[0] % 100}.{digest[1]}.{last}"


class FakeEngine:
    """As much of Docker's API as these tests ask for; notes what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.containers: dict[str, str] = {}
        self.volumes: set[str] = set()
        self.received = 0

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self.handle)
        return application

    async def handle(self, request: web.Request) -> web.StreamResponse:  # noqa: PLR0911
        path = request.path.removeprefix("/v1.45")
        self.calls.append(f"{request.method} {path}")
        match [request.method, *path.strip("/").split("/")]:
            case ["GET", "_ping"]:
                return web.Response(text="OK")
            case ["POST", "containers", "create"]:
                container = f"c{len(self.containers)}"
                self.containers[container] = "created"
                return web.json_response({"Id": container, "Warnings": []}, status=201)
            case ["POST", "volumes", "create"]:
                self.volumes.add((await request.json())["Name"])
                return web.json_response(await request.json(), status=201)
            case ["POST", "containers", container, "start" | "stop" as verb]:
                self.containers[container] = "running" if verb == "start" else "exited"
                return web.Response(status=204)
            case ["GET", "containers", container, "json"] if container in self.containers:
                mounts = [{"Type": "volume", "Name": "named"}, {"Type": "bind", "Source": "/var/run/docker.sock"}]
                policy = {"RestartPolicy": {"Name": "always"}}
                return web.json_response({"Id": container, "Mounts": mounts, "HostConfig": policy})
            case ["DELETE", "containers", container]:
                return web.Response(status=204 if self.containers.pop(container, None) else 404)
            case ["DELETE", "volumes", volume]:
                self.volumes.discard(volume)
                return web.Response(status=204)
            case ["POST", "images", "load"]:
                async for data in request.content.iter_chunked(2**20):
                    self.received += len(data)
                return web.json_response({"stream": "loaded"})
            case ["GET", "events"]:
                response = web.StreamResponse()
                await response.prepare(request)
                await asyncio.sleep(3600)
                return response
            case ["POST", "containers", _, "attach"]:
                return await self.attach(request)
        return web.json_response({"message": "no such thing"}, status=404)

    async def attach(self, request: web.Request) -> web.StreamResponse:
        """Turns the connection into a stream that echoes, and ends when the client has said all."""
        response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", "Upgrade": "tcp"})
        transport = request.transport
        assert transport is not None
        await response.prepare(request)
        protocol = _Echo(asyncio.get_running_loop().create_future())
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        await protocol.ended
        return response


class _Echo(asyncio.Protocol):
    def __init__(self, ended: asyncio.Future[None]) -> None:
        self.ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def eof_received(self) -> None:
        self.transport.write(b"<end>")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class Scene:
    """VMs on a fake engine, and a client with a key and a known host key."""

    def __init__(self, tmp_path: Path) -> None:
        self.state = tmp_path / "state"
        self.state.mkdir()
        self.fake = FakeEngine()
        self.faults = Faults()
        self.store = Store(self.state / "store.sqlite")
        self.engine = Engine(f"unix://{self.state}/engine.sock", None, "172.17.0.1")
        self.vms = VirtualMachines(self.state, self.engine, self.faults, self.store)
        self.address = address(tmp_path)
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.client_key = asyncssh.generate_private_key("ssh-ed25519")
        self.key_file = tmp_path / "id_ed25519"
        self.client_key.write_private_key(self.key_file)
        self.key_file.chmod(0o600)

    def user_data(self, **more: Any) -> str:
        keys = {"ed25519_private": self.host_key.export_private_key().decode()}
        return "#cloud-config\n" + json.dumps({"ssh_keys": keys} | more)

    async def boot(self, user_data: str | None = None) -> None:
        await self.vms.boot(
            VirtualMachine(
                VM_ID,
                "runner-0",
                [self.address],
                self.user_data() if user_data is None else user_data,
                [self.client_key.export_public_key().decode()],
            )
        )

    def ssh_options(self, host_key: asyncssh.SSHKey | None = None) -> list[str]:
        known = (host_key or self.host_key).export_public_key().decode().strip()
        return [
            *("-F", "none", "-i", str(self.key_file), "-p", str(SSH_PORT)),
            *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"),
            *("-o", "UserKnownHostsFile=none", "-o", "GlobalKnownHostsFile=none"),
            *("-o", f"KnownHostsCommand=/bin/echo %H {known}"),
        ]

    async def ssh(
        self, *arguments: str, stdin: bytes = b"", options: list[str] | None = None
    ) -> tuple[int, bytes, bytes]:
        command = ["ssh", *(options or self.ssh_options()), f"debian@{self.address}", *arguments]
        pipe = asyncio.subprocess.PIPE
        client = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        out, err = await asyncio.wait_for(client.communicate(stdin), 20)
        assert client.returncode is not None
        return client.returncode, out, err

    def docker(self) -> aiohttp.ClientSession:
        socket = str(self.state / "vms" / f"{VM_ID[:8]}.sock")
        return aiohttp.ClientSession("http://docker", connector=aiohttp.UnixConnector(socket))


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    runner = web.AppRunner(scene.fake.application(), shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(scene.state / "engine.sock")).start()
    yield scene
    await scene.vms.close()
    await runner.cleanup()
    scene.store.close()


async def eventually(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def running(pid: int) -> bool:
    try:
        Process.of(pid)
    except ProcessLookupError:
        return False
    return True


async def test_command_runs_with_streams_and_exit_status(scene: Scene) -> None:
    await scene.boot()
    code, out, err = await scene.ssh("cat; echo to the error stream >&2; exit 7", stdin=b"\x00\xffbinary\r\n")
    assert (code, out, err) == (7, b"\x00\xffbinary\r\n", b"to the error stream\n")


async def test_large_binary_streams_come_through_whole(scene: Scene) -> None:
    await scene.boot()
    data = os.urandom(8 * 1024 * 1024)
    code, out, _ = await scene.ssh("cat", stdin=data)
    assert code == 0
    assert out == data


async def test_killed_command_is_not_taken_for_success(scene: Scene) -> None:
    await scene.boot()
    code, _, _ = await scene.ssh("kill -KILL $$")
    assert code != 0


async def test_wrong_host_key_is_refused(scene: Scene) -> None:
    await scene.boot()
    code, out, err = await scene.ssh("echo in", options=scene.ssh_options(asyncssh.generate_private_key("ssh-ed25519")))
    assert code == 255
    assert out == b""
    assert b"Host key verification failed" in err


async def test_only_authorised_keys_may_log_in(scene: Scene, tmp_path: Path) -> None:
    await scene.boot()
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(scene.key_file)
    code, _, err = await scene.ssh("echo in")
    assert code == 255
    assert b"Permission denied (publickey)" in err
    assert scene.vms.logins == []


async def test_keys_of_cloud_config_may_log_in(scene: Scene) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    users = ["default", {"name": "ops", "ssh_authorized_keys": [other.export_public_key().decode()]}]
    await scene.boot(scene.user_data(users=users))
    other.write_private_key(scene.key_file)
    assert (await scene.ssh("id -un >/dev/null; echo $USER"))[:2] == (0, b"debian\n")


async def test_many_sessions_share_one_log_in(scene: Scene, tmp_path: Path) -> None:
    await scene.boot()
    multiplexed = ["-o", "ControlMaster=auto", "-o", f"ControlPath={tmp_path}/mux", "-o", "ControlPersist=20"]
    options = [*scene.ssh_options(), *multiplexed]
    # The master keeps the client's error stream open, so nothing may wait for its end.
    master = await asyncio.create_subprocess_exec("ssh", *options, "-f", "-N", f"debian@{scene.address}")
    assert await master.wait() == 0
    try:
        answers = await asyncio.gather(*(scene.ssh(f"cat; exit {n}", stdin=b"x", options=options) for n in range(12)))
    finally:
        await scene.ssh(options=[*options, "-O", "exit"])
    assert [(code, out) for code, out, _ in answers] == [(n, b"x") for n in range(12)]
    assert [(login["vm"], login["address"], login["user"]) for login in scene.vms.logins] == [
        (VM_ID, scene.address, "debian")
    ]


async def test_client_killed_in_mid_session_leaves_no_process(scene: Scene, tmp_path: Path) -> None:
    await scene.boot()
    command = f"sleep 4711 & echo $$ $! >{tmp_path}/pids; wait"
    client = await asyncio.create_subprocess_exec(
        "ssh", *scene.ssh_options(), f"debian@{scene.address}", command, stdin=asyncio.subprocess.PIPE
    )
    await eventually(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 2)
    pids = (tmp_path / "pids").read_text().split()
    assert all(running(int(pid)) for pid in pids)
    client.kill()
    await client.wait()
    await eventually(lambda: not any(running(int(pid)) for pid in pids))


async def test_files_of_cloud_config_are_laid_down(scene: Scene) -> None:
    script = {"path": "/usr/local/bin/ready", "content": "#!/bin/sh\necho ready\n", "permissions": "0755"}
    encoded = {"path": "/etc/docker/daemon.json", "content": "eyJtdHUiOiAxNDUwfQ==", "encoding": "b64"}
    await scene.boot(scene.user_data(write_files=[script, encoded]))
    root = scene.state / "vms" / VM_ID / "root"
    assert (root / "usr/local/bin/ready").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/docker/daemon.json").read_text() == '{"mtu": 1450}'
    assert (await scene.ssh("ready"))[:2] == (0, b"ready\n")


async def test_cloud_init_says_done(scene: Scene) -> None:
    await scene.boot()
    assert (await scene.ssh("cloud-init status --wait"))[:2] == (0, b"status: done\n")
    code, out, _ = await scene.ssh("cloud-init status --format json")
    assert (code, json.loads(out)["extended_status"]) == (0, "done")


async def test_user_data_that_cannot_be_carried_out_shows(scene: Scene) -> None:
    await scene.boot(scene.user_data(write_files=[{"path": "/../../outside", "content": ""}]))
    code, out, _ = await scene.ssh("cloud-init status --wait")
    assert (code, out) == (2, b"status: done\n")
    assert "outside of the VM" in scene.vms.console(VM_ID)
    assert not (scene.state / "outside").exists()


async def test_host_key_without_final_newline_keeps_sshd_from_starting(scene: Scene) -> None:
    key = scene.host_key.export_private_key().decode().strip()
    await scene.boot("#cloud-config\n" + json.dumps({"ssh_keys": {"ed25519_private": key}}))
    code, _, err = await scene.ssh("true")
    assert code == 255
    assert b"Connection refused" in err
    assert "does not end in a newline" in scene.vms.console(VM_ID)


async def test_floating_address_comes_and_goes(scene: Scene) -> None:
    await scene.boot()
    fixed, floating = scene.address, f"{scene.address.rpartition('.')[0]}.200"
    scene.address = floating
    assert b"Connection refused" in (await scene.ssh("true"))[2]
    await scene.vms.set_addresses(VM_ID, [fixed, floating])
    assert (await scene.ssh("true"))[0] == 0
    await scene.vms.set_addresses(VM_ID, [fixed])
    assert b"Connection refused" in (await scene.ssh("true"))[2]
    scene.address = fixed
    assert (await scene.ssh("true"))[0] == 0


async def test_docker_calls_are_counted_and_can_fail(scene: Scene) -> None:
    await scene.boot()
    scene.faults.add(Fault(n=2, do="status", status=503, api="docker"))
    scene.faults.add(Fault(n=3, do="drop", api="docker"))
    async with scene.docker() as docker:
        assert (await docker.get("/_ping")).status == 200
        refused = await docker.post("/v1.45/containers/create", json={})
        assert refused.status == 503
        assert "injected" in (await refused.json())["message"]
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await docker.post("/v1.45/containers/create", json={})
        assert (await docker.get("/v1.45/containers/none/json")).status == 404
    log = [(entry["n"], entry["path"], entry["status"]) for entry in scene.faults.requests()]
    assert log == [
        (1, "/_ping", 200),
        (2, "/v1.45/containers/create", 503),
        (3, "/v1.45/containers/create", None),
        (4, "/v1.45/containers/none/json", 404),
    ]
    assert scene.fake.containers == {}


async def test_lost_answer_leaves_the_container(scene: Scene) -> None:
    await scene.boot()
    scene.faults.add(Fault(do="lose", path="/containers/create"))
    async with scene.docker() as docker:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await docker.post("/v1.45/containers/create", json={})
    assert scene.fake.containers == {"c0": "created"}
    await scene.vms.wipe(VM_ID)
    assert scene.fake.containers == {}


async def test_large_upload_is_streamed(scene: Scene) -> None:
    await scene.boot()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(2**20)

    async with scene.docker() as docker:
        answer = await docker.post("/v1.45/images/load", data=body())
        assert await answer.json() == {"stream": "loaded"}
    assert scene.fake.received == 64 * 2**20


async def test_answer_without_an_end_begins_at_once_and_ends_with_its_client(scene: Scene) -> None:
    await scene.boot()
    async with scene.docker() as docker:
        answer = await asyncio.wait_for(docker.get("/v1.45/events"), 5)
        assert answer.status == 200
        answer.close()
    async with scene.docker() as docker:
        assert (await docker.get("/_ping")).status == 200


async def test_hijacked_connection_is_passed_through(scene: Scene) -> None:
    await scene.boot()
    reader, writer = await asyncio.open_unix_connection(scene.state / "vms" / f"{VM_ID[:8]}.sock")
    writer.write(b"POST /v1.45/containers/c0/attach?stream=1 HTTP/1.1\r\nHost: docker\r\n")
    writer.write(b"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    writer.write(b"\x00raw\xff")
    assert await reader.readexactly(5) == b"\x00raw\xff"
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b"<end>"
    writer.close()
    assert scene.faults.requests()[-1]["status"] == 101


async def test_wiped_vm_takes_what_was_made_through_it(scene: Scene) -> None:
    await scene.boot()
    scene.fake.containers["someone-elses"] = "running"
    scene.fake.volumes |= {"named", "someone-elses"}
    async with scene.docker() as docker:
        await docker.post("/v1.45/containers/create", json={})
        await docker.post("/v1.45/volumes/create", json={"Name": "v"})
    await scene.vms.close()  # the sandbox is restarted
    vms = VirtualMachines(scene.state, scene.engine, scene.faults, Store(scene.state / "store.sqlite"))
    await vms.wipe(VM_ID)
    assert scene.fake.containers == {"someone-elses": "running"}
    assert scene.fake.volumes == {"someone-elses"}
    assert not (scene.state / "vms" / VM_ID).exists()
    assert b"Connection refused" in (await scene.ssh("true"))[2]


async def test_stopped_vm_stops_its_containers_and_a_started_one_starts_them(scene: Scene) -> None:
    await scene.boot()
    async with scene.docker() as docker:
        await docker.post("/v1.45/containers/create", json={})
        await docker.post("/v1.45/containers/c0/start")
    await scene.vms.shutdown(VM_ID)
    assert scene.fake.containers == {"c0": "exited"}
    assert b"Connection refused" in (await scene.ssh("true"))[2]
    await scene.boot()
    assert scene.fake.containers == {"c0": "running"}
    assert (await scene.ssh("true"))[0] == 0


@pytest.mark.docker
async def test_docker_over_ssh_reaches_a_real_engine(tmp_path: Path, shell_root: Path) -> None:
    scene = Scene(tmp_path)
    engine = await asyncio.to_thread(ensure, scene.state, print)
    scene.vms = VirtualMachines(scene.state, engine, scene.faults, scene.store)
    try:
        await scene.boot()
        if engine.namespace:
            code, out, _ = await scene.ssh("cat /sys/class/net/eth0/mtu; ip -4 route show default")
            assert (code, out) == (0, f"1450\ndefault via {engine.gateway} dev eth0 \n".encode())
        await _docker_over_ssh(scene, engine, shell_root)
    finally:
        await scene.vms.wipe(VM_ID)
        await asyncio.to_thread(stop, scene.state)
        scene.store.close()


async def _docker_over_ssh(scene: Scene, engine: Engine, shell_root: Path) -> None:
    # Docker's client takes no options for ssh but those of the ssh it finds on PATH.
    wrapper = scene.state / "bin" / "ssh"
    wrapper.parent.mkdir()
    options = " ".join(f"'{option}'" for option in scene.ssh_options())
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}:{os.environ['PATH']}:{engine.tools}"
    over_ssh = os.environ | {"PATH": path, "DOCKER_HOST": f"ssh://debian@{scene.address}:{SSH_PORT}"}
    direct = over_ssh | {"DOCKER_HOST": engine.docker_host}

    async def run(*command: str, stdin: bytes = b"", env: dict[str, str] = over_ssh) -> str:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, env=env, stdin=pipe, stdout=pipe, stderr=pipe)
        out, err = await asyncio.wait_for(process.communicate(stdin), 60)
        assert process.returncode == 0, err
        return out.decode().strip()

    image = "sandbox-vm-test"
    system_id = "r_sandboxvm0001"
    (shell_root / "etc/gitlab-runner").mkdir(parents=True)
    (shell_root / "etc/gitlab-runner/.runner_system_id").write_text(system_id)
    archive = await asyncio.create_subprocess_exec(
        "tar", "-C", str(shell_root), "-c", ".", stdout=asyncio.subprocess.PIPE
    )
    await run("docker", "import", "-", image, stdin=(await archive.communicate())[0])
    try:
        script = "read line; echo $line"
        assert await run("docker", "run", "--rm", "-i", image, "bash", "-c", script, stdin=b"through\n") == "through"
        container = await run("docker", "run", "-d", "-i", image, "bash", "-c", "read line")
        assert (await scene.ssh("docker", "inspect", "-f", "{{.Id}}", container))[1].decode().strip() == container
        label = f"com.gitlab.gitlab-runner.runner.system_id={system_id}"
        job = await run("docker", "run", "-d", "-i", "--label", label, image, "bash", "-c", "read line", env=direct)
        await scene.vms.wipe(VM_ID)
        left = (await run("docker", "ps", "-aq", "--no-trunc", env=direct)).split()
        assert not {container, job} & set(left)
    finally:
        await run("docker", "rmi", "-f", image, env=direct)
