"""What a VM leaves on the engine: VMs share one, so what would be on a VM's own disk has to be kept account of."""

import asyncio
import io
import json
import tarfile
from http import HTTPStatus
from typing import Any

import aiohttp

from sandbox.store import Store

STOP_GRACE = 5  # seconds between a container's stop signal and its end when its VM is stopped
SYSTEM_ID_FILE = "/etc/gitlab-runner/.runner_system_id"
SYSTEM_ID_LABEL = "com.gitlab.gitlab-runner.runner.system_id"  # on all that a runner manager creates for its jobs
_KIND = "vm_docker"


class Disk:
    """Containers, volumes and networks of one VM: those made through its socket, and those its runners made for jobs.

    What belongs to the VM is kept in the store, so it outlives this process.
    """

    def __init__(self, vm: str, engine_socket: str, store: Store) -> None:
        self._vm = vm
        self._engine_socket = engine_socket
        self._store = store
        self._records: dict[str, list[str]] = store.get(_KIND, vm) or {
            "containers": [],
            "volumes": [],
            "networks": [],
            "system_ids": [],
        }

    def created(self, kind: str, key: str) -> None:
        """Counts what was just created as this VM's."""
        if key not in self._records[kind]:
            self._records[kind].append(key)
            self._store.put(_KIND, self._vm, self._records)

    async def removing(self, kind: str, key: str) -> None:
        """Notes whose job containers are this VM's before the runner's container, which knows, is gone."""
        if kind == "containers":
            async with self._engine() as engine:
                await self._learn_system_id(engine, key)

    async def power_off(self) -> None:
        """Stops the VM's containers as a guest's shutdown does: stop signal, a short grace, then the end."""
        async with self._engine() as engine:
            stops = (
                engine.post(f"/containers/{container}/stop", params={"t": STOP_GRACE}, timeout=_LONG)
                for container in await self._containers(engine)
            )
            for answer in await asyncio.gather(*stops):
                await _expect(answer, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED, HTTPStatus.NOT_FOUND)

    async def power_on(self) -> None:
        """Starts the containers that Docker starts with a machine (restart policies always and unless-stopped)."""
        async with self._engine() as engine:
            for container in self._records["containers"]:
                details = await _inspect(engine, container)
                if details and details["HostConfig"]["RestartPolicy"]["Name"] in {"always", "unless-stopped"}:
                    answer = await engine.post(f"/containers/{container}/start")
                    await _expect(answer, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)

    async def wipe(self) -> None:
        """Removes all of it, running or not."""
        async with self._engine() as engine:
            volumes = set(self._records["volumes"])
            for container in await self._containers(engine):
                details = await _inspect(engine, container)
                mounts = details["Mounts"] if details else []
                volumes |= {mount["Name"] for mount in mounts if mount["Type"] == "volume"}
                answer = await engine.delete(f"/containers/{container}", params={"force": "true", "v": "true"})
                await _expect(answer, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND)
            volumes |= await self._labelled(engine, "volumes", "Name")
            for volume in volumes:
                answer = await engine.delete(f"/volumes/{volume}", params={"force": "true"})
                # In use: another VM has one of the same name.
                await _expect(answer, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
            for network in {*self._records["networks"], *await self._labelled(engine, "networks", "Id")}:
                answer = await engine.delete(f"/networks/{network}")
                await _expect(answer, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND)
        for record in self._records.values():
            record.clear()
        self._store.delete(_KIND, self._vm)

    def _engine(self) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(self._engine_socket)
        return aiohttp.ClientSession("http://docker", connector=connector)

    async def _containers(self, engine: aiohttp.ClientSession) -> list[str]:
        for container in self._records["containers"]:
            await self._learn_system_id(engine, container)
        # The runners first, so that they start no more jobs.
        return list(dict.fromkeys([*self._records["containers"], *await self._labelled(engine, "containers", "Id")]))

    async def _learn_system_id(self, engine: aiohttp.ClientSession, container: str) -> None:
        async with engine.get(f"/containers/{container}/archive", params={"path": SYSTEM_ID_FILE}) as answer:
            if answer.status != HTTPStatus.OK:
                return  # not a runner's container, or it is gone
            with tarfile.open(fileobj=io.BytesIO(await answer.read())) as archive:
                file = archive.extractfile(archive.getmembers()[0])
                system_id = file.read().decode().strip() if file else ""
        if system_id:
            self.created("system_ids", system_id)

    async def _labelled(self, engine: aiohttp.ClientSession, kind: str, key: str) -> set[str]:
        found: set[str] = set()
        for system_id in self._records["system_ids"]:
            filters = json.dumps({"label": [f"{SYSTEM_ID_LABEL}={system_id}"]})
            path = f"/{kind}/json" if kind == "containers" else f"/{kind}"
            async with engine.get(path, params={"all": "true", "filters": filters}) as answer:
                listed = await answer.json()
            found |= {item[key] for item in (listed["Volumes"] or [] if kind == "volumes" else listed)}
        return found


_LONG = aiohttp.ClientTimeout(total=STOP_GRACE + 60)


async def _inspect(engine: aiohttp.ClientSession, container: str) -> dict[str, Any] | None:
    async with engine.get(f"/containers/{container}/json") as answer:
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        details: dict[str, Any] = await answer.json()
        return details


async def _expect(answer: aiohttp.ClientResponse, *statuses: HTTPStatus) -> None:
    async with answer:
        if answer.status not in statuses:
            raise RuntimeError(f"Docker Engine: {answer.method} {answer.url.path}: {await answer.text()}")
