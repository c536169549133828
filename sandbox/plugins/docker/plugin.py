"""The docker plugin: configuration, connection, images and volumes."""

import os
import threading
from typing import Any, ClassVar

from ..common import Plugin, PluginError, Resource, Work, innermost
from ..facts import Habits
from ..values import Plain

DEFAULT_HOST = "unix:///var/run/docker.sock"
# No answer for so long means that there will be none; a pull and a stop have their own, longer waits.
ANSWER_SECONDS = 300
VOLUME_IN_USE_SECONDS = 30
CONTAINER_SECONDS = 20 * 60
CONFLICT = 409


class Engine:
    """The Docker Engine that the provider's configuration names."""

    def __init__(self, plugin: "Docker") -> None:
        self._plugin = plugin
        self._lock = threading.Lock()
        self._client: Any = None

    @property
    def host(self) -> str:
        """The engine's URL."""
        return str(self._plugin.config.get("host") or os.environ.get("DOCKER_HOST") or DEFAULT_HOST)

    @property
    def client(self) -> Any:
        """The SDK's `APIClient`; connects at the first use. One attempt, as the official provider has it."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def credentials(self, image: str) -> dict[str, str] | None:
        """What to log in with for a pull; None leaves it to the user's own Docker configuration."""
        from docker.auth import resolve_repository_name  # noqa: PLC0415

        registry, _ = resolve_repository_name(image.partition("@")[0])
        for entry in self._plugin.config.get("registryAuth", []):
            address = entry["address"].removeprefix("https://").removeprefix("http://").rstrip("/")
            if address == registry and "username" in entry:
                return {"username": entry["username"], "password": entry.get("password", "")}
        return None

    def find_image(self, name: str, platform: str | None = None) -> dict[str, Any]:
        """An image that is here, else pulled."""
        from docker.errors import ImageNotFound  # noqa: PLC0415

        try:
            image: dict[str, Any] = self.client.inspect_image(name)
        except ImageNotFound:
            repository, tag = name, None
            if "@" not in name and ":" in name.rpartition("/")[2]:
                repository, _, tag = name.rpartition(":")
            for event in self.client.pull(
                repository,
                tag=tag or (None if "@" in name else "latest"),
                stream=True,
                decode=True,
                auth_config=self.credentials(name),
                platform=platform,
            ):
                if "error" in event:
                    raise PluginError(f"unable to pull image {name}: {event['error']}") from None
            image = self.client.inspect_image(name)
        return image

    def _connect(self) -> Any:
        import docker  # noqa: PLC0415
        from docker.constants import DEFAULT_DOCKER_API_VERSION  # noqa: PLC0415

        if not self.host.startswith("ssh://"):
            return docker.APIClient(self.host, version="auto", timeout=ANSWER_SECONDS, tls=self._tls())
        from . import ssh  # noqa: PLC0415

        try:
            adapter = ssh.Adapter(ssh.command(self.host, self._plugin.config.get("sshOpts", [])))
        except ValueError as error:
            raise PluginError(str(error)) from error

        def client(version: str) -> Any:
            made = docker.APIClient(ssh.PLACEHOLDER_URL, version=version, timeout=ANSWER_SECONDS)
            # A proxy from the environment is for http URLs, which this one only seems to be.
            made.trust_env = False
            made.mount("http://", adapter)
            return made

        # What "auto" does, with our way to the engine.
        engine: str = client(DEFAULT_DOCKER_API_VERSION).version(api_version=False)["ApiVersion"]
        return client(min(engine, DEFAULT_DOCKER_API_VERSION, key=_version))

    def _tls(self) -> Any:
        import docker.tls  # noqa: PLC0415

        path = self._plugin.config.get("certPath")
        if not path:
            return False
        return docker.tls.TLSConfig(
            client_cert=(f"{path}/cert.pem", f"{path}/key.pem"), ca_cert=f"{path}/ca.pem", verify=True
        )


