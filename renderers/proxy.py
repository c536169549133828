"""The variables by which programs find an HTTP proxy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from renderers.registry_cache import REGISTRY_CACHE_HOST, REGISTRY_CACHE_URL

# A job's own Docker-in-Docker service is called docker.
_NEVER = ("localhost", "127.0.0.1", "docker")


@dataclass(frozen=True)
class Proxy:
    """URLs of the proxies for http:// and https:// URLs, and what is reached without them."""

    http: str | None
    https: str | None
    no_proxy: Sequence[str] = ()


def proxy_environment(proxy: Proxy | None, mirrors: Sequence[str] = ()) -> dict[str, str]:
    """The variables, in both spellings: curl reads http_proxy only in small letters, other programs want capitals.

    `mirrors` are those of Docker Hub; the one on the machine itself is reached directly.
    """
    if proxy is None:
        return {}
    own = (REGISTRY_CACHE_HOST,) if REGISTRY_CACHE_URL in mirrors else ()
    direct = (*_NEVER, *own, *proxy.no_proxy)
    values = {"http_proxy": proxy.http, "https_proxy": proxy.https, "no_proxy": ",".join(direct)}
    given = {name: value for name, value in values.items() if value is not None}
    return dict(chain.from_iterable(((name, value), (name.upper(), value)) for name, value in given.items()))


def proxy_drop_in(environment: Mapping[str, str]) -> str:
    """A systemd drop-in with these variables, none of which has a quote or a percent sign."""
    lines = [f'Environment="{name}={value}"' for name, value in environment.items()]
    return "\n".join(["[Service]", *lines]) + "\n"
