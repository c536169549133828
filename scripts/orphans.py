"""`make orphans`: what carries a stack's marks and its state does not know; with REMOVE=<stack> it is removed.

Another state backend may know it, or the state was lost: docs/how-to/recover-a-state.md. A machine that the state does
not know cannot be asked for its jobs, since the state has its host key. So GitLab is asked: the stack's runners get no
new jobs for the time being, and those that they have are waited for.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from clients import ClientError
from clients.doubles import RECOVERY_PAGE
from clients.gitlab import GITLAB_COM, GitLab, instance_url
from clients.managers import Engine
from clients.marks import Marks
from clients.openstack import connect
from clients.orphans import (
    CONTAINER,
    SERVER,
    InCloud,
    Marked,
    Registration,
    in_gitlab,
    in_openstack,
    on_engine,
    unused_by_name,
)
from clients.state import Export, NoSuchStack, State, StateUnknown, backend, exported
from components.abort import ABORT_JOBS, aborts_jobs
from components.docker_connection import options_for
from scripts.console import Failure, failures_in_one_line, last_line
from scripts.stack import SANDBOX, Stack, backend_of, in_sandbox, require_file, sandbox_up
from scripts.toolchain import ROOT
from settings import DockerHost, ObjectStoreCache, OpenStackHost, SettingsError, effective, in_namespace, load
from settings.errors import NAMESPACE
from settings.layers import stack_file

_POLL_SECONDS = 2
# GitLab Runner takes 30 s at most (shutdown_timeout) to abort its jobs and to tell GitLab.
_ABORT_SECONDS = 60
_NO_STATE = json.dumps({"deployment": None})


class Unknown:
    """What carries the marks of a stack and is not in its state. Everything may raise ClientError."""

    def __init__(self, stack: str, config: Mapping[str, str], encrypted: Collection[str], state: State) -> None:
        """`config` and `encrypted` are as in settings.effective. Raises SettingsError too."""
        layers = effective(stack, config, encrypted=encrypted)
        providers = {each: in_namespace(each, layers.config) for each in ("gitlab", "openstack")}
        self.stack, self.settings = stack, load(stack, layers.config, layers)
        self._state = state
        self._marks = Marks(NAMESPACE, stack)
        host, cache = self.settings.host, self.settings.cache
        self._cloud, self._engine = None, host if isinstance(host, DockerHost) else None
        if isinstance(host, OpenStackHost) or isinstance(cache, ObjectStoreCache):
            self._cloud = connect(providers["openstack"])
        given = {cache.container} if isinstance(cache, ObjectStoreCache) and cache.container else set()
        self._containers = {self._marks.container, *given}
        self.gitlab: GitLab | None = None
        self.registrations: dict[str, list[Registration]] = {}
        """By the runners' names in the stack: all that GitLab has, whether the state knows them or not."""
        if any(runner.scope is not None for runner in self.settings.runners.values()):
            url = instance_url(providers["gitlab"], os.environ, GITLAB_COM if layers.owner is None else None)
            self.gitlab = GitLab(url, providers["gitlab"], os.environ)
            self.gitlab.check_token()
            if self.gitlab.can_list:
                shared = layers.owner is not None
                self.registrations = in_gitlab(self.gitlab, stack, self.settings, shared=shared)

    def things(self) -> list[Marked]:
        """All but runners, looked up anew, in the order in which it can be removed."""
        found: list[Marked] = []
        if self._cloud is not None:
            found += in_openstack(self._cloud, self._marks, self._containers)
        if self._engine is not None:
            found += asyncio.run(on_engine(self._connected(), self.stack))
        unknown = self._unknown({each.known_as for each in found})
        return [each for each in found if each.known_as in unknown]

    def runners(self) -> list[Registration]:
        """The runners."""
        found = {str(each.id): each for each in self.all_registrations}
        return [found[id_] for id_ in sorted(self._unknown(set(found)), key=int)]

    def perhaps(self) -> list[Marked]:
        """What has the stack's name, no mark, and no use."""
        if self._cloud is None:
            return []
        found = unused_by_name(self._cloud, self._marks, self.settings.runners)
        unknown = self._unknown({each.id for each in found})
        return [each for each in found if each.id in unknown]

    @property
    def all_registrations(self) -> list[Registration]:
        """Those of all runners, each once."""
        return list({each.id: each for found in self.registrations.values() for each in found}.values())

    def check_settled(self) -> None:
        """Whether nothing is being made at this moment, which the state will know."""
        if not self._state.is_settled():
            raise ClientError(
                f"an update of {self.stack} is under way, or one broke off: wait for its end, or run `pulumi refresh "
                f"--clear-pending-creates --stack {self.stack}`; nothing was removed"
            )

    def remove(self, thing: Marked) -> str | None:
        """Removes one of `things` and says so, or returns what uses it."""
        if isinstance(thing, InCloud):
            kept = thing.remove()
        else:
            engine = self._connected()
            asyncio.run(engine.remove(thing.id) if thing.kind == CONTAINER else engine.remove_volume(thing.id))
            kept = None
        if kept is None:
            print(f"removed {thing}", flush=True)
        return kept

    async def end_managers(self, ids: set[str], *, abort: bool) -> None:
        """Ends managers on the existing engine, after their jobs or with them, and returns when they have ended."""
        engine = self._connected()
        for id_ in ids:
            print(f"ending manager {id_}{'' if abort else ', after its jobs'}", flush=True)
            await engine.quit(id_, "TERM" if abort else "QUIT")
        seconds = _ABORT_SECONDS if abort else self.settings.stop_grace_seconds
        end = time.monotonic() + seconds
        while still := ids & {each.id for each in await engine.containers(self.stack, "") if each.may_have_jobs}:
            if time.monotonic() > end:
                raise _StillRuns(f"manager {', '.join(sorted(still))}", seconds, self.stack)
            await asyncio.sleep(_POLL_SECONDS)

    def _connected(self) -> Engine:
        """A client of the existing engine, for one event loop."""
        host = self._engine
        assert host is not None
        return Engine(host.url, options_for(host.ssh, host.host_key), host.cert_path)

    def _unknown(self, ids: set[str]) -> set[str]:
        return self._state.unknown(ids) if ids else set()