class RemoteImage(Resource):
    """`docker.RemoteImage`: an image on the engine, pulled where it is not there yet."""

    token = "docker:index/remoteImage:RemoteImage"
    seconds = CONTAINER_SECONDS
    habits = Habits(delete_before_replace=True, sets=frozenset({"pullTriggers"}), refused=frozenset({"build"}))

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def create(self, wanted: Plain, work: Work) -> None:
        image = self.engine.find_image(wanted["name"], wanted.get("platform"))
        work.made(image["Id"] + wanted["name"])

    def read(self, id: str, state: Plain) -> Plain | None:
        from docker.errors import ImageNotFound  # noqa: PLC0415

        # The id is the image's own with the name appended: "sha256:" and 64 digits, then the name.
        name = state.get("name") or id[len("sha256:") + 64 :]
        try:
            image = self.engine.client.inspect_image(name)
        except ImageNotFound:
            return None
        return {"name": name, "imageId": image["Id"], "repoDigest": _repo_digest(name, image.get("RepoDigests") or [])}

    def delete(self, id: str, state: Plain, work: Work) -> None:
        from docker.errors import ImageNotFound  # noqa: PLC0415

        if state.get("keepLocally"):
            return
        try:
            self.engine.client.remove_image(state["name"], force=state.get("forceRemove", False))
        except ImageNotFound:
            return


class Volume(Resource):
    """`docker.Volume`: a named volume."""

    token = "docker:index/volume:Volume"
    seconds = VOLUME_IN_USE_SECONDS
    habits = Habits(auto_name=True, sets=frozenset({"labels"}), refused=frozenset({"cluster"}))

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def create(self, wanted: Plain, work: Work) -> None:
        volume = self.engine.client.create_volume(
            wanted["name"],
            driver=wanted.get("driver"),
            driver_opts=wanted.get("driverOpts"),
            labels=labels_of(wanted.get("labels", [])),
        )
        work.made(volume["Name"])

    def read(self, id: str, state: Plain) -> Plain | None:
        from docker.errors import NotFound  # noqa: PLC0415

        try:
            volume = self.engine.client.inspect_volume(id)
        except NotFound:
            return None
        return {
            "name": volume["Name"],
            "driver": volume["Driver"],
            "driverOpts": volume.get("Options") or {},
            "labels": [{"label": key, "value": value} for key, value in (volume.get("Labels") or {}).items()],
            "mountpoint": volume["Mountpoint"],
        }

    def delete(self, id: str, state: Plain, work: Work) -> None:
        from docker.errors import APIError, NotFound  # noqa: PLC0415

        def removed() -> bool | None:
            try:
                self.engine.client.remove_volume(id, force=True)
            except NotFound:
                return True
            except APIError as error:
                if error.status_code != CONFLICT:
                    raise
                work.note = error.explanation or ""
                return None
            return True

        work.wait(f"volume {id} to be removed", removed)


class Docker(Plugin):
    """The plugin."""

    name = "docker"
    unknown_config: ClassVar[frozenset[str]] = frozenset({"caMaterial", "certMaterial", "keyMaterial", "context"})

    def __init__(self) -> None:
        self.engine = Engine(self)
        super().__init__()

    def resources(self) -> list[Resource]:
        """Images, volumes and containers."""
        from .container import Container  # noqa: PLC0415

        return [RemoteImage(self.engine), Volume(self.engine), Container(self.engine)]

    def connect(self) -> None:
        """See that a local engine answers; one behind `ssh://` is reached at the first use."""
        if refused := sorted(self.unknown_config & self.config.keys()):
            raise PluginError(
                f"{' and '.join(refused)} is not implemented by the stand-in for the official docker plugin"
            )
        if not self.engine.host.startswith("ssh://") and not self.config.get("disableDockerDaemonCheck"):
            self.engine.client.ping()

    def explain(self, error: Exception) -> str | None:
        """Errors of the Docker SDK and of the connection."""
        import requests  # noqa: PLC0415
        from docker.errors import DockerException  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        if isinstance(error, (DockerException, requests.RequestException, HTTPError, OSError)):
            return f"{innermost(error)} (Docker at {self.engine.host})"
        return None


def labels_of(labels: list[Plain]) -> dict[str, str]:
    """Labels as the Engine API takes them."""
    return {label["label"]: label["value"] for label in labels}


def _repo_digest(name: str, digests: list[str]) -> str:
    """Which of an image's digests belongs to its name; empty for an image that never was in a registry."""
    repository = name.partition("@")[0]
    if ":" in repository.rpartition("/")[2]:
        repository = repository.rpartition(":")[0]
    fits = [digest for digest in digests if digest == name or digest.startswith(f"{repository}@")]
    return next(iter(fits), digests[0] if len(digests) == 1 else "")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
