"""Credentials stay at the origin that they were given for: scheme, host and port (RFC 6454).

HTTP clients follow redirects, and links in answers, with the same headers: requests takes away Authorization when the
host changes, but not PRIVATE-TOKEN or X-Auth-Token, and keystoneauth sends even a password again.
"""

from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import BaseAdapter

from clients import ClientError

# keystoneauth follows one more than requests does (keystoneauth1.session).
_REDIRECTS_OF_KEYSTONEAUTH = {305}
_PORTS = {"http": 80, "https": 443}


def keep_credentials(session: requests.Session, remedy: str, url: str | None = None) -> None:
    """Lets no request of a session follow a redirect to another origin than its own; it raises ClientError instead.

    With `url`, all requests must be for the origin of that one. `remedy` is what a person can do.
    """
    for prefix, adapter in session.adapters.items():
        session.adapters[prefix] = _Guard(adapter, remedy, url)


class _Guard(BaseAdapter):
    def __init__(self, adapter: BaseAdapter, remedy: str, url: str | None) -> None:
        super().__init__()
        self._adapter, self._remedy, self._url = adapter, remedy, url

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        asked = request.url or ""
        if self._url is not None:
            self._check(self._url, asked)
        answer = self._adapter.send(request, *arguments, **options)
        if answer.is_redirect or answer.status_code in _REDIRECTS_OF_KEYSTONEAUTH:
            self._check(asked, urljoin(asked, answer.headers.get("location", "")))
        return answer

    def _check(self, here: str, there: str) -> None:
        if _origin(here) != _origin(there):
            raise ClientError(
                f"{_shown(here)} leads to {_shown(there)}, which gets no credentials; if that is right, {self._remedy}"
            )

    def close(self) -> None:
        self._adapter.close()


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _shown(url: str) -> str:
    """A URL without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