class _StillRuns(ClientError):
    def __init__(self, what: str, seconds: int, stack: str) -> None:
        super().__init__(
            f"{what} still has jobs after {seconds} s, and nothing was removed; repeat this later, or give the jobs up "
            f"with {ABORT_JOBS}={stack} in the environment"
        )


@dataclass(frozen=True)
class Removal:
    """The removal of what was found: its jobs first."""

    unknown: Unknown
    things: Sequence[Marked]
    runners: Sequence[Registration]

    def run(self) -> list[str]:
        """Removes all of it; a clause for each that is kept."""
        kept: list[str] = []
        agreed = {each.id for each in self.things}

        def remove(is_wanted: Callable[[Marked], bool]) -> None:
            for each in filter(is_wanted, self.unknown.things()):
                if (why := self.unknown.remove(each)) is not None:
                    kept.append(f"{each}: {why}")

        self.unknown.check_settled()
        with self._without_jobs():
            self.unknown.check_settled()
            if any(each.kind == SERVER for each in self.things):
                remove(lambda each: each.kind == SERVER and each.id in agreed and not each.is_worker)
                # Managers make workers until they are gone.
                remove(lambda each: each.is_worker)
            remove(lambda each: each.id in agreed)
            for runner in self._runners_to_remove:
                assert self.unknown.gitlab is not None
                self.unknown.gitlab.delete_runner(runner.id)
                print(f"removed {runner}", flush=True)
        if self.unknown.settings.protect:
            kept += [f"{each}: the stack has protect: true" for each in self.runners if each.is_marked]
        return kept

    @property
    def _runners_to_remove(self) -> list[Registration]:
        return [each for each in self.runners if each.is_marked and not self.unknown.settings.protect]

    @contextmanager
    def _without_jobs(self) -> Iterator[None]:
        """Nothing of it runs jobs, as long as this lasts, unless jobs are to be aborted."""
        stack, gitlab = self.unknown.stack, self.unknown.gitlab
        abort = aborts_jobs(stack, os.environ)
        busy = [each for each in self.things if each.may_have_jobs]
        servers = [each for each in busy if each.kind == SERVER]
        going = self._runners_to_remove
        if abort:
            print(f"{ABORT_JOBS}={stack}: jobs that run are aborted, not waited for.", flush=True)
            watched = going
        elif servers:
            self._check_jobs_are_known(servers[0])
            watched = self.unknown.all_registrations
        else:
            watched = going
        with ExitStack() as afterwards:
            for each in watched:
                assert gitlab is not None
                if not gitlab.is_paused(each.id):
                    if each not in going:
                        # Before the call, whose answer may get lost.
                        afterwards.callback(_resume, gitlab, each)
                    print(f"pausing {each}{'' if each in going else ' for the time being'}", flush=True)
                    gitlab.set_paused(each.id, True)
            if managers := {each.id for each in busy if each.kind != SERVER}:
                asyncio.run(self.unknown.end_managers(managers, abort=abort))
            if not abort and gitlab is not None:
                self._wait_for_jobs(gitlab, watched)
            yield

    def _check_jobs_are_known(self, server: Marked) -> None:
        """Whether GitLab can tell when the jobs on a server have ended."""
        unknown = self.unknown
        for name, runner in unknown.settings.runners.items():
            why = None
            if runner.scope is None:
                why = f"runner {name} has a token that was given"
            elif unknown.gitlab is not None and not unknown.gitlab.can_list:
                why = "the GitLab token lacks read_api"
            elif not unknown.registrations[name]:
                why = f"GitLab has no runner with the description of {name}"
            if why is not None:
                raise ClientError(
                    f"{server} may run jobs, and whether they have ended cannot be known: {why}. Nothing was removed; "
                    f"pause the runner in GitLab, wait for its jobs, and repeat this with {ABORT_JOBS}={unknown.stack} "
                    "in the environment"
                )

    def _wait_for_jobs(self, gitlab: GitLab, runners: Sequence[Registration]) -> None:
        grace = self.unknown.settings.stop_grace_seconds
        end, told = time.monotonic() + grace, set()
        while busy := [each for each in runners if gitlab.has_running_jobs(each.id)]:
            if time.monotonic() > end:
                raise _StillRuns(str(busy[0]), grace, self.unknown.stack)
            for each in busy:
                if each.id not in told:
                    print(f"waiting for the jobs of {each}", flush=True)
                    told.add(each.id)
            time.sleep(_POLL_SECONDS)


