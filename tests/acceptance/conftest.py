"""The real ground: these tests run beside an OpenStack, which `python -m tests.acceptance.ground` starts."""

import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sandbox.images import Images, made_images
from tests.acceptance.ground_stack import METADATA, Ground
from tests.engine.harness import Project
from tests.sandbox.inprocess import InProcess


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them need the ground, and the processor to themselves."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.ground)


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    if "GROUND_STATE" not in os.environ:
        pytest.fail("no ground: run `make acceptance`, or python -m tests.acceptance.ground -- python -m pytest …")
    gateways = dict(pair.split("=") for pair in os.environ["GROUND_GATEWAYS"].split(","))
    folder = tmp_path_factory.mktemp("ground")
    with InProcess(folder / "store.sqlite", gateway=next(iter(gateways.values()))) as gitlab:
        yield Ground(gitlab, gateways, folder, Images(*(image.name for image in made_images("amd64"))))


@pytest.fixture(scope="session")
def project(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(ground, tmp_path_factory.mktemp("project"))


class _Secrets(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"user-data with secrets")

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="session")
def metadata_service(ground: Ground) -> Iterator[None]:
    """What answers at the address of the metadata service, one hop from the machines: else nothing would be blocked."""
    subprocess.run(["ip", "address", "add", f"{METADATA}/32", "dev", "lo"], check=True)
    with HTTPServer((METADATA, 80), _Secrets) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()
