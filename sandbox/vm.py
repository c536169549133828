"""The sandbox's virtual machines: what a server "boots" into.

A VM is an SSH server on loopback addresses of its own, with the host key and the authorised keys that user data and
key pair gave it; behind it commands run on this machine, where the Docker Engine is, with the VM's files and Docker
socket. Of cloud-config, ``write_files``, ``ssh_keys`` and the authorised keys are carried out, as cloud-init documents
them; packages and commands (``packages``, ``runcmd``, ``bootcmd``) are not.
"""

import asyncio
import base64
import gzip
import os
import shutil
import signal
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import yaml
from aiohttp import web

from sandbox.disk import Disk
from sandbox.docker_proxy import DockerProxy
from sandbox.engine import Engine, EngineError
from sandbox.faults import Faults
from sandbox.store import Store

SSH_PORT = 2222
CONSOLE_LIMIT = 64 * 1024  # bytes kept of a console, as much as a hypervisor's serial log usually is
PIECE = 64 * 1024  # bytes

# What cloud-init 25 answers once it has finished; exit status 2 is its "finished, with recoverable errors".
_CLOUD_INIT = """\
#!/bin/sh
[ "$1" = status ] || { echo "cloud-init: the sandbox only answers 'status'" >&2; exit 2; }
case " $* " in
*" json "*|*"=json "*) cat <<'END'
{
  "boot_status_code": "enabled-by-generator",
  "datasource": "openstack",
  "detail": "DataSourceOpenStack [net,ver=2]",
  "errors": [],
  "extended_status": "%(extended)s",
  "recoverable_errors": {},
  "status": "done"
}
END
;;
*) echo "status: done" ;;
esac
exit %(code)d
"""


@dataclass
class VirtualMachine:
    """A server as Nova hands it over: user_data is decoded text, authorized_keys are lines in OpenSSH's format."""

    id: str
    name: str
    addresses: list[str]
    user_data: str = ""
    authorized_keys: list[str] = field(default_factory=list)


class VirtualMachines:
    """All VMs of one sandbox."""

    def __init__(self, state: Path, engine: Engine, faults: Faults, store: Store) -> None:
        self.state = state
        self.engine = engine
        self.faults = faults
        self.store = store
        self.logins: list[dict[str, Any]] = []
        self._running: dict[str, _Machine] = {}

    async def boot(self, vm: VirtualMachine) -> None:
        """Lays down the files, opens the Docker socket and listens on port 2222 of every address.

        A VM that runs is restarted. Raises OSError when an address cannot be listened on.
        """
        if vm.id in self._running:
            await self.shutdown(vm.id)
        machine = _Machine(vm, self)
        self._running[vm.id] = machine
        try:
            await machine.boot()
        except BaseException:
            del self._running[vm.id]
            await machine.off()
            raise

    async def shutdown(self, id: str) -> None:
        """The VM is off: nothing listens, sessions are cut, its containers are stopped; the disk stays."""
        if machine := self._running.pop(id, None):
            await machine.off()
            await machine.disk.power_off()

    async def wipe(self, id: str) -> None:
        """The VM is off and its disk is gone, with every container, volume and network that was on it."""
        if machine := self._running.pop(id, None):
            await machine.off()
        await Disk(id, _socket_path(self.engine), self.store).wipe()
        shutil.rmtree(_directory(self.state, id), ignore_errors=True)

    async def set_addresses(self, id: str, addresses: list[str]) -> None:
        """The addresses a running VM has from now on (a floating IP comes or goes); no-op for one that is off."""
        if machine := self._running.get(id):
            await machine.set_addresses(addresses)

    def console(self, id: str) -> str:
        """What the VM wrote to its console since it was made; empty for one that never ran."""
        path = _directory(self.state, id) / "console.log"
        return path.read_text()[-CONSOLE_LIMIT:] if path.exists() else ""

    async def close(self) -> None:
        """This process ends: listeners and sessions go, disks and containers stay for the next one."""
        machines, self._running = list(self._running.values()), {}
        await asyncio.gather(*(machine.off() for machine in machines))

    def control_routes(self) -> list[web.RouteDef]:
        """GET /sandbox/ssh: the log-ins since the start or the last DELETE, oldest first: {vm, address, user, time}."""
        return [web.get("/sandbox/ssh", self._get_logins), web.delete("/sandbox/ssh", self._delete_logins)]

    async def _get_logins(self, _: web.Request) -> web.Response:
        return web.json_response(self.logins)

    async def _delete_logins(self, _: web.Request) -> web.Response:
        self.logins.clear()
        return web.Response(status=204)


