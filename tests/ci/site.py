"""A place where jobs really run: the sandbox's engine and GitLab, runners with the program's config.toml, a registry.

The registry is Debian's docker-registry on the address at which containers reach this machine, with TLS and a password.
Its CA is made known to jobs as users with a CA of their own do it: through the runner's volumes. Since the sandbox has
no repositories, a job copies its project's files instead of cloning them.
"""

import contextlib
import datetime
import ipaddress
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import requests
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from renderers.config_toml import ConfigToml, Dind, config_toml
from renderers.daemon_json import dind_daemon_json
from sandbox.engine import ensure
from sandbox.packages import required_release, unpacked
from tests.ci import images
from tests.ci.pipeline import Job, ProjectFolder, Ref
from tests.engine.harness import Sandbox, wait_until

USER, PASSWORD = "gitlab-ci-token", "a job's token"
# The password for htpasswd, which docker-registry takes as bcrypt only.
PASSWORD_HASH = "$2b$05$abcdefghijklmnopqrstuugkgkZTOXddDA0c9xzn1wYCvP9aIzxIu"
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Registry of the tests")])
_SOURCES = "/sources"
DIND_MTU = 1400  # bytes; not what anything would have by itself
_MANIFESTS = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


class Registry:
    """docker-registry as a process of this machine, until `close`."""

    def __init__(self, folder: Path, address: str) -> None:
        folder.mkdir()
        self._folder = folder
        with socket.create_server((address, 0)) as free:
            self.name = f"{address}:{free.getsockname()[1]}"
        self.authority = folder / "ca.crt"
        self._write_certificate(address)
        (folder / "htpasswd").write_text(f"{USER}:{PASSWORD_HASH}\n")
        configuration = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {
                "addr": self.name,
                "tls": {"certificate": str(self.authority), "key": str(folder / "key.pem")},
            },
            "auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}},
        }
        (folder / "config.yml").write_text(yaml.safe_dump(configuration))
        release = required_release()
        root = unpacked("docker-registry", release, [f"docker-registry/{release}"], "docker-registry", print)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [root / "usr/bin/docker-registry", "serve", folder / "config.yml"],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(self._answers, "the registry", 30)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait()

    def tags(self, repository: str) -> list[str]:
        """The tags that a repository has; none when there is no such repository."""
        answer = self._get(f"{repository}/tags/list")
        return sorted(answer.json()["tags"]) if answer.ok else []

    def configuration(self, repository: str, tag: str) -> dict[str, Any]:
        """The image's configuration."""
        manifest = self._get(f"{repository}/manifests/{tag}").json()
        content: dict[str, Any] = self._get(f"{repository}/blobs/{manifest['config']['digest']}").json()
        return content

    def _get(self, path: str) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(
                f"https://{self.name}/v2/{path}",
                auth=(USER, PASSWORD),
                verify=str(self.authority),
                headers={"Accept": _MANIFESTS},
                timeout=10,
            )

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            return self._get("").ok
        except requests.ConnectionError:
            return False

    def _write_certificate(self, address: str) -> None:
        """One that is its own authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_NAME)
            .issuer_name(_NAME)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
            .sign(key, hashes.SHA256())
        )
        self.authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self._folder / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


@dataclass(frozen=True)
class Result:
    """How a job ended."""

    status: str
    trace: str


class Site:
    """All of it; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._projects = folder / "projects"
        self._certificates = folder / "certs.d"
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            self._sandbox = Sandbox(self._folder / "sandbox")
            ends.callback(self._sandbox.close)
            engine = ensure(self._folder / "sandbox", print)
            images.ensure(engine, print)
            self.registry = Registry(self._folder / "registry", engine.gateway)
            ends.callback(self.registry.close)
            self._ends = ends.pop_all()
        trusted = self._certificates / self.registry.name
        trusted.mkdir(parents=True)
        shutil.copy(self.registry.authority, trusted)
        self._projects.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    @property
    def image(self) -> str:
        """The project's place in the registry, as CI_REGISTRY_IMAGE."""
        return f"{self.registry.name}/group/project"

    def add_runner(self, tag: str, *, dind: bool = False, rootless: bool = False, images: Sequence[str] = ()) -> None:
        """A runner with the program's config.toml; `images` are those that jobs may name, every one when empty."""
        runner = self._sandbox.gitlab.http_post(
            "/user/runners",
            post_data={"runner_type": "project_type", "project_id": 100, "tag_list": tag, "description": tag},
        )
        assert isinstance(runner, dict)
        home = self._folder / tag
        home.mkdir()
        (home / "dind-daemon.json").write_text(dind_daemon_json(DIND_MTU))
        configuration = ConfigToml(
            name=tag,
            url=self._sandbox.environment["SANDBOX_GITLAB_URL"],
            token=runner["token"],
            concurrent=1,
            check_interval=1,
            log_level="info",
            log_format="text",
            limit=1,
            image=self._sandbox.environment["SANDBOX_JOB_IMAGE"],
            pull_policies=["if-not-present"],
            allowed_images=images,
            volumes=[f"{self._certificates}:/etc/docker/certs.d:ro", f"{self._projects}:{_SOURCES}:ro"],
            mtu=1450,
            rootless=rootless,
            dind=Dind(str(home / "dind-daemon.json")) if dind else None,
        )
        (home / "config.toml").write_text(config_toml(configuration))
        self._sandbox.docker.containers.run(
            self._sandbox.environment["SANDBOX_RUNNER_IMAGE"],
            detach=True,
            volumes=[f"{home}:/etc/gitlab-runner", "/var/run/docker.sock:/var/run/docker.sock"],
        )

    def project(self, name: str, jobs: dict[str, Any] | None = None) -> ProjectFolder:
        """A project with the example's files, whose base image comes from this site's registry."""
        project = ProjectFolder.make(self._projects / name, jobs)
        for dockerfile in project.path.rglob("Dockerfile*"):
            dockerfile.write_text(dockerfile.read_text().replace("FROM busybox:", f"FROM {self.image}/busybox:"))
        return project

    def job(self, project: ProjectFolder, name: str, ref: Ref | None = None) -> Job:
        """A job of the project, with the registry's address and credentials, that copies the project's files first."""
        job = project.job(
            name,
            ref,
            CI_REGISTRY=self.registry.name,
            CI_REGISTRY_IMAGE=self.image,
            CI_REGISTRY_USER=USER,
            CI_REGISTRY_PASSWORD=PASSWORD,
        )
        return replace(job, script=[f"cp -r {_SOURCES}/{project.path.name}/. .", *job.script])

    def run(self, job: Job, tag: str) -> Result:
        """Has a runner run the job."""
        number = self._sandbox.put_job(
            job.script, image=job.image, services=job.services, variables=job.variables, tags=[tag], timeout=110
        )
        done = self._sandbox.wait_for_job(number, "success", "failed")
        return Result(done["status"], done["trace"])
