"""What a stack has on a Docker Engine, and the handover from managers that go to their successors."""

import asyncio
import io
import shlex
import tarfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from clients import ClientError
from clients.ssh import Login, run
from clients.threads import in_thread
from renderers.drain import SERVER_LABEL, STACK_LABEL, tell
from renderers.handover import BUSY_WORKERS, TOKEN_DIGEST, limited, released
from renderers.metrics import RUNNER_LABEL

if TYPE_CHECKING:
    from docker import DockerClient

Signal = Literal["QUIT", "TERM"]
"""What ends a manager: SIGQUIT when its jobs have ended, SIGTERM at once (GitLab Runner docs, "Signals")."""
VOLUME_LABEL = "gitlab-runners.volume"
"""Label of runner managers: their volume's name."""
_POLL_SECONDS = 1
# Restart policy of every manager that is meant to be at work (components.runner_manager).
_POLICY = "always"
# sshd lets one connection have ten sessions (sshd_config(5), MaxSessions), and others use it as well.
_CALLS_AT_ONCE = 4


@dataclass(frozen=True)
class Container:
    """A container of a stack: its id, its state in Docker's words, its runner's name in the stack, its name.

    `volume` is a manager's, empty for what is none; `volumes` are all that it uses. `server` is the machine's id in its
    label.
    """

    id: str
    state: str
    runner: str = ""
    volume: str = ""
    server: str = ""
    name: str = ""
    volumes: frozenset[str] = frozenset()

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

    def __str__(self) -> str:
        return f"Docker at {self._url}"

    @classmethod
    def of_machine(cls, address: str, login: Login) -> "Engine":
        """That of a virtual machine."""
        host = f"[{address}]" if ":" in address else address
        return cls(f"ssh://{login.user}@{host}:{login.port}", login.options, None)

    async def managers(self, labels: Mapping[str, str]) -> list[Container]:
        """The managers with these labels, in whatever state."""
        found = await self._containers([VOLUME_LABEL, *(f"{key}={value}" for key, value in labels.items())])
        # Those on a machine of a stack of this name are others, where that machine is this stack's existing engine.
        return [each for each in found if each.server == labels.get(SERVER_LABEL, "")]

    async def containers(self, stack: str, server: str) -> list[Container]:
        """All that the stack has on the engine; `server` is the machine's id, empty for an engine that exists."""
        return [each for each in await self._containers([f"{STACK_LABEL}={stack}"]) if each.server == server]

    async def volumes(self, stack: str, server: str, *, unused: bool) -> set[str]:
        """Names of the stack's volumes, or of those that no container uses."""
        filters: dict[str, str | list[str] | bool] = {"label": f"{STACK_LABEL}={stack}"}
        if unused:
            filters["dangling"] = "true"
        if self._ssh:
            template = f'{{{{.Name}}}} {{{{.Label "{SERVER_LABEL}"}}}}'
            words = (f"--filter={key}={value}" for key, value in filters.items())
            lines = (await self._docker("volume", "ls", f"--format={template}", *words)).splitlines()
            found = [(name, label) for name, _, label in (line.partition(" ") for line in lines)]
        else:
            listed = await self._call(lambda client: client.volumes.list(filters=filters))
            found = [(each.name, (each.attrs["Labels"] or {}).get(SERVER_LABEL, "")) for each in listed]
        return {name for name, label in found if label == server}

    async def write(self, container: str, file: str, content: str, modified: datetime) -> None:
        """Writes a file, root's alone and of that time, into a container, which need not run."""
        folder, _, name = file.rpartition("/")
        data = content.encode()
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = len(data), 0o600, modified.timestamp()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(entry, io.BytesIO(data))
        if self._ssh:
            await self._docker("cp", "-", f"{container}:{folder}", stdin=archive.getvalue())
        else:
            await self._call(lambda client: client.api.put_archive(container, folder, archive.getvalue()))

    async def remove(self, container: str, *, kill: bool = False) -> None:
        """Removes a container with its volumes that have no name; one that runs only where `kill` says so."""
        if self._ssh:
            await self._docker("rm", "--volumes", *(["--force"] if kill else []), container)
        else:
            await self._call(lambda client: client.api.remove_container(container, v=True, force=kill))

    async def remove_volume(self, name: str) -> None:
        """Removes a volume that no container uses."""
        if self._ssh:
            await self._docker("volume", "rm", name)
        else:
            await self._call(lambda client: client.api.remove_volume(name))

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

    async def quit(self, container: str, signal: Signal = "QUIT") -> None:
        """Sends SIGQUIT, after which a manager takes no job and ends with its last one; dockerd leaves it at that.

        SIGTERM aborts its jobs.
        """
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

    async def _containers(self, labels: Sequence[str]) -> list[Container]:
        found, told = [], (RUNNER_LABEL, VOLUME_LABEL, SERVER_LABEL)
        if not self._ssh:
            listed = await self._call(lambda client: client.api.containers(all=True, filters={"label": labels}))
            for each in listed:
                runner, volume, server = (each["Labels"].get(label, "") for label in told)
                volumes = frozenset(mount["Name"] for mount in each["Mounts"] if "Name" in mount)
                name = each["Names"][0].removeprefix("/")
                found.append(Container(each["Id"], each["State"], runner, volume, server, name, volumes))
            return found
        fields = [".ID", ".State", *(f'.Label "{label}"' for label in told), ".Names", ".Mounts"]
        template = "\t".join(f"{{{{{field}}}}}" for field in fields)
        filters = [f"--filter=label={label}" for label in labels]
        output = await self._docker("ps", "--all", "--no-trunc", f"--format={template}", *filters)
        for line in output.splitlines():
            # The last line is without its last field where that is empty.
            id_, state, runner, volume, server, name, mounts = f"{line}\t".split("\t")[: len(fields)]
            # What is no volume is a path.
            volumes = frozenset(each for each in mounts.split(",") if each and not each.startswith("/"))
            found.append(Container(id_, state, runner, volume, server, name, volumes))
        return found

    async def _docker(self, *words: str, stdin: bytes | None = None) -> str:
        return await self._shell(shlex.join(["docker", *words]), stdin)

    async def _shell(self, command: str, stdin: bytes | None = None) -> str:
        parts = urlsplit(self._url)
        async with self._calls:
            login = Login(parts.username, parts.port, self._options)
            answer = await run(parts.hostname or "", login, command, stdin)
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

    async def one(others: list[Container], id_: str, jobs: int, concurrent: int) -> None:
        running = [each.id for each in others if each.may_have_jobs]
        # A runner that got another registration has others' jobs to end.
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
    engine: Engine, labels: Mapping[str, str], containers: Collection[str], signal: Signal, go_on: Callable[[], None]
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