class _Machine:
    """One running VM."""

    def __init__(self, vm: VirtualMachine, host: VirtualMachines) -> None:
        self.vm = vm
        self.engine = host.engine
        self.logins = host.logins
        self.directory = _directory(host.state, vm.id)
        self.root = self.directory / "root"
        # Beside the directory and not in it: the path of a Unix socket has 107 bytes at most.
        self.socket = self.directory.parent / f"{vm.id[:8]}.sock"
        self.disk = Disk(vm.id, _socket_path(host.engine), host.store)
        self.proxy = DockerProxy(self.socket, _socket_path(host.engine), host.faults, self.disk)
        self.authorized: set[bytes] = set()
        self.host_key: asyncssh.SSHKey | None = None
        self.listeners: dict[str, asyncssh.SSHAcceptor] = {}
        self.connections: dict[str, set[asyncssh.SSHServerConnection]] = {}
        self.sessions: set[asyncio.Task[Any]] = set()

    async def boot(self) -> None:
        complaints: list[str] = []
        config = _cloud_config(self.vm.user_data, complaints)
        for line in [*self.vm.authorized_keys, *_authorized_keys(config)]:
            try:
                self.authorized.add(asyncssh.import_public_key(line).public_data)
            except asyncssh.KeyImportError as error:
                complaints.append(f"authorized key {line[:40]!r}: {error}")
        if not self.root.exists():
            self._first_boot(config, complaints)
        self.host_key = self._host_key(config, complaints)
        self._write_console(complaints)
        await self.proxy.start()
        await self.disk.power_on()
        await self.set_addresses(self.vm.addresses)

    async def off(self) -> None:
        await self._listen_on([])
        await asyncio.gather(*self.sessions, return_exceptions=True)
        await self.proxy.close()

    async def set_addresses(self, addresses: list[str]) -> None:
        self.vm.addresses = addresses
        if self.host_key is not None:
            await self._listen_on(addresses)

    async def _listen_on(self, addresses: list[str]) -> None:
        for address in self.listeners.keys() - set(addresses):
            self.listeners.pop(address).close()
            for connection in list(self.connections.pop(address)):
                connection.abort()
        for address in addresses:
            if address not in self.listeners:
                self.connections[address] = set()
                self.listeners[address] = await asyncssh.listen(
                    address,
                    SSH_PORT,
                    server_factory=lambda address=address: _Front(self, address),
                    server_host_keys=[self.host_key],
                    process_factory=self._start_session,
                    encoding=None,
                    allow_pty=False,
                    agent_forwarding=False,
                    compression_algs=None,  # nothing is gained by it on the loopback interface
                )

    def _start_session(self, process: "asyncssh.SSHServerProcess[bytes]") -> Coroutine[Any, Any, None]:
        return self._session(process)

    async def _session(self, process: "asyncssh.SSHServerProcess[bytes]") -> None:
        task = asyncio.current_task()
        assert task is not None
        self.sessions.add(task)
        task.add_done_callback(self.sessions.discard)
        try:
            enter = self.engine.enter()
        except EngineError as error:
            process.stderr.write(f"{error}\n".encode())
            process.exit(255)
            return
        child = await asyncio.create_subprocess_exec(
            *enter,
            "/bin/sh",
            "-c",
            process.command or "exec /bin/sh",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(str(process.get_extra_info("username"))),
            cwd="/",
            limit=4 * PIECE,
            start_new_session=True,
        )
        work = asyncio.ensure_future(_converse(process, child))
        gone = asyncio.ensure_future(process.wait_closed())
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            gone.cancel()
            with suppress(ProcessLookupError):  # the usual case: all of it has ended
                os.killpg(child.pid, signal.SIGKILL)
            # What has a session of its own lives on, and sees the end of its input, as with sshd.
            assert child.stdin is not None
            child.stdin.close()
            await asyncio.gather(work, gone, child.wait(), return_exceptions=True)

    def _environment(self, user: str) -> dict[str, str]:
        local = self.root / "usr/local"
        path = [f"{local}/bin", f"{local}/sbin", f"{self.directory}/shims", os.environ["PATH"], self.engine.tools]
        return {
            "PATH": ":".join(filter(None, path)),
            "HOME": str(self.root / "root"),
            "USER": user,
            "LOGNAME": user,
            "LANG": "C.UTF-8",
            "DOCKER_HOST": f"unix://{self.socket}",
        }

    def _first_boot(self, config: dict[str, Any], complaints: list[str]) -> None:
        """What cloud-init does once per instance."""
        (self.root / "root").mkdir(parents=True)
        for number, entry in enumerate(config.get("write_files") or []):
            try:
                _write_file(self.root, entry)
            except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
                complaints.append(f"write_files, entry {number}: {error!r}")
        shims = self.directory / "shims"
        shims.mkdir()
        status = {"extended": "degraded done", "code": 2} if complaints else {"extended": "done", "code": 0}
        (shims / "cloud-init").write_text(_CLOUD_INIT % status)
        (shims / "cloud-init").chmod(0o755)

    def _host_key(self, config: dict[str, Any], complaints: list[str]) -> asyncssh.SSHKey | None:
        """The key user data gives, else one made at first boot; None when sshd would not start with it."""
        given = (config.get("ssh_keys") or {}).get("ed25519_private")
        own = self.directory / "ssh_host_ed25519_key"
        if given is None:
            if not own.exists():
                own.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
                own.chmod(0o600)
            return asyncssh.read_private_key(own)
        if not str(given).endswith("\n"):
            complaints.append(
                "ssh_keys: ed25519_private does not end in a newline: sshd cannot load it and does not start"
            )
            return None
        try:
            return asyncssh.import_private_key(given)
        except (asyncssh.KeyImportError, TypeError) as error:
            complaints.append(f"ssh_keys: ed25519_private: {error}: sshd does not start")
            return None

    def _write_console(self, complaints: list[str]) -> None:
        lines = [f"{self.vm.name} login: booting (a virtual machine of the sandbox)"]
        lines += [f"cloud-init: WARNING: {complaint}" for complaint in complaints]
        if self.host_key is not None:
            public = self.host_key.export_public_key().decode().strip()
            lines += ["-----BEGIN SSH HOST KEY KEYS-----", public, "-----END SSH HOST KEY KEYS-----"]
            lines += [f"sshd: listening on port {SSH_PORT} of {', '.join(self.vm.addresses)}"]
        finished = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime())
        lines += [f"Cloud-init v. 25.1 finished at {finished}. Datasource DataSourceOpenStack [net,ver=2]."]
        with (self.directory / "console.log").open("a") as console:
            console.write("".join(f"{line}\n" for line in lines))


