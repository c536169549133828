"""A runner manager: the gitlab-runner container on one host for one runner."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import pulumi
import pulumi_docker as docker

from clients.managers import VOLUME_LABEL
from components.docker_connection import Configuration, DockerConnection
from components.worker_group import WorkerGroup
from components.workers import Workers
from renderers.autoscaler import CLOUD_CA_FILE, CLOUDS_FILE, KEY_FILE, PLUGINS_FOLDER
from renderers.config_toml import Cache, ConfigToml, Dind, Limits, RegistryLogin, config_toml
from renderers.daemon_json import dind_daemon_json
from renderers.handover import CONFIG_FILE, CONFIGURATION_FOLDER
from renderers.metrics import LOOPBACK_LISTEN_ADDRESS, MANAGERS_LISTEN_ADDRESS, TOKEN_EXPIRY_LABEL
from renderers.proxy import Proxy, proxy_environment
from settings import Manager, Runner

# The plugin stays in the manager's volume: a restart needs no registry. Without it the manager does not start, and the
# update fails. The image's own entrypoint takes care of the CAs and becomes gitlab-runner.
_PLUGINS = {"FLEETING_PLUGIN_PATH": PLUGINS_FOLDER}
_INSTALL_AND_RUN = ("/bin/sh", "-c", "/entrypoint fleeting install && exec /entrypoint run")
_DIND_CONFIGURATION = "dind-daemon.json"
# Where the image's entrypoint and the helper image look for further CAs (GitLab Runner docs, "Self-signed
# certificates").
_CA_FILE = "certs/ca.crt"
# Beyond the grace: Docker's kill and the removal.
_DELETE_MARGIN_SECONDS = 300
# A manager is healthy when GitLab knows its token: `verify` ends with a status other than 0 when it does not, or when
# config.toml is broken (GitLab Runner docs, "Commands"). In the start period Docker looks once a second from 25.0 on
# (ContainerCreate, StartInterval); older engines after the first interval.
_HEALTHCHECK: dict[str, Any] = {
    "tests": ["CMD", "gitlab-runner", "verify"],
    "interval": "30s",
    "timeout": "30s",
    "start_period": "1m0s",
    "start_interval": "1s",
    "retries": 3,
}
_HEALTHY_WITHIN_SECONDS = 120
# How long `docker stop` by hand waits for jobs. Not the stack's grace: a change of it would replace the container.
_STOP_TIMEOUT_SECONDS = 24 * 60 * 60
_CONTAINER: dict[str, Any] = {
    "restart": "always",
    # SIGQUIT lets running jobs end; SIGTERM would abort them (GitLab Runner docs, "Signals").
    "stop_signal": "SIGQUIT",
    "stop_timeout": _STOP_TIMEOUT_SECONDS,
}


@dataclass(frozen=True)
class RunnerManagerArgs:
    """`grace` in seconds, `mtu` in bytes (None leaves Docker's own); `labels` mark all that is made.

    `metrics` says whether the host serves metrics; else they are for the manager's container alone. The manager reads
    it only when it starts, and so it may change only with the machine. `workers` is for `executor: autoscaler`.
    """

    runner: Runner
    manager: Manager
    token: pulumi.Output[str]
    token_expiry: pulumi.Output[datetime | None]
    runner_id: pulumi.Output[int | None]
    gitlab_url: str
    connection: DockerConnection
    labels: dict[str, pulumi.Input[str]]
    grace: int
    mtu: int | None
    ipv6: bool = False
    ca_certificates: Sequence[str] = ()
    proxy: Proxy | None = None
    registry_mirrors: Sequence[str] = ()
    metrics: bool = False
    cache: pulumi.Output[Cache] | None = None
    workers: WorkerGroup | None = None

    @property
    def proxy_environment(self) -> dict[str, str]:
        """Variables that tell of the proxy."""
        return proxy_environment(self.proxy, self.registry_mirrors)

    @property
    def files_for_jobs(self) -> dict[str, str]:
        """What jobs get from the machine they run on; see the function."""
        return files_for_jobs(self.runner, self.mtu, self.registry_mirrors, self.ca_certificates, ipv6=self.ipv6)


def files_for_jobs(
    runner: Runner,
    mtu: int | None,
    registry_mirrors: Sequence[str],
    ca_certificates: Sequence[str],
    *,
    ipv6: bool = False,
) -> dict[str, str]:
    """Files below /etc/gitlab-runner that containers of jobs get from the machine they run on: daemon.json of
    Docker-in-Docker, where it is not the service's own, and further CAs."""
    files = {}
    if runner.builds == "dind" and (mtu is not None or registry_mirrors or ipv6):
        files[_DIND_CONFIGURATION] = dind_daemon_json(mtu, registry_mirrors, ipv6=ipv6)
    if ca_certificates:
        files[_CA_FILE] = "".join(ca_certificates)
    return files


class RunnerManager(pulumi.ComponentResource):
    """Image, volume, configuration and container.

    The configuration is written by a container of its own, which is never started and shares the volume: the docker
    provider replaces a container when a file uploaded into it changes, and the manager must go on. It sees a new
    config.toml within seconds.

    The volume also keeps the manager's system id. Another container means another volume: the new manager starts, and
    is seen healthy, while the old one still runs its last jobs, and two managers with one system id would use each
    other's build folders.
    """

    container: docker.Container
    slots: dict[str, int] | None
    """How many `jobs` it may have, and its `concurrent`; None where workers run them."""

    def __init__(self, name: str, args: RunnerManagerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("gitlab-runners:docker:RunnerManager", name, None, opts)
        on_host, reference = args.connection.on_host, args.manager.reference
        concurrent = args.manager.concurrent
        jobs = min(args.runner.limit or concurrent, concurrent)
        self.slots = {"jobs": jobs, "concurrent": concurrent} if args.workers is None else None
        # All that makes it another container: a change of any of it changes the volume too.
        socket, workers = args.connection.socket, args.workers
        mounted = [socket.host_path, socket.container_path] if workers is None else []
        environment = args.proxy_environment | (_PLUGINS if workers is not None else {})
        specification = [reference, mounted, environment, _CONTAINER, _HEALTHCHECK]
        generation: pulumi.Input[str] = sha256(json.dumps(specification).encode()).hexdigest()
        if workers is not None:
            # A second scaler of one group would remove the workers of the first: another runner is another generation.
            generation = pulumi.Output.concat(generation, " ", workers.generation, " ", args.runner_id.apply(str))
        image = docker.RemoteImage(name, name=reference, keep_locally=True, opts=on_host(self))
        volume = docker.Volume(
            name,
            labels=[docker.VolumeLabelArgs(label=key, value=value) for key, value in args.labels.items()],
            opts=on_host(self, trigger=generation),
        )
        shared = docker.ContainerVolumeArgs(volume_name=volume.name, container_path=CONFIGURATION_FOLDER)
        config = self._config_toml(name, args, volume)
        uploads = [docker.ContainerUploadArgs(file=CONFIG_FILE, content=config, permissions="0600")]
        for file, content in args.files_for_jobs.items():
            uploads.append(docker.ContainerUploadArgs(file=f"{CONFIGURATION_FOLDER}/{file}", content=content))
        if workers is not None:
            uploads += _of_workers(workers)
        configuration = docker.Container(
            f"{name}-config",
            image=image.image_id,
            start=False,
            must_run=False,
            volumes=[shared],
            uploads=uploads,
            labels=self._configuration_labels(args, _digest(volume.name, config)),
            opts=on_host(self),
        )
        volumes = [shared]
        options: dict[str, Any] = {
            "depends_on": [configuration],
            "custom_timeouts": pulumi.CustomTimeouts(delete=f"{args.grace + _DELETE_MARGIN_SECONDS}s"),
        }
        if workers is None:
            volumes.append(docker.ContainerVolumeArgs(host_path=socket.host_path, container_path=socket.container_path))
            first = Configuration(configuration.id, config)
            of_container = args.connection.of_successor(self, name, first, **options)
        else:
            of_workers = pulumi.ResourceOptions(parent=self, depends_on=workers.members)
            options["depends_on"].append(Workers(name, volume.name, workers.cloud, opts=of_workers))
            of_container = on_host(self, **options)
        self.container = docker.Container(
            name,
            image=image.image_id,
            volumes=volumes,
            entrypoints=list(_INSTALL_AND_RUN) if workers is not None else None,
            labels=_container_labels(args.labels | {VOLUME_LABEL: volume.name}),
            envs=[f"{key}={value}" for key, value in environment.items()] or None,
            healthcheck=docker.ContainerHealthcheckArgs(**_HEALTHCHECK),
            wait=True,
            wait_timeout=_HEALTHY_WITHIN_SECONDS,
            destroy_grace_seconds=args.grace,
            **_CONTAINER,
            opts=of_container,
        )
        self.register_outputs({"container": self.container.name})

    @staticmethod
    def _configuration_labels(
        args: RunnerManagerArgs, digest: pulumi.Output[str]
    ) -> pulumi.Input[list[docker.ContainerLabelArgs]]:
        labels = _container_labels(args.labels | {"gitlab-runners.configuration": digest})
        if not args.metrics:
            return labels

        def with_expiry(expiry: datetime | None) -> list[docker.ContainerLabelArgs]:
            # For the machine's metrics, which know nothing of GitLab.
            more = {TOKEN_EXPIRY_LABEL: f"{expiry.timestamp():.0f}"} if expiry is not None else {}
            return labels + _container_labels(more)

        return args.token_expiry.apply(with_expiry)

    @staticmethod
    def _config_toml(name: str, args: RunnerManagerArgs, volume: docker.Volume) -> pulumi.Output[str]:
        runner, manager, workers = args.runner, args.manager, args.workers
        concurrent = manager.concurrent
        if runner.autoscaler is not None:
            concurrent = runner.autoscaler.max_instances * runner.autoscaler.capacity_per_instance

        def render(
            token: str,
            runner_id: int | None,
            volume_folder: str,
            cache: Cache | None,
            autoscaler: dict[str, Any] | None,
        ) -> str:
            # Where the machine of the jobs has the files for them.
            folder = volume_folder if autoscaler is None else CONFIGURATION_FOLDER
            dind = None
            if runner.builds == "dind":
                dind = Dind(f"{folder}/{_DIND_CONFIGURATION}" if _DIND_CONFIGURATION in args.files_for_jobs else None)
            return config_toml(
                ConfigToml(
                    name=name,
                    url=args.gitlab_url,
                    token=token,
                    docker_host=args.connection.socket.url if autoscaler is None else None,
                    runner_id=runner_id,
                    concurrent=concurrent,
                    check_interval=manager.check_interval,
                    log_level=manager.log_level,
                    log_format=manager.log_format,
                    limit=runner.limit or concurrent,
                    image=runner.image,
                    pull_policies=runner.pull_policies,
                    allowed_images=runner.allowed_images,
                    allowed_services=runner.allowed_services,
                    allowed_pull_policies=runner.allowed_pull_policies,
                    services_limit=runner.services_limit,
                    job_limits=Limits(runner.job_limits.memory, runner.job_limits.cpus),
                    service_limits=Limits(runner.service_limits.memory, runner.service_limits.cpus),
                    no_new_privileges=runner.no_new_privileges,
                    rootless=runner.builds == "rootless",
                    volumes=runner.volumes,
                    environment=args.proxy_environment | runner.environment,
                    registry_logins={
                        registry: RegistryLogin(login.user, login.password.get_secret_value())
                        for registry, login in runner.registry_logins.items()
                    },
                    mtu=args.mtu,
                    ipv6=args.ipv6,
                    dind=dind,
                    listen_address=MANAGERS_LISTEN_ADDRESS if args.metrics else LOOPBACK_LISTEN_ADDRESS,
                    ca_file=f"{folder}/{_CA_FILE}" if args.ca_certificates else None,
                    cache=cache,
                    autoscaler=autoscaler,
                    advanced=runner.advanced,
                    advanced_global=manager.advanced,
                )
            )

        table = workers.table(volume.name) if workers is not None else None
        return pulumi.Output.all(args.token, args.runner_id, volume.mountpoint, args.cache, table).apply(
            lambda known: render(*known)
        )


def _of_workers(workers: WorkerGroup) -> list[docker.ContainerUploadArgs]:
    """What the plugin needs: the way into the cloud, and into its workers."""
    files = [(CLOUDS_FILE, workers.clouds_yaml), (KEY_FILE, workers.private_key)]
    uploads = [docker.ContainerUploadArgs(file=file, content=text, permissions="0600") for file, text in files]
    if workers.cloud_ca is not None:
        uploads.append(docker.ContainerUploadArgs(file=CLOUD_CA_FILE, content=workers.cloud_ca))
    return uploads


def _container_labels(labels: Mapping[str, pulumi.Input[str]]) -> list[docker.ContainerLabelArgs]:
    return [docker.ContainerLabelArgs(label=key, value=value) for key, value in labels.items()]


def _digest(*parts: pulumi.Output[str]) -> pulumi.Output[str]:
    """Digest of texts one of which holds a token, whose entropy keeps the digest from telling anything."""
    return pulumi.Output.unsecret(
        pulumi.Output.all(*parts).apply(lambda texts: sha256("\0".join(texts).encode()).hexdigest())
    )
