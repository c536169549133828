"""A server for what GitHub's REST API is asked for in tests.

A workflow's GITHUB_TOKEN writes as github-actions[bot] and cannot read the user that it is: that is an app's
installation, which GET /user refuses (GitHub docs, "Get the authenticated user").
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ACTIONS = "github-actions[bot]"
LOGINS = {"ghs_token": ACTIONS, "ghp_token": "reviewer"}
"""Whom the tokens belong to; no other may do anything."""


class GitHubHandler(BaseHTTPRequestHandler):
    """Base of the handlers."""

    def login(self) -> str:
        """Who is asking."""
        return LOGINS[self.headers["Authorization"].removeprefix("Bearer ")]

    def user(self) -> None:
        """Answers GET /user."""
        is_app = self.login() == ACTIONS
        self.answer(403 if is_app else 200, {"login": self.login()})

    def body(self) -> dict[str, Any]:
        """What was sent."""
        found: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return found

    def answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        """Sends an answer."""
        is_known = self.headers["Authorization"].removeprefix("Bearer ") in LOGINS
        if not is_known or status == 403:
            status, body = 403, {"message": "Resource not accessible by integration"}
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def serving(handler: type[GitHubHandler]) -> Iterator[str]:
    """The URL of a server with this handler, which ends with the context."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
