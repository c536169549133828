"""A server for what GitHub's REST API is asked for in tests."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class GitHubHandler(BaseHTTPRequestHandler):
    """Base of the handlers: only the token `token` may do anything."""

    def body(self) -> dict[str, Any]:
        """What was sent."""
        found: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return found

    def answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        """Sends an answer."""
        if self.headers["Authorization"] != "Bearer token":
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
