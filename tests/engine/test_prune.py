"""The script that keeps a machine's disk free, on a real Docker Engine with a stack and a running job."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from renderers.cloud_init import CloudInit, user_data
from renderers.prune import PRUNE_SCRIPT, Prune
from sandbox.engine import Engine
from tests.engine.harness import Project, Sandbox, inside, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.acceptance]
LABEL = "com.gitlab.gitlab-runner"
MANAGED = {f"{LABEL}.managed": "true"}
UNUSED = {"unused:1", "unused:2"}
LONG = 169
PruneDocker = Callable[..., str]


@pytest.fixture
def prune(engine: Engine, tmp_path: Path) -> PruneDocker:
    """Runs the user_data's own script, for which `unused` were unused for so many hours already."""

    def run(*unused: str | None, hours: int = LONG, older_than_hours: int = 168, free_percent: int = 0) -> str:
        machine = CloudInit("debian", 1450, True, "PRIVATE\n", "PUBLIC", prune=Prune(older_than_hours, free_percent))
        files = yaml.safe_load(user_data(machine))["write_files"]
        script = tmp_path / "prune-docker"
        script.write_text(next(file["content"] for file in files if file["path"] == PRUNE_SCRIPT))
        aged = [f"touch -d '{hours} hours ago' {tmp_path}/*/{name}" for name in unused]
        return inside(engine, "; ".join([*aged, f"STATE_DIRECTORY={tmp_path} sh {script}"]))

    return run


@pytest.fixture
def image(sandbox: Sandbox) -> Iterator[str]:
    """The id of an image that nobody uses; it has two names."""
    container = sandbox.docker.containers.create(sandbox.environment["SANDBOX_JOB_IMAGE"], ["true"])
    made = container.commit("unused", "1", conf={"Cmd": ["made for a test"]})
    container.remove()
    made.tag("unused", "2")
    yield str(made.id)
    for name in names(sandbox) & UNUSED:
        sandbox.docker.images.remove(name)


def names(sandbox: Sandbox) -> set[str]:
    """All names of images."""
    return {tag for image in sandbox.docker.images.list() for tag in image.tags}


def containers(sandbox: Sandbox) -> dict[str, str]:
    return {str(each.id): each.status for each in sandbox.docker.containers.list(all=True)}


def volumes(sandbox: Sandbox) -> set[str]:
    return {str(volume.id) for volume in sandbox.docker.volumes.list()}


def test_a_stack_and_its_job_lose_nothing(sandbox: Sandbox, project: Project, prune: PruneDocker) -> None:
    # What other tests have left is not what this one is about.
    sandbox.docker.containers.prune()
    sandbox.docker.volumes.prune({"all": True})
    project.up()
    job = sandbox.put_job(["for i in $(seq 100); do [ -e /tmp/end ] && break; sleep 0.2; done"])
    labels = [f"{LABEL}.job.id={job}", f"{LABEL}.type=build"]
    of_job: dict[str, str | list[str] | bool] = {"label": labels, "status": "running"}
    wait_until(lambda: bool(sandbox.docker.containers.list(filters=of_job)), "the job's container")
    used = containers(sandbox), volumes(sandbox)
    assert "created" in used[0].values()
    # No running job is as old as a stopped container of one that goes: the settings see to that.
    stay = {container: state for container, state in used[0].items() if state != "exited"}
    images = {
        tag
        for each in sandbox.docker.containers.list(all=True)
        if each.status != "exited"
        for tag in (each.image.tags if each.image else ())
    }
    assert sandbox.environment["SANDBOX_JOB_IMAGE"] in images
    left = sandbox.docker.containers.run(
        sandbox.environment["SANDBOX_JOB_IMAGE"], ["true"], labels=MANAGED, volumes=["/left"], detach=True
    )
    left.wait()
    (nameless,) = volumes(sandbox) - used[1]
    cache = str(sandbox.docker.volumes.create("runner-x-cache-y", labels=MANAGED).id)
    sandbox.docker.volumes.create("somebodys")
    # As the script is run on a machine at first, and then with no patience at all.
    prune()
    assert containers(sandbox) == used[0] | {str(left.id): "exited"}
    for _ in range(2):
        prune(older_than_hours=0, free_percent=100)
    assert (containers(sandbox), volumes(sandbox)) == (stay, used[1] | {"somebodys"})
    assert images <= names(sandbox)
    assert not volumes(sandbox) & {nameless, cache}
    sandbox.docker.volumes.get("somebodys").remove()
    assert sandbox.job(job)["status"] == "running"
    for container in sandbox.docker.containers.list(filters=of_job):
        container.exec_run("touch /tmp/end")
    assert sandbox.wait_for_job(job)["status"] == "success"


def test_an_image_goes_once_it_was_unused_for_long(sandbox: Sandbox, image: str, prune: PruneDocker) -> None:
    prune()
    prune(image, hours=167)
    assert names(sandbox) >= UNUSED
    prune(image)
    assert not names(sandbox) & UNUSED


def test_on_a_full_disk_an_hour_is_long(sandbox: Sandbox, image: str, prune: PruneDocker) -> None:
    prune(free_percent=100)
    assert names(sandbox) >= UNUSED
    prune(image, hours=2)
    assert names(sandbox) >= UNUSED
    prune(image, hours=2, free_percent=100)
    assert not names(sandbox) & UNUSED


def test_use_starts_the_time_anew(sandbox: Sandbox, image: str, prune: PruneDocker) -> None:
    prune()
    container = sandbox.docker.containers.create(image, ["true"])
    prune(image)
    assert names(sandbox) >= UNUSED
    container.remove()
    prune()
    assert names(sandbox) >= UNUSED


def test_images_wait_while_a_job_is_about_to_start(sandbox: Sandbox, image: str, prune: PruneDocker) -> None:
    network = sandbox.docker.networks.create("job", labels={f"{LABEL}.job.id": "4711"})
    prune()
    assert "a job is about to start" in prune(image)
    assert names(sandbox) >= UNUSED
    # Left behind by a manager that was killed.
    prune(image, "4711", hours=LONG)
    network.remove()
    assert not names(sandbox) & UNUSED
