"""What a stack stores: Docker's data on a volume that grows in place, and the cache of jobs in the object store."""

import json
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.engine.harness import NOTHING, Project, Sandbox, ec2_credentials

pytestmark = [pytest.mark.docker, pytest.mark.acceptance, pytest.mark.xdist_group("storage")]
Change = Callable[[dict[str, Any]], object]
CONTAINER = "gitlab-runners-sandbox-cache"


@pytest.fixture(scope="module")
def stack(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(sandbox, tmp_path_factory.mktemp("project"))
    project.configure(lambda config: config["runners"].pop("team"))
    project.configure(lambda config: config.update(cache={"kind": "openstack", "path": "ci"}))
    project.configure(size(20))
    project.up()
    yield project
    # What jobs have cached must not keep the container.
    sandbox.openstack.object_store.upload_object(container=CONTAINER, name="ci/project/1/cache.zip", data=b"cached")
    project.destroy()
    assert sandbox.inventory() == NOTHING


def size(gib: int, **more: Any) -> Change:
    return lambda config: config["host"].update(dockerVolume={"size": gib} | more)


def test_the_machine_has_its_volume(stack: Project, sandbox: Sandbox) -> None:
    (volume,) = sandbox.openstack.block_storage.volumes()
    (server,) = sandbox.openstack.compute.servers()
    assert (volume.name, volume.size, volume.status) == (server.name, 20, "in-use")
    assert [attachment["server_id"] for attachment in volume.attachments] == [server.id]


def test_managers_have_a_cache_of_their_own_cloud(stack: Project, sandbox: Sandbox) -> None:
    (credential,) = ec2_credentials(sandbox.openstack)
    (manager,) = sandbox.managers()
    stream, _ = manager.get_archive("/etc/gitlab-runner/config.toml")
    with tarfile.open(fileobj=BytesIO(b"".join(stream))) as archive:
        file = archive.extractfile("config.toml")
        assert file is not None
        cache = tomllib.load(file)["runners"][0]["cache"]
    endpoint = sandbox.openstack.endpoint_for("object-store")
    assert endpoint is not None
    assert cache["s3"].pop("ServerAddress") == urlsplit(endpoint).netloc
    assert cache == {
        "Type": "s3",
        "Path": "ci",
        "Shared": False,
        "s3": {
            "BucketName": CONTAINER,
            "BucketLocation": "us-east-1",
            "AccessKey": credential["access"],
            "SecretKey": credential["secret"],
            "AuthenticationType": "access-key",
            "Insecure": True,
        },
    }
    assert credential["secret"] not in json.dumps(stack.export())
    assert credential["secret"] not in json.dumps(stack.outputs())
    assert credential["secret"] not in json.dumps(manager.attrs)


def test_the_volume_grows_in_place(stack: Project, sandbox: Sandbox) -> None:
    managers = {manager.id for manager in sandbox.managers()}
    stack.configure(size(30))
    assert stack.preview() == {"Volume sandbox-1": "update"}
    stack.up()
    (volume,) = sandbox.openstack.block_storage.volumes()
    assert (volume.size, volume.status) == (30, "in-use")
    assert {manager.id for manager in sandbox.managers()} == managers


def test_a_growth_that_broke_off_is_finished(stack: Project, sandbox: Sandbox) -> None:
    stack.configure(size(40))
    sandbox.control("POST", "faults", {"do": "status", "status": 413, "method": "POST", "path": "/action$"})
    assert stack.try_up().status != 0
    (volume,) = sandbox.openstack.block_storage.volumes()
    assert volume.size == 30
    stack.up()
    (volume,) = sandbox.openstack.block_storage.volumes()
    assert (volume.size, volume.status) == (40, "in-use")


def test_the_volume_does_not_shrink(stack: Project) -> None:
    stack.configure(size(10))
    refusal = (
        "host.dockerVolume.size: 10: volume sandbox-1 has 40 GiB, and volumes only grow; "
        "for a smaller one remove dockerVolume, update the stack and set it again"
    )
    assert refusal in stack.failing_preview().output
    stack.configure(size(40))


def test_another_machine_gets_another_volume(stack: Project, sandbox: Sandbox) -> None:
    (before,) = sandbox.openstack.block_storage.volumes()
    stack.configure(size(40, type="ssd"))
    plan = stack.preview()
    assert {plan[each] for each in ("Volume sandbox-1", "Port sandbox-1", "Instance sandbox-1")} == {"replace"}
    assert not {"Container sandbox", "Ec2CredentialV3 sandbox"} & plan.keys()
    stack.up()
    (after,) = sandbox.openstack.block_storage.volumes()
    assert before.id != after.id
    assert after.volume_type == "ssd"
    assert len(sandbox.managers()) == 1
