"""The runner managers on a Docker Engine, and the handover from those that go to their successors."""

import asyncio
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from clients import ClientError
from clients.ssh import Login, run
from clients.threads import in_thread
from renderers.drain import tell
from renderers.handover import BUSY_WORKERS, CONFIGURATION_FOLDER, TOKEN_DIGEST, limited, released
from renderers.metrics import RUNNER_LABEL

if TYPE_CHECKING:
    from docker import DockerClient

VOLUME_LABEL = "gitlab-runners.volume"
"""Label of runner managers: their volume's name."""
_POLL_SECONDS = 1
# Restart policy of every manager that is meant to be at work (components.runner_manager).
_POLICY = "always"
# sshd lets one connection have ten sessions (sshd_config(5), MaxSessions), and others use it as well.
_CALLS_AT_ONCE = 4


@dataclass(frozen=True)
class Manager:
    """A manager's container: its id, its state in Docker's words, its runner's name in the stack, its volume."""

    id: str
    state: str
    runner: str
    volume: str

    @property
    def may_have_jobs(self) -> bool:
        """Whether its process runs, or may come back."""
        return self.state in ("running", "paused", "restarting")


class Engine:
    """A host's Docker Engine; `options` are for `ssh`, where the URL says so. Everything raises ClientError."""

    def __init__(self, url: str, options: Sequence[str], cert_path: str | None) -> None:
        self._url, self._options, self._cert_path = url, options, cert_path
        self._ssh = url.startswith("ssh://")
        self._calls = asyncio.Semaphore(_CALLS_AT_ONCE)

    @classmethod
    def of_machine(cls, address: str, login: Login) -> "Engine":
        """That of a virtual machine."""
        host = f"[{address}]" if ":" in address else address
        return cls(f"ssh://{login.user}@{host}:{login.port}", login.options, None)

    async def managers(self, labels: Mapping[str, str]) -> list[Manager]:
        """The managers with these labels, in whatever state."""
        wanted = [VOLUME_LABEL, *(f"{key}={value}" for key, value in labels.items())]
        told = (RUNNER_LABEL, VOLUME_LABEL)
        if self._ssh:
            template = " ".join(["{{.ID}} {{.State}}", *(f'{{{{.Label "{label}"}}}}' for label in told)])
            filters = [f"--filter=label={label}" for label in wanted]
            lines = await self._docker("ps", "--all", "--no-trunc", f"--format={template}", *filters)
            return [Manager(*line.split(" ")) for line in lines.splitlines()]
        listed = await self._call(lambda client: client.api.containers(all=True, filters={"label": wanted}))
        return [Manager(each["Id"], each["State"], *(each["Labels"][label] for label in told)) for each in listed]

    async def sh(self, container: str, script: str) -> str:
        """Output of a script in a container that runs."""
        command = ["sh", "-c", script]
        if self._ssh:
            return await self._docker("exec", container, *command)
        status, output = await self._call(lambda client: client.containers.get(container).exec_run(command))
        if status:
            raise ClientError(f"{self._url}: {output.decode(errors='replace').strip()}")
        return str(output.decode()).strip()

    async def ask(self, container: str, script: str) -> str:
        """The same of a container that may not run, or not know: nothing then."""
        try:
            return await self.sh(container, script)
        except ClientError:
            return ""

    async def sh_on_volume(self, image: str, volume: str, script: str) -> None:
        """Runs a script in a new container of an image that is there, with a manager's volume."""
        if self._ssh:
            mount = f"--volume={volume}:{CONFIGURATION_FOLDER}"
            await self._docker("run", "--rm", "--network=none", mount, "--entrypoint=sh", image, "-c", script)
            return
        options: dict[str, Any] = {"network_mode": "none", "volumes": {volume: {"bind": CONFIGURATION_FOLDER}}}
        command = ["-c", script]
        await self._call(lambda c: c.containers.run(image, command, entrypoint="sh", remove=True, **options))

    async def stopped(self, labels: Mapping[str, str]) -> set[str]:
        """Ids of the managers with these labels that do not run, or will not come back when they end."""
        wanted = [VOLUME_LABEL, *(f"{key}={value}" for key, value in labels.items())]
        if self._ssh:
            filters = shlex.join(f"--filter=label={label}" for label in wanted)
            template = shlex.quote("{{.Id}} {{.State.Running}} {{.HostConfig.RestartPolicy.Name}}")
            lines = await self._shell(
                f"docker ps --all --quiet --no-trunc {filters} | xargs -r docker inspect --format {template}"
            )
            found = [line.split(" ") for line in lines.splitlines()]
            return {id_ for id_, *how in found if how != ["true", _POLICY]}
        listed = await self._call(
            lambda client: client.containers.list(all=True, filters={"label": wanted}, ignore_removed=True)
        )
        return {
            each.id
            for each in listed
            if not each.attrs["State"]["Running"] or each.attrs["HostConfig"]["RestartPolicy"]["Name"] != _POLICY
        }

    async def resume(self, labels: Mapping[str, str], containers: Iterable[str]) -> None:
        """Has managers at work that something stopped: those of the containers that have these labels."""
        for container in (await self.stopped(labels)).intersection(containers):
            await self._set_policy(container, _POLICY)
            if self._ssh:
                await self._docker("start", container)
            else:
                await self._call(partial(_start, container))

    async def quit(self, container: str, signal: str = "QUIT") -> None:
        """Sends SIGQUIT, after which a manager takes no job and ends with its last one; dockerd leaves it at that."""
        await self._set_policy(container, "no")
        try:
            await self.sh(container, tell(signal))
        except ClientError:
            # One that is paused, or just ended.
            if self._ssh:
                await self._docker("kill", f"--signal={signal}", container)
            else:
                await self._call(lambda client: client.api.kill(container, signal))

    async def _set_policy(self, container: str, name: str) -> None:
        if self._ssh:
            await self._docker("update", f"--restart={name}", container)
            return
        policy: Any = {"Name": name}  # Unknown to the stubs.
        await self._call(lambda client: client.api.update_container(container, restart_policy=policy))

    async def _docker(self, *words: str) -> str:
        return await self._shell(shlex.join(["docker", *words]))

    async def _shell(self, command: str) -> str:
        parts = urlsplit(self._url)
        async with self._calls:
            login = Login(parts.username, parts.port, self._options)
            answer = await run(parts.hostname or "", login, command)
        if answer.status:
            raise ClientError(f"{self._url}: {' '.join(answer.error.split())}")
        return answer.output

    async def _call(self, call: "Callable[[DockerClient], Any]") -> Any:
        # Here, because hosts that SSH reaches need none of it.
        from clients.readiness import engine_client  # noqa: PLC0415

        def called() -> Any:
            with engine_client(self._url, self._cert_path) as client:
                return call(client)

        return await in_thread(called)


