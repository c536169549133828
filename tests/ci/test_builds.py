"""The templates' jobs run by runners that have the program's config.toml, against a registry.

The images may be stand-ins (tests/ci/images.py); GitLab Runner, Docker, BuildKit, Buildah and the registry are the real
programs.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sandbox.packages import machine_release, unpacked_busybox
from tests.ci.images import CLI_IMAGE
from tests.ci.pipeline import ProjectFolder, Ref
from tests.ci.site import DIND_MTU, PASSWORD, Site

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.docker,
    pytest.mark.xdist_group("ci-builds"),
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or machine_release() is None, reason="needs Debian and root"
    ),
]

# Tags of the runners, one for each kind of `builds`.
DIND, NONE, ROOTLESS = "dind", "none", "rootless"
FOLDER, DOCKERFILE = "my images/the web", "my images/Dockerfile of web"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    # A short path: a Unix socket's has room for about a hundred characters.
    with TemporaryDirectory(prefix="glr-") as folder, Site(Path(folder)) as site:
        site.add_runner(DIND, dind=True)
        site.add_runner(NONE)
        site.add_runner(ROOTLESS, rootless=True, images=["quay.io/buildah/stable:*"])
        yield site


@pytest.fixture(scope="module")
def base(site: Site) -> str:
    """The image that the example's images are made from, built by the template itself."""
    project = site.project(
        "base", {"busybox": {"extends": ".docker-build", "variables": {"DOCKER_IMG_NAME": "busybox"}}}
    )
    shutil.copy(unpacked_busybox(print), project.path / "busybox")
    (project.path / "Dockerfile").write_text(
        "FROM scratch\nCOPY busybox /bin/busybox\n"
        'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nRUN mkdir -p /usr/local/bin /tmp\nCMD ["sh"]\n'
    )
    done = site.run(site.job(project, "busybox").with_variables(DOCKER_ADDITIONAL_IMG_TAG="1.37.0"), DIND)
    assert done.status == "success", done.trace
    assert site.registry.tags("group/project/busybox") == ["1.37.0", "latest"]
    return f"{site.image}/busybox:1.37.0"


@pytest.fixture(scope="module")
def example(site: Site, base: str) -> ProjectFolder:
    return site.project("example")


@pytest.fixture(scope="module")
def others(site: Site, base: str) -> ProjectFolder:
    """Further jobs on the example's files."""
    paths = {"DOCKER_BUILD_DIR": FOLDER, "DOCKER_DOCKERFILE": DOCKERFILE}
    jobs = {
        "branch": {"extends": ".docker-build", "variables": {"DOCKER_IMG_NAME": "branch"}},
        "docker-spaces": {"extends": ".docker-build", "variables": {"DOCKER_IMG_NAME": "docker-spaces", **paths}},
        "buildah-spaces": {"extends": ".buildah-build", "variables": {"DOCKER_IMG_NAME": "buildah-spaces", **paths}},
        "with-run": {"extends": ".buildah-build", "variables": {"DOCKER_IMG_NAME": "with-run"}},
        "pull": {
            "extends": ".docker-build",
            "script": [
                "until docker info >/dev/null 2>&1; do sleep 1; done",
                'echo "$CI_REGISTRY_PASSWORD" | docker login -u "$CI_REGISTRY_USER" --password-stdin "$CI_REGISTRY"',
                'docker pull --quiet "$WANTED"',
                'echo "It says: $(docker run --rm "$WANTED")"',
                'echo "MTU: $(docker run --rm --entrypoint cat "$WANTED" /sys/class/net/eth0/mtu)"',
                'echo "Privileges of the job: $(grep -E "CapEff|NoNewPrivs" /proc/self/status)"',
            ],
        },
    }
    project = site.project("others", jobs)
    (project.path / FOLDER).mkdir(parents=True)
    (project.path / FOLDER / "a file").write_text("Hello from a folder with spaces\n")
    (project.path / DOCKERFILE).write_text(f'FROM {base}\nCOPY ["a file", "/a file"]\nCMD ["cat", "/a file"]\n')
    return project