def _resume(gitlab: GitLab, runner: Registration) -> None:
    gitlab.set_paused(runner.id, False)
    print(f"{runner} takes jobs again", flush=True)


def orphans(stack: Stack, *, remove: bool) -> int:
    """Lists what the state of a stack does not know, or removes it. Exit status: 0 when nothing of it is there."""
    with _environment(stack.environment):
        try:
            return _orphans(stack, remove=remove)
        except (ClientError, SettingsError) as error:
            raise Failure(str(error)) from None


def _orphans(stack: Stack, *, remove: bool) -> int:
    name, export = stack.name.rpartition("/")[2], exported(stack.name)
    try:
        export()
        is_there = True
    except NoSuchStack:
        is_there = False
    except StateUnknown as error:
        raise ClientError(f"{error}; without it nothing is told, and nothing removed") from error
    state = State(export if is_there else partial(_exported_or_none, export))
    unknown = Unknown(name, *_configuration(stack, is_there=is_there), state)
    things, runners = unknown.things(), unknown.runners()
    marked = [each for each in runners if each.is_marked]
    where = backend() or "this state backend"
    if not things and not marked:
        print(f"The state of {name} in {where} knows all that carries the stack's marks.")
        _tell_doubtful(unknown, runners)
        return 0
    if not remove:
        print(f"The state of {name} in {where} {'does' if is_there else 'does not exist, so it does'} not know:")
        for thing in things:
            print(f"  {thing}: {thing.use}")
        for runner in marked:
            print(f"  {runner}: {'in use, or was' if runner.contacted else 'never used'}")
        _tell_doubtful(unknown, runners)
        print(f"To get a state back: {RECOVERY_PAGE}. To remove these: make orphans STACK={name} REMOVE={name}")
        return 1
    kept = Removal(unknown, things, marked).run()
    _tell_doubtful(unknown, runners)
    if kept:
        raise Failure(f"not removed: {'; '.join(kept)}")
    return 0


