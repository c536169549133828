"""A cache of Docker Hub on the machine, which Docker-in-Docker asks first."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from renderers.registry_cache import REGISTRY_CACHE_ADDRESS
from sandbox.engine import Engine
from tests.ci.images import CLI_IMAGE, DIND_IMAGE, ensure
from tests.engine.harness import DIND_TLS, NOTHING, Project, Sandbox, inside
from tests.engine.registries import make_registry_image, move_job_image, registry

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]

UPSTREAM = "127.0.0.1:5002"
IMAGE = "registry:test"
PULL = ["until docker info >/dev/null 2>&1; do sleep 1; done", "docker pull cached:1"]


@pytest.fixture
def address(engine: Engine) -> Iterator[None]:
    """What the unit of the machine's user_data does, since the sandbox's machines have none."""
    command = REGISTRY_CACHE_ADDRESS.partition("/bin/sh -c '")[2].partition("'")[0]
    inside(engine, command)
    yield
    inside(engine, command.replace("replace", "del"))


def pulled(sandbox: Sandbox) -> None:
    """Runs a job whose Docker-in-Docker pulls an image that only the cache and its upstream have."""
    service = {"name": DIND_IMAGE, "alias": "docker"}
    job = sandbox.put_job(PULL, image=CLI_IMAGE, services=[service], variables=DIND_TLS)
    ended = sandbox.wait_for_job(job)
    assert ended["status"] == "success", ended["trace"]
    assert "docker.io/library/cached:1" in ended["trace"]


@pytest.mark.usefixtures("address")
def test_it_has_what_it_pulled_once(fresh: Project, sandbox: Sandbox, engine: Engine, tmp_path: Path) -> None:
    ensure(engine, print)
    make_registry_image(sandbox.docker, IMAGE)
    # Nothing listens there: an engine that asked it for the cache would have nothing from it.
    proxy = {"http": "http://127.0.0.1:9", "noProxy": [urlsplit(fresh.config["gitlab-runners:gitlabUrl"]).hostname]}
    fresh.configure(
        lambda config: (
            config["host"].update(registryCache={"image": IMAGE, "upstream": f"http://{UPSTREAM}"}, proxy=proxy),
            config["runners"]["app"].update(builds="dind"),
        )
    )
    fresh.up()
    assert fresh.preview() == {}
    with registry(engine, tmp_path, UPSTREAM):
        move_job_image(sandbox, f"{UPSTREAM}/library/cached:1")
        pulled(sandbox)
    # Nobody but the cache has it now.
    pulled(sandbox)

    # Another machine has a cache of its own, and the end leaves none.
    fresh.configure(lambda config: config["host"].update(mtu=1400))
    fresh.up()
    assert fresh.preview() == {}
    (cache,) = sandbox.docker.containers.list(all=True, filters={"label": "gitlab-runners.registry-cache"})
    (server,) = sandbox.openstack.compute.servers()
    assert cache.labels["gitlab-runners.server"] == server.id
    fresh.destroy()
    assert sandbox.inventory() == NOTHING
