"""A pull-through cache of Docker Hub on a host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_docker as docker

from components.docker_connection import DockerConnection
from renderers.config_toml import GO_CA_FILE
from renderers.proxy import Proxy, proxy_environment
from renderers.registry_cache import REGISTRY_CACHE_FOLDER, REGISTRY_CACHE_URL, registry_cache
from settings import DockerHost, OpenStackHost
from settings import RegistryCache as RegistryCacheSettings

_LABEL = "gitlab-runners.registry-cache"
_CONFIGURATION = "/etc/registry-cache.yml"


@dataclass(frozen=True)
class RegistryCacheArgs:
    """`labels` mark all that is made; `ca_certificates` (PEM) and `proxy` are for the cache's own pulls."""

    cache: RegistryCacheSettings
    connection: DockerConnection
    labels: Mapping[str, pulumi.Input[str]]
    ca_certificates: Sequence[str] = ()
    proxy: Proxy | None = None


class RegistryCache(pulumi.ComponentResource):
    """Image, volume and container. Nothing waits for it: engines that do not find their mirror ask Docker Hub."""

    def __init__(self, name: str, args: RegistryCacheArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("gitlab-runners:docker:RegistryCache", name, None, opts)
        on_host, cache = args.connection.on_host, args.cache
        name = f"{name}-registry-cache"
        labels = {**args.labels, _LABEL: name}
        image = docker.RemoteImage(name, name=cache.image, keep_locally=True, opts=on_host(self))
        volume = docker.Volume(
            name,
            labels=[docker.VolumeLabelArgs(label=key, value=value) for key, value in labels.items()],
            opts=on_host(self),
        )
        login = cache.login
        configuration = registry_cache(
            cache.upstream, *((login.user, login.password.get_secret_value()) if login is not None else ())
        )
        uploads = [
            docker.ContainerUploadArgs(
                file=_CONFIGURATION, content=pulumi.Output.secret(configuration), permissions="0600"
            )
        ]
        if args.ca_certificates:
            uploads.append(docker.ContainerUploadArgs(file=GO_CA_FILE, content="".join(args.ca_certificates)))
        environment = proxy_environment(args.proxy)
        docker.Container(
            name,
            image=image.image_id,
            command=[_CONFIGURATION],
            uploads=uploads,
            volumes=[docker.ContainerVolumeArgs(volume_name=volume.name, container_path=REGISTRY_CACHE_FOLDER)],
            # Published ports are kept from the networks of jobs, which are not the container's.
            network_mode="host",
            # Distribution 3 looks for a collector of traces otherwise.
            envs=["OTEL_TRACES_EXPORTER=none", *(f"{key}={value}" for key, value in environment.items())],
            restart="always",
            must_run=False,
            labels=[docker.ContainerLabelArgs(label=key, value=value) for key, value in labels.items()],
            # Two cannot listen in one place.
            opts=on_host(self, delete_before_replace=True),
        )
        self.register_outputs({})


def mirrors(host: OpenStackHost | DockerHost) -> Sequence[str]:
    """Mirrors of Docker Hub for what runs on a host, its own cache first."""
    own = (REGISTRY_CACHE_URL,) if isinstance(host, OpenStackHost) and host.registry_cache is not None else ()
    return (*own, *host.registry_mirrors)