def _start(container: str, client: "DockerClient") -> None:
    client.api.start(container)


async def hand_over(
    engine: Engine, labels: Mapping[str, str], successors: Mapping[str, Mapping[str, Any]], grace: int
) -> None:
    """Lets the managers that were before end, and gives each slot that they leave to their successor, by runner.

    `labels` are those of the host's managers; of a successor: its `id_`, how many `jobs` it may have, which the two
    never exceed together, and its `concurrent`. Returns when the successors are on their own; raises ClientError when
    others still have jobs after `grace` seconds. To be repeated wherever it broke off.
    """

    async def one(others: list[Manager], id_: str, jobs: int, concurrent: int) -> None:
        running = [each.id for each in others if each.may_have_jobs]
        # Stacks of the same name may share an engine.
        digest = await engine.sh(id_, TOKEN_DIGEST)
        old = {each for each in running if await engine.ask(each, TOKEN_DIGEST) == digest}
        for each in old:
            await engine.quit(each)
        end, granted = time.monotonic() + grace, -1
        while old:
            # Who does not tell may have all of them.
            busy = [int(await engine.ask(each, BUSY_WORKERS) or jobs) for each in old]
            free = max(jobs - sum(busy), 0)
            if free > granted:
                await engine.sh(id_, limited(free))
                granted = free
            if time.monotonic() > end:
                raise ClientError(f"old jobs of runner {others[0].runner} still run after {grace} s; repeat this later")
            await asyncio.sleep(_POLL_SECONDS)
            old &= {each.id for each in await engine.managers(labels) if each.may_have_jobs}
        await engine.sh(id_, released(concurrent))

    found = await engine.managers(labels)
    others = {
        runner: [each for each in found if each.runner == runner and each.id != successor["id_"]]
        for runner, successor in successors.items()
    }
    await asyncio.gather(*(one(others[runner], **successors[runner]) for runner in successors if others[runner]))


async def let_end(
    engine: Engine, labels: Mapping[str, str], containers: Collection[str], signal: str, go_on: Callable[[], None]
) -> None:
    """Ends the managers among these containers, all with these labels: by QUIT with their jobs, by TERM at once.

    Returns when none of them runs. `go_on` is called meanwhile; when it raises something, or something else goes wrong,
    they are at work again.
    """

    async def running() -> list[str]:
        return [each.id for each in await engine.managers(labels) if each.id in containers and each.may_have_jobs]

    try:
        for each in await running():
            await engine.quit(each, signal)
        while await running():
            go_on()
            await asyncio.sleep(_POLL_SECONDS)
    except BaseException:
        await engine.resume(labels, containers)
        raise
