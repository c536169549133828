"""The sandbox's APIs in the test's own process, on free ports, with machines that only note what they are told."""

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

import openstack
import requests
from openstack.connection import Connection

from sandbox import gitlab
from sandbox import openstack as cloud
from sandbox.app import LOOPBACK, Place, Sandbox
from sandbox.faults import Faults
from sandbox.store import Store
from sandbox.vm import VirtualMachine

TIMEOUT_S = 10
# A stack file's host that the clouds can make.
HOST = {
    "kind": "openstack",
    "flavor": "m1.small",
    "image": "debian-13",
    "network": "runners",
    "keyPair": {"publicKey": "ssh-ed25519 AAAA"},
    "sshFrom": ["192.0.2.0/24"],
}

T = TypeVar("T")


class NotedMachines:
    """Machines without an SSH server or Docker."""

    def __init__(self) -> None:
        self.running: dict[str, VirtualMachine] = {}
        self.wiped: list[str] = []
        self.refuse_to_boot = ""

    async def boot(self, vm: VirtualMachine) -> None:
        if self.refuse_to_boot:
            raise OSError(self.refuse_to_boot)
        self.running[vm.id] = vm

    async def shutdown(self, id: str) -> None:
        self.running.pop(id, None)

    async def wipe(self, id: str) -> None:
        self.running.pop(id, None)
        self.wiped.append(id)

    async def set_addresses(self, id: str, addresses: list[str]) -> None:
        if id in self.running:
            self.running[id].addresses = addresses

    def console(self, id: str) -> str:
        return f"first line\n{id} login:\n"


class InProcess:
    """One sandbox, served by a thread; a context manager. It listens at `gateway` too."""

    def __init__(self, store_file: Path, machines: NotedMachines | None = None, gateway: str = LOOPBACK) -> None:
        self.machines = machines or NotedMachines()
        self.store = Store(store_file)
        self.credentials = cloud.seed(self.store)
        self.tokens = gitlab.seed(self.store)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._sandbox = Sandbox(self.store, self.machines, Faults(), Place(gateway=gateway))

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._sandbox.start())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._sandbox.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.store.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    @property
    def auth_url(self) -> str:
        return f"{self._sandbox.openstack_url}/identity"

    @property
    def gitlab_url(self) -> str:
        return self._sandbox.gitlab_url

    @property
    def gitlab_external_url(self) -> str:
        return self._sandbox.gitlab_external_url

    def auth(self, **changes: str) -> dict[str, str]:
        """What openstacksdk needs to log in by password."""
        return {
            "auth_url": self.auth_url,
            "username": self.credentials.username,
            "password": self.credentials.password,
            "project_name": self.credentials.project,
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        } | changes

    def connect(self, **changes: str) -> Connection:
        return openstack.connect(load_yaml_config=False, load_envvars=False, auth=self.auth(**changes))

    def control(self, method: str, path: str, json: Any = None) -> Any:
        """A call of the control API; its answer."""
        answer = requests.request(method, f"{self.gitlab_url}/sandbox/{path}", json=json, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def requests(self, **fields: Any) -> list[dict[str, Any]]:
        """The log's entries that have these values."""
        entries: list[dict[str, Any]] = self.control("GET", "requests")
        return [entry for entry in entries if all(entry[name] == value for name, value in fields.items())]