def pulled(site: Site, others: ProjectFolder, image: str) -> str:
    """The trace of a job that pulls an image into a new Docker-in-Docker and runs it."""
    done = site.run(site.job(others, "pull").with_variables(WANTED=f"{site.image}/{image}"), DIND)
    assert done.status == "success", done.trace
    return done.trace


def test_docker_in_docker_builds_and_what_it_pushed_can_be_pulled(
    site: Site, example: ProjectFolder, others: ProjectFolder
) -> None:
    done = site.run(site.job(example, "app"), DIND)
    assert done.status == "success", done.trace
    assert site.registry.tags("group/project/app") == ["0123abcd", "latest"]
    assert PASSWORD not in done.trace
    trace = pulled(site, others, "app:0123abcd")
    assert "It says: Hello from the image app" in trace
    # The runner's daemon.json is that of the service, and only the service is privileged.
    assert f"MTU: {DIND_MTU}" in trace
    assert "CapEff:\t00000000a80425fb" in trace
    assert "NoNewPrivs:\t1" in trace


def test_layers_of_the_registry_are_the_cache(site: Site, example: ProjectFolder) -> None:
    job = site.job(example, "app")
    site.run(job, DIND)
    first = site.registry.configuration("group/project/app", "latest")
    again = site.run(job, DIND)
    assert again.status == "success", again.trace
    assert "CACHED" in again.trace
    assert site.registry.configuration("group/project/app", "latest")["rootfs"] == first["rootfs"]


def test_a_branch_without_a_tag_is_built_and_pushes_nothing(site: Site, others: ProjectFolder) -> None:
    done = site.run(site.job(others, "branch", Ref("feature")), DIND)
    assert done.status == "success", done.trace
    assert "is built, not pushed" in done.trace
    assert site.registry.tags("group/project/branch") == []


@pytest.mark.parametrize(("template", "runner"), [("docker", DIND), ("buildah", NONE)])
def test_folders_and_dockerfiles_may_have_spaces(site: Site, others: ProjectFolder, template: str, runner: str) -> None:
    done = site.run(site.job(others, f"{template}-spaces"), runner)
    assert done.status == "success", done.trace
    assert "It says: Hello from a folder with spaces" in pulled(site, others, f"{template}-spaces:latest")


def test_a_wrong_password_ends_the_job_at_the_login(site: Site, others: ProjectFolder) -> None:
    done = site.run(site.job(others, "branch").with_variables(CI_REGISTRY_PASSWORD="guessed wrong"), DIND)
    assert done.status == "failed"
    assert "401 Unauthorized" in done.trace
    assert "load build definition" not in done.trace


def test_buildah_builds_without_privileges_what_has_no_run(
    site: Site, example: ProjectFolder, others: ProjectFolder
) -> None:
    done = site.run(site.job(example, "tool"), NONE)
    assert done.status == "success", done.trace
    assert "WARNING: this runner does not let jobs make namespaces" in done.trace
    assert site.registry.tags("group/project/tool") == ["latest"]
    assert "It says: Hello from the image tool" in pulled(site, others, "tool:latest")


def test_buildah_runs_commands_only_where_it_may_make_namespaces(site: Site, others: ProjectFolder) -> None:
    refused = site.run(site.job(others, "with-run"), NONE)
    assert refused.status == "failed"
    assert "so RUN in a Dockerfile will fail" in refused.trace
    assert "operation not permitted" in refused.trace
    assert site.registry.tags("group/project/with-run") == []

    done = site.run(site.job(others, "with-run"), ROOTLESS)
    assert done.status == "success", done.trace
    assert "It says: Hello from the image app" in pulled(site, others, "with-run:latest")
    again = site.run(site.job(others, "with-run"), ROOTLESS)
    assert again.status == "success", again.trace
    assert "Cache pulled from remote" in again.trace


def test_rootless_builds_are_for_the_named_images(site: Site, others: ProjectFolder) -> None:
    refused = site.run(site.job(others, "pull"), ROOTLESS)
    assert refused.status == "failed"
    assert f'The "{CLI_IMAGE}" image is not present on list of allowed images' in refused.trace