class _Front(asyncssh.SSHServer):
    """One SSH connection: any user, public keys only."""

    def __init__(self, machine: _Machine, address: str) -> None:
        self._machine = machine
        self._address = address
        self._connection: asyncssh.SSHServerConnection

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        if self._address in self._machine.connections:
            self._machine.connections[self._address].add(conn)
        else:  # accepted just before the listener went
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._machine.connections.get(self._address, set()).discard(self._connection)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key.public_data in self._machine.authorized

    def auth_completed(self) -> None:
        user = self._connection.get_extra_info("username")
        login = {"vm": self._machine.vm.id, "address": self._address, "user": user, "time": time.time()}
        self._machine.logins.append(login)


async def _converse(process: "asyncssh.SSHServerProcess[bytes]", child: asyncio.subprocess.Process) -> None:
    """Joins the session's streams to the command's until both outputs end, as sshd does; reports the exit status."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    feeding = asyncio.ensure_future(_feed(process, child.stdin))
    try:
        await asyncio.gather(_carry(child.stdout, process.stdout), _carry(child.stderr, process.stderr))
        code = await child.wait()
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    if code >= 0:
        process.exit(code)
    else:
        process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))


async def _feed(process: "asyncssh.SSHServerProcess[bytes]", stdin: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):  # the command does not want to read it all
        while data := await process.stdin.read(PIECE):
            stdin.write(data)
            await stdin.drain()
        stdin.close()


async def _carry(output: asyncio.StreamReader, channel: "asyncssh.SSHWriter[bytes]") -> None:
    while data := await output.read(PIECE):
        channel.write(data)
        await channel.drain()


def _directory(state: Path, id: str) -> Path:
    return state / "vms" / id


def _socket_path(engine: Engine) -> str:
    return engine.docker_host.removeprefix("unix://")


def _cloud_config(user_data: str, complaints: list[str]) -> dict[str, Any]:
    if not user_data.startswith("#cloud-config"):
        if user_data.strip():
            complaints.append("user data is not cloud-config: not carried out")
        return {}
    try:
        config = yaml.safe_load(user_data)
    except yaml.YAMLError as error:
        complaints.append(f"user data is not valid YAML: {' '.join(str(error).split())}")
        return {}
    if config is not None and not isinstance(config, dict):
        complaints.append("user data is not a mapping")
        return {}
    return config or {}


def _authorized_keys(config: dict[str, Any]) -> list[str]:
    users = [user for user in config.get("users") or [] if isinstance(user, dict)]
    return [key for holder in [config, *users] for key in holder.get("ssh_authorized_keys") or []]


def _write_file(root: Path, entry: dict[str, Any]) -> None:
    """One entry of write_files (cloud-init's module "Write Files"): path, content, encoding, permissions, append."""
    path = root / str(entry["path"]).lstrip("/")
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{entry['path']} is outside of the VM")
    content = entry.get("content") or ""
    data = content if isinstance(content, bytes) else str(content).encode()
    encoding = str(entry.get("encoding") or "text/plain").lower()
    if "b64" in encoding or "base64" in encoding:
        data = base64.b64decode(data)
    if encoding.startswith(("gz", "gzip")):
        data = gzip.decompress(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if entry.get("append") else "wb") as file:
        file.write(data)
    permissions = entry.get("permissions", 0o644)
    path.chmod(permissions if isinstance(permissions, int) else int(permissions, 8))
