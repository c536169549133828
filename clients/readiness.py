"""Waiting until a host's Docker Engine answers."""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import docker
from docker.errors import DockerException
from docker.tls import TLSConfig
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_fixed

from clients import ClientError
from clients.ssh import SSH_FAILED, Login, run
from clients.text import one_line
from clients.threads import in_thread
from settings import DockerHost

_RETRY_SECONDS = 3
_ENGINE_TIMEOUT_SECONDS = 10
# How long one look at a booting machine waits for cloud-init, before it says so and looks again.
_PATIENCE_SECONDS = 60
# Exit statuses of the check below that `cloud-init`, `check-mtu` and `docker` do not use themselves.
_CLOUD_INIT_FAILED = 210
_CLOUD_INIT_RUNS = 211
_MTU_FAILED = 212
_VOLUME_FAILED = 213
# `cloud-init status` exits with 1 for errors, with 2 for warnings (cloud-init docs, "Reported status").
_MACHINE_IS_READY = f"""\
timeout {_PATIENCE_SECONDS} cloud-init status --wait >/dev/null
case $? in
  1) cloud-init status --long; exit {_CLOUD_INIT_FAILED} ;;
  124) exit {_CLOUD_INIT_RUNS} ;;
esac
check-mtu || exit {_MTU_FAILED}
if systemctl is-failed --quiet mount-docker-volume.service 2>/dev/null; then
  journalctl --quiet --no-pager --output=cat --lines=3 --unit=mount-docker-volume.service
  exit {_VOLUME_FAILED}
fi
docker version --format '{{{{.Server.Version}}}}'"""
# GitLab Runner 19 cannot read what older ones tell of an IPv6 network, whose gateway they give with the length of its
# prefix (mended in Docker Engine 28.0.1): no job would start.
_OLDEST_WITH_READABLE_IPV6 = (28, 0, 1)
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


async def machine_ready(machine: Machine, timeout: int, report: Callable[[str], None]) -> str:
    """Waits until a virtual machine has booted, cloud-init has ended well, its MTU fits and its Docker answers.

    `timeout` in seconds. `report` gets a line whenever there is something new to wait for. The connection stays open
    as the master of those that follow. Returns the engine's version. Raises ClientError with what to look at.
    """

    async def check() -> str:
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
        if answer.status == _CLOUD_INIT_RUNS:
            raise _NotYet("cloud-init has not ended")
        if answer.status == _MTU_FAILED:
            raise ClientError(f"{machine}: {_line(answer.error)}")
        if answer.status == _VOLUME_FAILED:
            raise ClientError(
                f"{machine}: Docker's volume cannot be used: {_line(answer.output)}; "
                "see `sudo journalctl -u mount-docker-volume` on the host"
            )
        if answer.status != 0:
            raise _NotYet(f"Docker does not answer: {_line(answer.error)}")
        return answer.output

    return await _until(
        check,
        timeout,
        lambda reason: report(f"waiting for {machine}: {reason}"),
        lambda reason: ClientError(
            f"{machine} was not ready after {timeout} s: {reason}; look at host.sshFrom, at the SSH agent (ssh-add -l) "
            f"and at `openstack console log show {machine.name}`; if somebody deleted the machine, run `pulumi refresh`"
        ),
    )


async def engine_ready(host: DockerHost, options: Sequence[str], report: Callable[[str], None]) -> None:
    """Waits until an existing Docker Engine answers, and looks whether it can do what `host` wants of it; `options` are
    for `ssh`. Raises ClientError."""
    url, timeout = host.url, host.ready_timeout
    parts = urlsplit(url)

    async def check_ssh() -> str:
        answer = await run(parts.hostname or "", Login(parts.username, parts.port, options), _DOCKER_ANSWERS)
        if answer.status == SSH_FAILED and "Host key verification failed" in answer.error:
            raise ClientError(
                f"Docker at {url}: the SSH host key is not the expected one; set host.hostKey or add it to known_hosts"
            )
        if answer.status != 0:
            raise _NotYet(_line(answer.error))
        return answer.output

    async def check_socket() -> str:
        try:
            return await in_thread(_version, host)
        except DockerException as error:
            raise _NotYet(_line(str(error))) from error

    version = await _until(
        check_ssh if parts.scheme == "ssh" else check_socket,
        timeout,
        lambda reason: report(f"waiting for Docker at {url}: {reason}"),
        lambda reason: ClientError(f"Docker at {url} did not answer within {timeout} s: {reason}; check host.url"),
    )
    if host.ipv6:
        check_ipv6(f"Docker at {url}", version)


def check_ipv6(engine: str, version: str) -> None:
    """Raises ClientError when jobs cannot have IPv6 with this version of the Docker Engine; `engine` says which one."""
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < _OLDEST_WITH_READABLE_IPV6:
        oldest = ".".join(map(str, _OLDEST_WITH_READABLE_IPV6))
        raise ClientError(
            f"host.ipv6: {engine} is {version}, but GitLab Runner makes IPv6 networks only with {oldest} or newer; use "
            "an image with such an engine (host.docker: preinstalled), or leave ipv6 out"
        )


@contextmanager
def _explained(host: DockerHost) -> Iterator[None]:
    try:
        yield
    except DockerException as error:
        raise ClientError(f"Docker at {host.url}: {_line(str(error))}") from error


@contextmanager
def engine_client(url: str, cert_path: str | None) -> Iterator[docker.DockerClient]:
    """A client of an existing Docker Engine; what goes wrong with it is a ClientError."""
    host = DockerHost.model_validate({"kind": "docker", "url": url, "certPath": cert_path})
    with _explained(host), _client(host) as client:
        yield client


def _version(host: DockerHost) -> str:
    with _client(host) as client:
        return str(client.version()["Version"])


@contextmanager
def _client(host: DockerHost) -> Iterator[docker.DockerClient]:
    tls: TLSConfig | bool = False
    if host.cert_path is not None:
        folder = Path(host.cert_path).expanduser()
        tls = TLSConfig(
            client_cert=(str(folder / "cert.pem"), str(folder / "key.pem")),
            ca_cert=str(folder / "ca.pem"),
            verify=True,
        )
    client = docker.DockerClient(base_url=host.url, tls=tls, timeout=_ENGINE_TIMEOUT_SECONDS)
    try:
        yield client
    finally:
        client.close()


async def _until(
    check: Callable[[], Awaitable[str]],
    timeout: int,
    report: Callable[[str], None],
    failure: Callable[[str], ClientError],
) -> str:
    reported: set[str] = set()

    def say(state: RetryCallState) -> None:
        reason = _reason(state)
        if reason not in reported:
            reported.add(reason)
            report(reason)

    def give_up(state: RetryCallState) -> str:
        raise failure(_reason(state))

    return await AsyncRetrying(
        retry=retry_if_exception_type(_NotYet),
        wait=wait_fixed(_RETRY_SECONDS),
        stop=stop_after_delay(timeout),
        before_sleep=say,
        retry_error_callback=give_up,
    )(check)


def _reason(state: RetryCallState) -> str:
    return str(state.outcome.exception()) if state.outcome is not None else ""


def _line(text: str) -> str:
    return one_line(text) or "no message"
