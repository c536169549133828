"""The HTTP proxy that a host's settings name, as renderers take it."""

from renderers.proxy import Proxy
from settings import DockerHost, OpenStackHost


def proxy_of(host: OpenStackHost | DockerHost) -> Proxy | None:
    """The proxy between a host and the world; None where there is none."""
    proxy = host.proxy
    return Proxy(proxy.http, proxy.https, proxy.no_proxy) if proxy is not None else None
