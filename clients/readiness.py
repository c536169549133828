"""Waiting, for a bounded time, until a host's Docker Engine answers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import docker
from docker.errors import DockerException
from docker.tls import TLSConfig
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_fixed

from clients import ClientError
from clients.ssh import SSH_FAILED, Login, run
from settings import DockerHost

_RETRY_SECONDS = 3
# Exit statuses of the check below that `cloud-init`, `check-mtu` and `docker` do not use themselves.
_CLOUD_INIT_FAILED = 210
_MTU_FAILED = 211
# `cloud-init status` exits with 1 for errors, with 2 for warnings (cloud-init docs, "Reported status").
_MACHINE_IS_READY = f"""\
cloud-init status --wait >/dev/null
[ $? -ne 1 ] || {{ cloud-init status --long; exit {_CLOUD_INIT_FAILED}; }}
check-mtu || exit {_MTU_FAILED}
docker version --format '{{{{.Server.Version}}}}'"""
_DOCKER_ANSWERS = "docker version --format '{{.Server.Version}}'"


class _NotYet(Exception):
    """The host does not answer yet."""


@dataclass(frozen=True)
class Machine:
    """A virtual machine and how SSH reaches it."""

    name: str
    address: str
    ssh: Login

    def __str__(self) -> str:
        return f"host {self.name} ({self.ssh.user}@{self.address}:{self.ssh.port})"


async def machine_ready(machine: Machine, timeout: int, report: Callable[[str], None]) -> None:
    """Waits until a virtual machine has booted, cloud-init has ended well, its MTU fits and its Docker answers.

    `timeout` in seconds. `report` gets a line whenever there is something new to wait for. The connection stays open
    as the master of those that follow. Raises ClientError with what to look at.
    """

    async def check() -> None:
        answer = await run(machine.address, machine.ssh, _MACHINE_IS_READY)
        if answer.status == SSH_FAILED:
            if "Host key verification failed" in answer.error:
                raise ClientError(
                    f"{machine} shows another SSH host key than the one it was given: "
                    "it is another machine, or somebody is in between"
                )
            raise _NotYet(answer.error.splitlines()[-1] if answer.error else "SSH does not answer")
        if answer.status == _CLOUD_INIT_FAILED:
            raise ClientError(
                f"{machine}: cloud-init failed: {_line(answer.output)}; see /var/log/cloud-init-output.log on the host"
            )
        if answer.status == _MTU_FAILED:
            raise ClientError(f"{machine}: {_line(answer.error)}")
        if answer.status != 0:
            raise _NotYet(f"Docker does not answer: {_line(answer.error)}")

    await _until(
        check,
        timeout,
        lambda reason: report(f"waiting for {machine}: {reason}"),
        lambda reason: ClientError(
            f"{machine} was not ready after {timeout} s: {reason}; look at the security group (host.sshFrom), "
            f"at the SSH agent (ssh-add -l) and at `openstack console log show {machine.name}`"
        ),
    )


async def engine_ready(host: DockerHost, options: Sequence[str], report: Callable[[str], None]) -> None:
    """Waits until an existing Docker Engine answers; `options` are for `ssh`. Raises ClientError."""
    url, timeout = host.url, host.ready_timeout
    parts = urlsplit(url)

    async def check_ssh() -> None:
        answer = await run(parts.hostname or "", Login(parts.username, parts.port, options), _DOCKER_ANSWERS)
        if answer.status == SSH_FAILED and "Host key verification failed" in answer.error:
            raise ClientError(
                f"Docker at {url}: the SSH host key is not the expected one; set host.hostKey or add it to known_hosts"
            )
        if answer.status != 0:
            raise _NotYet(_line(answer.error))

    async def check_socket() -> None:
        try:
            await asyncio.to_thread(_ping, url, host.cert_path)
        except DockerException as error:
            raise _NotYet(_line(str(error))) from error

    await _until(
        check_ssh if parts.scheme == "ssh" else check_socket,
        timeout,
        lambda reason: report(f"waiting for Docker at {url}: {reason}"),
        lambda reason: ClientError(f"Docker at {url} did not answer within {timeout} s: {reason}; check host.url"),
    )


def _ping(url: str, cert_path: str | None) -> None:
    tls: TLSConfig | bool = False
    if cert_path is not None:
        folder = Path(cert_path).expanduser()
        tls = TLSConfig(
            client_cert=(str(folder / "cert.pem"), str(folder / "key.pem")),
            ca_cert=str(folder / "ca.pem"),
            verify=True,
        )
    client = docker.DockerClient(base_url=url, tls=tls, timeout=10)
    try:
        client.ping()
    finally:
        client.close()


async def _until(
    check: Callable[[], Awaitable[None]],
    timeout: int,
    report: Callable[[str], None],
    failure: Callable[[str], ClientError],
) -> None:
    reported: set[str] = set()

    def say(state: RetryCallState) -> None:
        reason = _reason(state)
        if reason not in reported:
            reported.add(reason)
            report(reason)

    def give_up(state: RetryCallState) -> None:
        raise failure(_reason(state))

    await AsyncRetrying(
        retry=retry_if_exception_type(_NotYet),
        wait=wait_fixed(_RETRY_SECONDS),
        stop=stop_after_delay(timeout),
        before_sleep=say,
        retry_error_callback=give_up,
    )(check)


def _reason(state: RetryCallState) -> str:
    return str(state.outcome.exception()) if state.outcome is not None else ""


def _line(text: str) -> str:
    return " ".join(text.split()) or "no message"
