"""user_data that is more than Nova takes: compressed where that is enough, and refused before anything is made."""

import base64
import gzip
from collections.abc import Iterator
from secrets import token_hex

import pytest

from tests.certificates import certificate
from tests.engine.harness import NOTHING, Project, Sandbox

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]


@pytest.fixture
def fresh(fresh: Project, sandbox: Sandbox) -> Iterator[Project]:
    yield fresh
    fresh.destroy()
    assert sandbox.inventory() == NOTHING


def test_a_long_text_is_compressed_and_the_machine_reads_it(fresh: Project, sandbox: Sandbox) -> None:
    certificates = [certificate() for _ in range(130)]
    fresh.configure(lambda config: config["host"].update(caCertificates=certificates))
    fresh.up()
    assert fresh.preview() == {}
    assert fresh.refresh() == {}
    assert fresh.preview() == {}
    (server,) = sandbox.openstack.compute.servers()
    data = base64.b64decode(sandbox.openstack.compute.get_server(server.id).user_data)
    assert gzip.decompress(data).startswith(b"#cloud-config\n")
    assert sandbox.wait_for_job(sandbox.put_job(["echo done"]))["status"] == "success"


def test_one_that_is_too_long_is_refused_before_anything_is_made(fresh: Project, sandbox: Sandbox) -> None:
    # Pulumi itself hands over no more than 128 KiB of configuration.
    mirrors = [f"https://{token_hex(30)}.example.org" for _ in range(1000)]
    fresh.configure(lambda config: config["host"].update(registryMirrors=mirrors))
    for result in (fresh.failing_preview(), fresh.try_up()):
        assert result.status != 0
        (line,) = result.errors
        assert "gitlab-runners:host: user_data would have" in line
        assert "host.registryMirrors" in line
    assert sandbox.inventory() == NOTHING
