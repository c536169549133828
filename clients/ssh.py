"""SSH to a Docker host: the options that the docker provider, the readiness check and the drain share."""

import asyncio
from asyncio import create_subprocess_exec, subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from clients import ClientError

# Docker's own helper appends ConnectTimeout=30, which a booting machine exceeds; the first value counts.
_CONNECT_TIMEOUT_SECONDS = 60
# How long an idle master connection stays for the next client.
_PERSIST_SECONDS = 60
SSH_FAILED = 255
_SIGN_OF_LIFE_SECONDS = 10


@dataclass(frozen=True)
class Login:
    """User, TCP port and options for `ssh`; None leaves them to ssh_config(5)."""

    user: str | None
    port: int | None
    options: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """Result of a remote command; `status` is 255 when SSH itself failed."""

    status: int
    output: str
    error: str


def ssh_options(
    host_key: str | None,
    *,
    jump_host: str | None = None,
    identity_file: str | None = None,
    options: Mapping[str, str] | None = None,
) -> list[str]:
    """Command-line options for `ssh`, as the docker provider's sshOpts take them.

    The host's key is always checked: against `host_key` ("ssh-ed25519 AAAA…"), which travels in the options themselves
    so that no known_hosts file is needed on the next machine, or, when that is None, against the user's known_hosts.
    All clients share one connection (ControlMaster). `options` are those of `settings.ssh`, which replace defaults and
    loosen no check. Options: ssh_config(5); KnownHostsCommand needs OpenSSH 8.5.
    """
    settings = {"StrictHostKeyChecking": "yes"}
    if host_key is not None:
        settings |= {
            "KnownHostsCommand": f"/bin/echo %H {host_key}",
            "UserKnownHostsFile": "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
        }
    checks = dict(settings)
    settings |= {
        "BatchMode": "yes",
        "ConnectTimeout": str(_CONNECT_TIMEOUT_SECONDS),
        "ControlMaster": "auto",
        # Short, for a Unix socket's path may have 107 bytes; with the key, for a connection that stands is not checked
        # again.
        "ControlPath": f"~/.ssh/glr-{sha256((host_key or '').encode()).hexdigest()[:8]}-%C",
        "ControlPersist": str(_PERSIST_SECONDS),
        "ServerAliveInterval": "30",
    }
    settings |= dict(options or {}) | checks
    if jump_host is not None:
        settings["ProxyJump"] = jump_host
    if identity_file is not None:
        settings["IdentityFile"] = identity_file
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


async def run(host: str, login: Login, command: str, stdin: bytes | None = None, *, held: bool = False) -> Answer:
    """Runs a shell command on a host and waits for its end. Raises ClientError when there is no `ssh`.

    The command reads `stdin`, or nothing; one that is `held` gets a dot every ten seconds instead, until this process
    ends. So a command that must not go on alone can notice that nobody waits for it any more. It has a connection of
    its own: the master of those that are shared keeps a command's input open when its client is killed (OpenSSH 9.2).
    """
    # The master connection's socket lives there.
    Path("~/.ssh").expanduser().mkdir(mode=0o700, exist_ok=True)
    own_connection = ["-o", "ControlPath=none"] if held else []
    arguments = [*own_connection, *login.options, "-T"]
    if login.user is not None:
        arguments += ["-l", login.user]
    if login.port is not None:
        arguments += ["-p", str(login.port)]
    command_line = ["ssh", *arguments, "--", host, command]
    input_ = subprocess.PIPE if held or stdin is not None else subprocess.DEVNULL
    try:
        process = await create_subprocess_exec(
            *command_line, stdin=input_, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError:
        raise ClientError("there is no ssh on PATH; install the OpenSSH client") from None
    alive = asyncio.ensure_future(_signs_of_life(process.stdin)) if held and process.stdin is not None else None
    if alive is None:
        streams = await process.communicate(stdin)
    else:
        assert process.stdout is not None
        assert process.stderr is not None
        streams = await asyncio.gather(process.stdout.read(), process.stderr.read())
        await process.wait()
        alive.cancel()
    output, error = (stream.decode(errors="replace").strip() for stream in streams)
    return Answer(process.returncode or 0, output, error)


async def _signs_of_life(stdin: asyncio.StreamWriter) -> None:
    # What has ended already needs none.
    with suppress(ConnectionError):
        while True:
            stdin.write(b".")
            await stdin.drain()
            await asyncio.sleep(_SIGN_OF_LIFE_SECONDS)
