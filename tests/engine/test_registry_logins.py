"""Images that are pulled by a login: the runner has it from its stack."""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from tests.ci.site import PASSWORD, PASSWORD_HASH, USER
from tests.engine.harness import Project, Sandbox, wait_until
from tests.engine.registries import move_job_image, registry

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]

REGISTRY = "127.0.0.1:5001"


@pytest.fixture
def image(engine: Engine, sandbox: Sandbox, tmp_path: Path) -> Iterator[str]:
    """An image that nobody gets without the password, and that is not on the machine."""
    (tmp_path / "htpasswd").write_text(f"{USER}:{PASSWORD_HASH}\n")
    auth = {"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}}
    with registry(engine, tmp_path, REGISTRY, auth=auth):
        reference = f"{REGISTRY}/team/job:1"
        move_job_image(sandbox, reference, username=USER, password=PASSWORD)
        yield reference


def test_a_login_comes_and_jobs_have_their_images(fresh: Project, sandbox: Sandbox, image: str) -> None:
    fresh.up()
    managers = {manager.id for manager in sandbox.managers()}
    refused = sandbox.wait_for_job(sandbox.put_job(["true"], image=image))
    assert "no basic auth credentials" in refused["trace"]
    logins = {REGISTRY: {"user": USER, "password": PASSWORD}}
    fresh.configure(lambda config: config["runners"]["app"].update(registryLogins=logins))
    assert fresh.preview() == {"Container sandbox-1-app-config": "replace"}
    output = fresh.up().output
    # The manager reads its configuration anew within seconds.
    wait_until(
        lambda: sandbox.wait_for_job(sandbox.put_job(["true"], image=image))["status"] == "success",
        "a job with the image",
    )
    assert {manager.id for manager in sandbox.managers()} == managers
    written = (PASSWORD, b64encode(f"{USER}:{PASSWORD}".encode()).decode())
    assert not [each for each in written if each in output + str(fresh.export())]
