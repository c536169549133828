"""The rule that keeps containers from the metadata service, on a real kernel and a real Docker Engine."""

import re
from collections.abc import Iterator

import pytest
import yaml

from renderers.cloud_init import CloudInit, user_data
from sandbox.engine import Engine
from tests.engine.harness import Sandbox, inside, wait_until

METADATA = "169.254.169.254"
SERVE = f"echo reached > /tmp/marker; exec busybox httpd -f -p {METADATA}:80 -h /tmp"
FETCH = f"timeout 3 wget -q -O - http://{METADATA}/marker || echo nothing"
pytestmark = pytest.mark.docker


@pytest.fixture
def metadata_service(sandbox: Sandbox, engine: Engine) -> Iterator[None]:
    inside(engine, f"ip address add {METADATA}/32 dev lo")
    image = sandbox.environment["SANDBOX_JOB_IMAGE"]
    server = sandbox.docker.containers.run(image, ["sh", "-c", SERVE], network_mode="host", detach=True)
    yield
    server.remove(force=True)
    inside(engine, f"ip address del {METADATA}/32 dev lo; iptables -w -t raw -F PREROUTING")


@pytest.mark.usefixtures("metadata_service")
def test_containers_cannot_reach_it(sandbox: Sandbox, engine: Engine) -> None:
    def answer() -> str:
        image = sandbox.environment["SANDBOX_JOB_IMAGE"]
        output: bytes = sandbox.docker.containers.run(image, ["sh", "-c", FETCH], remove=True)
        return output.decode().strip()

    wait_until(lambda: answer() == "reached", "an answer, as long as nothing is in the way")
    files = yaml.safe_load(user_data(CloudInit("debian", 1450, True, "PRIVATE\n", "PUBLIC")))["write_files"]
    (unit,) = [file["content"] for file in files if file["path"].endswith("block-metadata.service")]
    start = re.search(r"ExecStart=/bin/sh -c '(.*?)'", unit, re.DOTALL)
    assert start is not None
    for _ in range(2):
        inside(engine, start[1])
        assert answer() == "nothing"
    assert inside(engine, "iptables -w -t raw -S PREROUTING").count("DROP") == 1
