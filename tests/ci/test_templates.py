"""The templates' jobs as GitLab makes them, and their scripts with stand-ins for docker and buildah that only note."""

import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from renderers.config_toml import ConfigToml, Dind, config_toml
from tests.ci.images import BUILDAH_IMAGE, CLI_IMAGE, DIND_IMAGE
from tests.ci.pipeline import REGISTRY, Job, ProjectFolder, Ref, in_one_shell

IMAGE = f"{REGISTRY}/group/project/web"
PASSWORD = "a job's token"
MINIMAL = {"DOCKER_IMG_NAME": "web"}
# A folder and a file that a shell takes apart when their names are not quoted.
FOLDER, DOCKERFILE = "my images/the web; $HOME *", "my images/Dockerfile of web"

# Notes each call with its arguments, one line each, and what it was given on standard input.
NOTE = """\
#!/bin/sh
name="${0##*/}"
printf '%s' "$name" >>"$CALLS"
printf '|%s' "$@" >>"$CALLS"
case "$1" in
login)
    printf '<%s' "$(cat)" >>"$CALLS"
    : >"${REGISTRY_AUTH_FILE:-$DOCKER_CONFIG/config.json}"
    ls "${REGISTRY_AUTH_FILE:-$DOCKER_CONFIG/config.json}" >"$CALLS.credentials"
    ;;
info) if [ -n "${NO_DAEMON:-}" ]; then code=1; fi ;;
build)
    printf ' namespaces:%s' "${_CONTAINERS_USERNS_CONFIGURED:-own}" >>"$CALLS"
    if [ -n "${BROKEN:-}" ]; then code=1; fi
    ;;
esac
echo >>"$CALLS"
exit "${code:-0}"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ProjectFolder:
    jobs: dict[str, Any] = {
        f"{template} {name}": {"extends": f".{template}-build", "variables": variables}
        for template in ("docker", "buildah")
        for name, variables in {
            "nameless": {},
            "web": MINIMAL,
        }.items()
    }
    jobs["docker other"] = {"extends": ".docker-build", "variables": {**MINIMAL, "DOCKER_VERSION": "99.1"}}
    return ProjectFolder.make(tmp_path_factory.mktemp("templates") / "project", jobs)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> ProjectFolder:
    return ProjectFolder.make(tmp_path_factory.mktemp("example") / "project")


@dataclass(frozen=True)
class Run:
    """How a script ended: its status, what it printed, the calls, and where its credentials were."""

    status: int
    output: str
    calls: list[str]
    credentials: Path | None


@dataclass(frozen=True)
class Shell:
    """Runs scripts in the project's folder."""

    name: str
    project: ProjectFolder
    work: Path

    def run(self, job: Job, **environment: str) -> Run:
        tools, calls = self.work / "tools", self.work / "calls"
        tools.mkdir(exist_ok=True)
        namespaces = "exit 1" if environment.get("NO_NAMESPACES") else "exit 0"
        for tool, text in {
            "docker": NOTE,
            "buildah": NOTE,
            "unshare": f"#!/bin/sh\n{namespaces}\n",
            "sleep": "#!/bin/sh\n",
        }.items():
            (tools / tool).write_text(text)
            (tools / tool).chmod(stat.S_IRWXU)
        calls.write_text("")
        done = subprocess.run(
            [self.name],
            input=in_one_shell(job.script),
            cwd=self.project.path,
            env={
                "PATH": f"{tools}:/usr/bin:/bin",
                "HOME": "/nonexistent",
                "CALLS": str(calls),
                "CI_REGISTRY_USER": "gitlab-ci-token",
                "CI_REGISTRY_PASSWORD": PASSWORD,
                **job.variables,
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        credentials = calls.with_name("calls.credentials")
        where = Path(credentials.read_text().strip()) if credentials.exists() else None
        return Run(done.returncode, done.stdout + done.stderr, calls.read_text().splitlines(), where)


@pytest.fixture(params=["sh", "bash"])
def shell(request: pytest.FixtureRequest, project: ProjectFolder, tmp_path: Path) -> Shell:
    return Shell(request.param, project, tmp_path)


@pytest.mark.parametrize(
    ("ref", "jobs"),
    [
        (Ref(), ["app", "tool"]),
        (Ref("feature"), ["app", "tool"]),
        (Ref("feature", merge_request=True), ["app", "tool"]),
        (Ref("feature", open_merge_request=True), []),
        (Ref(open_merge_request=True), ["app", "tool"]),
        (Ref(tag="v1.0"), ["app", "tool"]),
    ],
    ids=["default branch", "branch", "merge request", "branch with a merge request", "default branch with one", "tag"],
)
def test_a_change_has_one_pipeline_with_the_jobs(example: ProjectFolder, ref: Ref, jobs: list[str]) -> None:
    assert example.jobs_for(ref) == jobs


def test_image_and_service_follow_one_variable(project: ProjectFolder) -> None:
    job = project.job("docker web")
    assert (job.image, job.services) == (CLI_IMAGE, [{"name": DIND_IMAGE, "alias": "docker"}])
    other = project.job("docker other")
    assert (other.image, other.services[0]["name"]) == ("docker:99.1-cli", "docker:99.1-dind")


def test_the_runner_makes_the_service_privileged_and_has_its_certificates(project: ProjectFolder) -> None:
    runner = config_toml(ConfigToml("n", "u", "t", 1, 3, "info", "json", 1, "i", dind=Dind(daemon_json=None)))
    job = project.job("docker web")
    (patterns,) = re.findall(r"allowed_privileged_services = \[(.*?)\]", runner, re.DOTALL)
    assert any(
        re.fullmatch(pattern.replace("*", "[^/]*"), job.services[0]["name"])
        for pattern in re.findall(r'"(.*?)"', patterns)
    )
    assert f'"{job.variables["DOCKER_CERT_PATH"]}"' in runner
    assert f'"DOCKER_TLS_CERTDIR={job.variables["DOCKER_TLS_CERTDIR"]}"' in runner
    assert (job.variables["DOCKER_HOST"], job.variables["DOCKER_TLS_VERIFY"]) == ("tcp://docker:2376", "1")


def test_buildah_needs_no_service(project: ProjectFolder) -> None:
    job = project.job("buildah web")
    assert (job.image, job.services) == (BUILDAH_IMAGE, [])


@pytest.mark.parametrize(
    ("ref", "additional", "pushed"),
    [
        (Ref(), "", ["latest"]),
        (Ref(), "1.2", ["latest", "1.2"]),
        (Ref("feature"), "", []),
        (Ref("feature"), "1.2", ["1.2"]),
        (Ref("feature", merge_request=True), "1.2", ["1.2"]),
        (Ref(merge_request=True), "", []),
        (Ref(tag="v1"), "v1", ["v1"]),
    ],
)
def test_latest_is_pushed_on_the_default_branch_and_the_additional_tag_always(
    shell: Shell, ref: Ref, additional: str, pushed: list[str]
) -> None:
    for template in ("docker", "buildah"):
        job = shell.project.job(f"{template} web", ref).with_variables(DOCKER_ADDITIONAL_IMG_TAG=additional)
        run = shell.run(job)
        assert run.status == 0, run.output
        assert [call.rpartition(":")[2] for call in run.calls if call.startswith(f"{template}|push")] == pushed
        assert any(call.startswith(f"{template}|build|") for call in run.calls)
        assert ("is built, not pushed" in run.output) == (not pushed)


def test_docker_logs_in_builds_pushes_and_logs_out(shell: Shell) -> None:
    run = shell.run(shell.project.job("docker web"))
    assert run.calls == [
        "docker|info",
        f"docker|login|--username|gitlab-ci-token|--password-stdin|{REGISTRY}<{PASSWORD}",
        f"docker|build|--pull|--cache-from|{IMAGE}:latest|--build-arg|BUILDKIT_INLINE_CACHE=1"
        f"|--tag|{IMAGE}|--file|./Dockerfile|. namespaces:own",
        f"docker|tag|{IMAGE}|{IMAGE}:latest",
        f"docker|push|{IMAGE}:latest",
        f"docker|logout|{REGISTRY}",
    ]


def test_buildah_logs_in_builds_pushes_and_logs_out(shell: Shell) -> None:
    run = shell.run(shell.project.job("buildah web"))
    cache = f"{REGISTRY}/group/project/buildah-cache"
    assert run.calls == [
        f"buildah|login|--username|gitlab-ci-token|--password-stdin|{REGISTRY}<{PASSWORD}",
        f"buildah|build|--pull-always|--layers|--cache-from|{cache}|--cache-to|{cache}"
        f"|--tag|{IMAGE}|--file|./Dockerfile|. namespaces:own",
        f"buildah|push|{IMAGE}|docker://{IMAGE}:latest",
        f"buildah|logout|{REGISTRY}",
    ]


@pytest.mark.parametrize("template", ["docker", "buildah"])
def test_names_with_spaces_and_signs_stay_whole(shell: Shell, template: str) -> None:
    folder = shell.project.path / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (shell.project.path / DOCKERFILE).touch()
    job = shell.project.job(f"{template} web").with_variables(DOCKER_BUILD_DIR=FOLDER, DOCKER_DOCKERFILE=DOCKERFILE)
    run = shell.run(job)
    assert run.status == 0, run.output
    (build,) = (call for call in run.calls if call.startswith(f"{template}|build"))
    assert build.endswith(f"|--file|{DOCKERFILE}|{FOLDER} namespaces:own")
    beside = shell.run(job.with_variables(DOCKER_DOCKERFILE=""))
    assert f"there is no file '{FOLDER}/Dockerfile'" in beside.output


@pytest.mark.parametrize("template", ["docker", "buildah"])
@pytest.mark.parametrize("broken", ["", "1"], ids=["job succeeds", "build fails"])
def test_credentials_go_with_the_job(shell: Shell, template: str, broken: str) -> None:
    run = shell.run(shell.project.job(f"{template} web"), BROKEN=broken)
    assert run.status == (1 if broken else 0)
    assert run.credentials is not None
    assert not run.credentials.parent.exists()
    assert not run.credentials.is_relative_to(shell.project.path)
    assert run.calls[-1] == f"{template}|logout|{REGISTRY}"
    assert not any("|push|" in call for call in run.calls) or not broken
    assert PASSWORD not in run.output


@pytest.mark.parametrize("template", ["docker", "buildah"])
@pytest.mark.parametrize(
    ("job", "variables", "message"),
    [
        ("nameless", {}, "DOCKER_IMG_NAME is empty"),
        ("web", {"CI_REGISTRY_IMAGE": ""}, "this project has no container registry"),
        ("web", {"DOCKER_BUILD_DIR": "no/folder"}, "DOCKER_BUILD_DIR: there is no folder 'no/folder'"),
        ("web", {"DOCKER_DOCKERFILE": "no file"}, "DOCKER_DOCKERFILE: there is no file 'no file'"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_done(
    shell: Shell, template: str, job: str, variables: dict[str, str], message: str
) -> None:
    run = shell.run(shell.project.job(f"{template} {job}").with_variables(**variables))
    assert run.status == 1
    assert f"ERROR: {message}" in run.output
    assert run.calls == []


def test_waiting_for_docker_in_docker_has_an_end(shell: Shell) -> None:
    run = shell.run(shell.project.job("docker web"), NO_DAEMON="1")
    assert run.status == 1
    assert "ERROR: Docker-in-Docker did not answer for 60 s; has this runner builds: dind?" in run.output
    assert set(run.calls) == {"docker|info"}


def test_without_namespaces_buildah_makes_none_and_says_what_will_fail(shell: Shell) -> None:
    run = shell.run(shell.project.job("buildah web"), NO_NAMESPACES="1")
    assert run.status == 0
    assert "WARNING: this runner does not let jobs make namespaces, so RUN in a Dockerfile will fail" in run.output
    assert any(call.endswith(" namespaces:done") for call in run.calls)