def _tell_doubtful(unknown: Unknown, runners: Sequence[Registration]) -> None:
    """Says what may be the stack's and may be another's, and is left."""
    doubtful = [f"{each}: {each.use}" for each in unknown.perhaps()]
    doubtful += [f"{each}: its description does not name the stack" for each in runners if not each.is_marked]
    if unknown.gitlab is not None and not unknown.gitlab.can_list:
        print("Runners are not looked for: the GitLab token lacks read_api.")
    if doubtful:
        print("Perhaps the stack's, and never removed by this:")
        for line in doubtful:
            print(f"  {line}")


def _exported_or_none(export: Export) -> str:
    try:
        return export()
    except NoSuchStack:
        return _NO_STATE


def _configuration(stack: Stack, *, is_there: bool) -> tuple[dict[str, str], set[str]]:
    """The stack's own configuration, decrypted, and the keys of its secrets.

    A stack that its backend does not have is not made there for it.
    """
    name = stack.name.rpartition("/")[2]
    file = stack.config_file or stack_file(name)
    command = ["config", "--show-secrets", "--json", f"--config-file={file}"]
    if is_there:
        text = _pulumi(ROOT, {}, *command, f"--stack={stack.name}")
    else:
        with TemporaryDirectory() as folder:
            elsewhere = {"PULUMI_BACKEND_URL": Path(folder).as_uri()}
            Path(folder, "Pulumi.yaml").write_text(f"name: {NAMESPACE}\nruntime: python\n")
            # Its own passphrase is of no use here, and may be none.
            _pulumi(folder, {**elsewhere, "PULUMI_CONFIG_PASSPHRASE": name}, "stack", "init", "--no-select", name)
            text = _pulumi(folder, elsewhere, *command, f"--stack={name}")
    found = json.loads(text)
    secrets = {key for key, value in found.items() if value["secret"]}
    return {key: value["value"] for key, value in found.items()}, secrets


def _pulumi(folder: str | Path, environment: Mapping[str, str], *arguments: str) -> str:
    done = subprocess.run(
        ["pulumi", *arguments, "--non-interactive"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClientError(f"the stack's configuration cannot be read: {last_line(done.stderr)}")
    return done.stdout


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Pulumi, the clouds' clients and ssh find the stack's environment in the process."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(environment: Mapping[str, str]) -> int:
    """Takes the stack's name from STACK, and from REMOVE, where it is to be removed."""
    name = environment.get("STACK") or SANDBOX
    remove = environment.get("REMOVE")
    if remove and remove != name:
        raise Failure(f"REMOVE={remove}: must repeat the name of the stack, {name}; nothing was removed")
    require_file(name)
    if in_sandbox(name):
        if not (ROOT / ".sandbox").exists():
            print("The sandbox is down.")
            return 0
        sandbox_up()
    return orphans(backend_of(name), remove=bool(remove))


if __name__ == "__main__":
    # So that runners which get no jobs for the time being have them again.
    for ended_by in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ended_by, lambda number, _: sys.exit(128 + number))
    with failures_in_one_line():
        sys.exit(main(os.environ))
