"""A VM's Docker socket: passes everything on to the engine, byte for byte, and lets faults happen on the way.

HTTP/1.1 is framed by hand (RFC 9112) because bytes must pass unchanged, in both directions at once, and because many
Docker calls turn the connection into a raw stream (attach, exec, build sessions: "Hijacking" in the Engine API's
documentation), which clients and servers of web frameworks hide.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from sandbox.faults import Decision, Faults, error_body

PIECE = 256 * 1024  # bytes
HEAD_LIMIT = 1024 * 1024  # bytes; an X-Registry-Config header alone can be many kilobytes

_CREATE = re.compile(r"^(?:/v[\d.]+)?/(containers|volumes|networks)/create$")
_ONE = re.compile(r"^(?:/v[\d.]+)?/(containers|volumes|networks)/([^/]+)$")
_STREAM = re.compile(r"^(?:/v[\d.]+)?/(?:containers/[^/]+/attach|exec/[^/]+/start)$")


class Watcher(Protocol):
    """Who wants to know what is created through a proxy. kind: containers, volumes or networks."""

    def created(self, kind: str, key: str) -> None:
        """The engine created this (key: id or name); its client does not know yet."""

    async def removing(self, kind: str, key: str) -> None:
        """A client asks the engine to remove this; it is still there."""


class DockerProxy:
    """One Unix socket in front of the engine."""

    def __init__(self, socket: Path, engine_socket: str, faults: Faults, watcher: Watcher) -> None:
        self._socket = socket
        self._engine_socket = engine_socket
        self._faults = faults
        self._watcher = watcher
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to listen; a socket left by an earlier process is replaced."""
        self._server = await asyncio.start_unix_server(self._accept, self._socket, limit=HEAD_LIMIT)

    async def close(self) -> None:
        """Stops listening and hangs up on every client."""
        if self._server is not None:
            self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._socket.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        engine_writer: asyncio.StreamWriter | None = None
        # Either side may go away at any time, or the engine not be there: the other one sees its connection end.
        with suppress(OSError, asyncio.IncompleteReadError):
            try:
                engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine_socket, limit=HEAD_LIMIT)
                exchange = _Exchange(reader, writer, engine_reader, engine_writer, self._faults, self._watcher)
                request = await _read_head(reader)
                while request is not None:
                    request = await exchange.serve(request)
            finally:
                for side in (writer, engine_writer):
                    if side is not None:
                        side.close()


@dataclass(frozen=True)
class _Head:
    """The head of a request or a response as it came over the wire."""

    raw: bytes
    first_line: tuple[str, str, str]
    headers: dict[str, str]

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def length(self) -> int | None:
        return int(self.headers["content-length"]) if "content-length" in self.headers else None


