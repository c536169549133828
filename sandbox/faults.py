"""Faults on request: every API call to the sandbox is numbered and logged, and any of them can be made to fail.

Control API (JSON, answered to the loopback interface only):

- `GET /sandbox/requests`: the log, oldest first: `n`, `api`, `method`, `path`, `status`, `background`, `fault`.
  `status` is null while the request is under way and when it was dropped; with a lost answer it is the lost one.
- `DELETE /sandbox/requests`: empties the log and starts numbering at 1 again (faults stay as they are).
- `POST /sandbox/faults`: adds a fault, see `Fault`; `GET` lists them; `DELETE` removes all.

Background requests (a runner's polling, and this control API) have no number and are hit only by faults that ask
for them (`background`: true).
"""

import asyncio
import re
from collections import deque
from http.client import responses
from typing import Any, Literal

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

API = Literal["openstack", "gitlab", "docker"]

# What a runner sends on its own, at times nobody can foresee: counting it would make numbers mean nothing.
_BACKGROUND = re.compile(r"^/sandbox/|^/api/v4/(runners/verify$|jobs/request$|jobs/\d+(/trace)?$)")

# Enough for the longest test run, little enough to be kept in memory.
_LOG_LENGTH = 50_000


class Fault(BaseModel):
    """What goes wrong, and at which request.

    `n` is counted from the moment the fault is added, over the requests that match the filters (`method` and `path`
    are regular expressions, found anywhere in the value, case ignored in the method). `times` consecutive matching
    requests are hit from the n-th on.

    - `status`: not handled; answered with `status` and an error body.
    - `delay`: handled after `seconds`.
    - `drop`: not handled; the connection is closed.
    - `lose`: handled, state changes, but the connection is closed without the answer.
    """

    model_config = ConfigDict(extra="forbid")

    n: int = Field(default=1, ge=1)
    do: Literal["status", "delay", "drop", "lose"]
    status: int = Field(default=500, ge=400, le=599)
    seconds: float = Field(default=1.0, ge=0)
    times: int = Field(default=1, ge=1)
    api: API | None = None
    method: str = ""
    path: str = ""
    background: bool = False
    _seen: int = PrivateAttr(default=0)

    @field_validator("method", "path")
    @classmethod
    def _is_regular_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value

    def hits(self, api: str, method: str, path: str, background: bool) -> bool:
        """Count the request if the filters match it; True when it is one of those to be hit."""
        if (
            (background and not self.background)
            or (self.api is not None and self.api != api)
            or not re.search(self.method, method, re.IGNORECASE)
            or not re.search(self.path, path)
        ):
            return False
        self._seen += 1
        return self.n <= self._seen < self.n + self.times


class Decision:
    """What is to happen to one request; handed from `Faults.before` to `Faults.after`."""

    def __init__(self, entry: dict[str, Any], fault: Fault | None) -> None:
        self.entry = entry
        # A delay has been served when the decision is made.
        self.action: Literal["pass", "status", "drop", "lose"] = (
            "pass" if fault is None or fault.do == "delay" else fault.do
        )
        self.status = fault.status if fault else 200


class Faults:
    """The request log and the faults of one sandbox, over all of its APIs."""

    def __init__(self) -> None:
        self._log: deque[dict[str, Any]] = deque(maxlen=_LOG_LENGTH)
        self._faults: list[Fault] = []
        self._number = 0

    def add(self, fault: Fault) -> None:
        """Arm a fault."""
        self._faults.append(fault)

    def clear(self) -> None:
        """Disarm all faults."""
        self._faults.clear()

    def requests(self) -> list[dict[str, Any]]:
        """The log, oldest first."""
        return list(self._log)

    def reset_requests(self) -> None:
        """Forget the log; the next request has the number 1."""
        self._log.clear()
        self._number = 0

    async def before(self, api: API, method: str, path: str, background: bool = False) -> Decision:
        """Log a request that arrived and decide what happens to it; a delay is waited for here.

        The caller acts on `Decision.action`: `pass` (handle), `status` (answer `Decision.status` with
        `error_body`), `drop` (close) or `lose` (handle, then close), and calls `after` in every case.
        """
        entry: dict[str, Any] = {"n": None, "api": api, "method": method, "path": path, "status": None}
        entry |= {"background": background, "fault": None}
        if not background:
            self._number += 1
            entry["n"] = self._number
        self._log.append(entry)
        # Each fault counts each request, also one that another fault hits.
        hits = [fault for fault in self._faults if fault.hits(api, method, path, background)]
        fault = hits[0] if hits else None
        if fault is not None:
            entry["fault"] = fault.do
            if fault.do == "delay":
                await asyncio.sleep(fault.seconds)
        return Decision(entry, fault)

    def after(self, decision: Decision, status: int | None) -> None:
        """Log how the request ended; None when nothing was answered."""
        decision.entry["status"] = status

    def middleware(self, api: API) -> Middleware:
        """A middleware for the application that serves `api`."""

        @web.middleware
        async def inject(request: web.Request, handler: Handler) -> web.StreamResponse:
            background = api == "gitlab" and _BACKGROUND.search(request.path) is not None
            decision = await self.before(api, request.method, request.path, background)
            if decision.action == "drop":
                return _hang_up(request)
            if decision.action == "status":
                self.after(decision, decision.status)
                return web.json_response(error_body(api, decision.status), status=decision.status)
            try:
                response = await handler(request)
            except web.HTTPException as error:
                self.after(decision, error.status)
                if decision.action == "lose":
                    return _hang_up(request)
                raise
            except Exception:
                self.after(decision, 500)
                raise
            self.after(decision, response.status)
            return _hang_up(request) if decision.action == "lose" else response

        return inject

    def control_routes(self) -> list[web.RouteDef]:
        """The routes of the control API."""
        return [
            web.get("/sandbox/requests", self._get_requests),
            web.delete("/sandbox/requests", self._delete_requests),
            web.get("/sandbox/faults", self._get_faults),
            web.post("/sandbox/faults", self._post_fault),
            web.delete("/sandbox/faults", self._delete_faults),
        ]

    async def _get_requests(self, _: web.Request) -> web.Response:
        return web.json_response(self.requests())

    async def _delete_requests(self, _: web.Request) -> web.Response:
        self.reset_requests()
        return web.Response(status=204)

    async def _get_faults(self, _: web.Request) -> web.Response:
        return web.json_response([fault.model_dump() for fault in self._faults])

    async def _post_fault(self, request: web.Request) -> web.Response:
        try:
            fault = Fault.model_validate_json(await request.text())
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False, include_input=False)
            return web.json_response({"message": details}, status=400)
        self.add(fault)
        return web.json_response(fault.model_dump(), status=201)

    async def _delete_faults(self, _: web.Request) -> web.Response:
        self.clear()
        return web.Response(status=204)


def error_body(api: API, status: int) -> dict[str, Any]:
    """An error as clients of `api` expect it."""
    title = responses.get(status, "Error")
    message = f"{title} (a fault injected by the sandbox)"
    if api == "openstack":
        return {"error": {"code": status, "title": title, "message": message}}
    return {"message": message}


def _hang_up(request: web.Request) -> web.Response:
    """Close the connection; aiohttp notices that when it tries to write the response returned here, and is silent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
