"""A server on this machine that notes what it is asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], Any]
"""Status, headers, and what becomes JSON."""


@dataclass
class Server:
    """A server, what it was asked, and what it answers: nothing there, until it is told otherwise."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    answer: Callable[[str, str], Answer] = lambda _method, _path: (404, {}, {})


@contextmanager
def serving() -> Iterator[Server]:
    """A server that ends with the context."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            server.asked.append(f"{self.command} {self.path}")
            status, headers, body = server.answer(self.command, self.path)
            content = json.dumps(body).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Type": "application/json"}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