@dataclass(frozen=True)
class _Exchange:
    """Requests of one client, one after another, over one connection to the engine."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    engine_reader: asyncio.StreamReader
    engine_writer: asyncio.StreamWriter
    faults: Faults
    watcher: Watcher

    async def serve(self, request: _Head) -> _Head | None:
        """Handles one request; the head of the next one, or None when the connection is to be closed."""
        method, target, _ = request.first_line
        path = target.partition("?")[0]
        decision = await self.faults.before("docker", method, path)
        if decision.action == "drop":
            return None
        if decision.action == "status":
            return await self._refuse(request, decision)
        if method == "DELETE" and (one := _ONE.match(path)):
            await self.watcher.removing(*one.groups())
        return await self._forward(request, path, decision)

    async def _refuse(self, request: _Head, decision: Decision) -> _Head | None:
        async for _ in _request_body(self.reader, request):
            pass
        body = json.dumps(error_body("docker", decision.status)).encode()
        self.writer.write(
            f"HTTP/1.1 {decision.status} {HTTPStatus(decision.status).phrase}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await self.writer.drain()
        self.faults.after(decision, decision.status)
        return await _read_head(self.reader)

    async def _forward(self, request: _Head, path: str, decision: Decision) -> _Head | None:
        self.engine_writer.write(request.raw)
        may_become_stream = "upgrade" in request.headers or _STREAM.match(path) is not None
        upload = asyncio.ensure_future(self._upload(request))
        # Reading on is how a client that went away is noticed, but what follows a request for a stream is the stream.
        ahead = None if may_become_stream else asyncio.ensure_future(self._read_ahead(upload))
        try:
            response = await self._response_head(decision)
            if response is None:
                return None
            if _is_stream(request, response) and decision.action != "lose":
                self.writer.write(response.raw)
                await upload
                await self._splice()
                return None
            await self._answer(request, response, path, decision)
            if decision.action == "lose" or "close" in response.headers.get("connection", "").lower():
                return None
            await upload
            return await (ahead or _read_head(self.reader))
        finally:
            upload.cancel()
            if ahead:
                ahead.cancel()
            await asyncio.gather(upload, *([ahead] if ahead else []), return_exceptions=True)

    async def _upload(self, request: _Head) -> None:
        try:
            async for wire, _ in _request_body(self.reader, request):
                self.engine_writer.write(wire)
                await self.engine_writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.engine_writer.transport.abort()  # it would wait for the rest
            raise

    async def _read_ahead(self, upload: Awaitable[None]) -> _Head | None:
        await upload
        request = await _read_head(self.reader)
        if request is None and self.engine_writer.can_write_eof() and not self.engine_writer.is_closing():
            self.engine_writer.write_eof()  # the engine gives up what nobody waits for
        return request

    async def _response_head(self, decision: Decision) -> _Head | None:
        while (response := await _read_head(self.engine_reader)) is not None:
            status = int(response.first_line[1])
            if status >= HTTPStatus.OK or status == HTTPStatus.SWITCHING_PROTOCOLS:
                self.faults.after(decision, status)
                return response
            self.writer.write(response.raw)  # 100 Continue
        return None

    async def _answer(self, request: _Head, response: _Head, path: str, decision: Decision) -> None:
        create = _CREATE.match(path) if response.first_line[1] == "201" else None
        body = _response_body(self.engine_reader, request, response)
        if create:
            pieces = [piece async for piece in body]
            created: dict[str, Any] = json.loads(b"".join(data for _, data in pieces))
            self.watcher.created(create[1], created.get("Id") or created["Name"])
            body = _again(pieces)
        if decision.action != "lose":
            self.writer.write(response.raw)
        async for wire, _ in body:
            if decision.action != "lose":
                self.writer.write(wire)
                await self.writer.drain()

    async def _splice(self) -> None:
        """Passes raw bytes until the engine closes; a client that has said all may still listen."""
        outward = asyncio.ensure_future(_pump(self.reader, self.engine_writer))
        try:
            await _pump(self.engine_reader, self.writer)
        finally:
            outward.cancel()
            await asyncio.gather(outward, return_exceptions=True)


async def _read_head(reader: asyncio.StreamReader) -> _Head | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    lines = raw.decode("latin-1").split("\r\n")
    first, second, *rest = lines[0].split(" ", 2)
    headers = {}
    for line in lines[1:-2]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return _Head(raw, (first, second, "".join(rest)), headers)


def _is_stream(request: _Head, response: _Head) -> bool:
    """Whether raw bytes follow in both directions: announced by 101, or for old clients with no framing at all."""
    status = int(response.first_line[1])
    path = request.first_line[1].partition("?")[0]
    unframed = not response.chunked and response.length is None
    return status == HTTPStatus.SWITCHING_PROTOCOLS or (
        status == HTTPStatus.OK and unframed and _STREAM.match(path) is not None
    )


# Bodies come in pieces, each as it was on the wire and without its framing.
Pieces = AsyncIterator[tuple[bytes, bytes]]


async def _request_body(reader: asyncio.StreamReader, head: _Head) -> Pieces:
    pieces = _chunks(reader) if head.chunked else _exactly(reader, head.length or 0)
    async for piece in pieces:
        yield piece


async def _response_body(reader: asyncio.StreamReader, request: _Head, head: _Head) -> Pieces:
    bodiless = (str(HTTPStatus.NO_CONTENT.value), str(HTTPStatus.NOT_MODIFIED.value))
    if request.first_line[0] == "HEAD" or head.first_line[1] in bodiless:
        return
    if head.chunked:
        pieces = _chunks(reader)
    elif head.length is not None:
        pieces = _exactly(reader, head.length)
    else:
        pieces = _until_closed(reader)
    async for piece in pieces:
        yield piece


async def _exactly(reader: asyncio.StreamReader, length: int) -> Pieces:
    while length:
        data = await reader.read(min(length, PIECE))
        if not data:
            raise asyncio.IncompleteReadError(data, length)
        length -= len(data)
        yield data, data


async def _again(pieces: list[tuple[bytes, bytes]]) -> Pieces:
    for piece in pieces:
        yield piece


async def _until_closed(reader: asyncio.StreamReader) -> Pieces:
    while data := await reader.read(PIECE):
        yield data, data


async def _chunks(reader: asyncio.StreamReader) -> Pieces:
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if size == 0:
            break
        yield line, b""
        async for piece in _exactly(reader, size):
            yield piece
        yield await reader.readexactly(2), b""
    end = line
    while line != b"\r\n":  # trailers
        line = await reader.readuntil(b"\r\n")
        end += line
    yield end, b""


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()
