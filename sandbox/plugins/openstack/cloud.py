"""The way to a cloud: configuration, authentication, endpoints and errors, which openstacksdk knows how to handle.

The SDK is imported at the first call: it takes half a second, and the official provider too authenticates only then.
"""

import os
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..common import Plugin, PluginError, Resource
from ..values import Plain

if TYPE_CHECKING:
    import openstack.connection

Document = dict[str, Any]

# The provider's configuration -> openstacksdk's (openstack.config). The rest of it is about the Go client.
AUTH_CONFIG = {
    "authUrl": "auth_url",
    "userName": "username",
    "userId": "user_id",
    "password": "password",
    "tenantName": "project_name",
    "tenantId": "project_id",
    "token": "token",
    "userDomainName": "user_domain_name",
    "userDomainId": "user_domain_id",
    "projectDomainName": "project_domain_name",
    "projectDomainId": "project_domain_id",
    "domainName": "domain_name",
    "domainId": "domain_id",
    "defaultDomain": "default_domain",
    "applicationCredentialId": "application_credential_id",
    "applicationCredentialName": "application_credential_name",
    "applicationCredentialSecret": "application_credential_secret",
}
CONNECTION_CONFIG = {
    "cloud": "cloud",
    "region": "region_name",
    "cacertFile": "cacert",
    "cert": "cert",
    "key": "key",
    "endpointType": "interface",
}


class Gone(Exception):
    """The service does not know what was asked for (404)."""


class Cloud:
    """The OpenStack services, connected at the first call."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._lock = threading.Lock()
        self._connection: openstack.connection.Connection | None = None

    @property
    def owner(self) -> tuple[str, str]:
        """Ids of the user and the project that the provider acts for."""
        connection = self._connect()
        return str(connection.current_user_id), str(connection.current_project_id)

    @property
    def region(self) -> str:
        """The region in use; empty where the cloud has none."""
        return str(self._connect().config.region_name or "")

    def call(  # noqa: PLR0913
        self,
        service: str,
        method: str,
        path: str,
        *,
        body: Document | None = None,
        microversion: str | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> Document:
        """One request to `service` (compute, network, image, block_storage or identity).

        Returns the answer's JSON object, empty where it has none.

        Raises `Gone` for 404 and the SDK's `HttpException` for other failures.
        """
        options: Document = {"microversion": microversion} if microversion else {}
        if query:
            options["params"] = query
        response = self._request(service, method, path, json=body, **options)
        if not response.content or "json" not in response.headers.get("Content-Type", ""):
            return {}
        answer = response.json()
        return answer if isinstance(answer, dict) else {}

    def objects(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """One request to Swift, which tells everything by headers; the answer's."""
        answered: Mapping[str, str] = self._request("object_store", method, path, headers=headers).headers
        return answered

    def listing(self, service: str, path: str, **query: Any) -> list[Document]:
        """The answer to a GET that is a JSON list."""
        answer: list[Document] = self._request(service, "GET", path, params=query).json()
        return answer

    def _request(self, service: str, method: str, path: str, **options: Any) -> Any:
        from openstack import exceptions  # noqa: PLC0415

        response = getattr(self._connect(), service).request(path, method, **options)
        try:
            exceptions.raise_from_response(response)
        except exceptions.NotFoundException as error:
            raise Gone(message_of(error)) from error
        return response

    def compute(
        self, method: str, path: str, body: Document | None = None, microversion: str | None = None
    ) -> Document:
        """One request to Nova."""
        return self.call("compute", method, path, body=body, microversion=microversion)

    def network(self, method: str, path: str, body: Document | None = None, **query: Any) -> Document:
        """One request to Neutron."""
        return self.call("network", method, path, body=body, query=query)

    def volume(self, method: str, path: str, body: Document | None = None, microversion: str | None = None) -> Document:
        """One request to Cinder."""
        return self.call("block_storage", method, path, body=body, microversion=microversion)

    def network_named(self, name: str) -> Document:
        """The one network of that name."""
        found: list[Document] = self.network("GET", "/networks", name=name)["networks"]
        return only(found, f"network named {name!r}")

    def _connect(self) -> "openstack.connection.Connection":
        with self._lock:
            if self._connection is None:
                self._connection = self._new_connection()
            return self._connection

    def _new_connection(self) -> "openstack.connection.Connection":
        import openstack  # noqa: PLC0415

        config = self._plugin.config
        options: Document = {CONNECTION_CONFIG[key]: value for key, value in config.items() if key in CONNECTION_CONFIG}
        auth = {AUTH_CONFIG[key]: value for key, value in config.items() if key in AUTH_CONFIG}
        if auth:
            options["auth"] = auth
        if config.get("insecure"):
            options["verify"] = False
        for service, url in config.get("endpointOverrides", {}).items():
            options[f"{service}_endpoint_override"] = url
        if not os.environ.get("OS_AUTH_TYPE") and "cloud" not in options:
            # gophercloud finds out by itself which way of authentication the credentials are for.
            if "application_credential_secret" in auth or os.environ.get("OS_APPLICATION_CREDENTIAL_SECRET"):
                options["auth_type"] = "v3applicationcredential"
            elif "token" in auth or os.environ.get("OS_TOKEN"):
                options["auth_type"] = "v3token"
        return openstack.connect(**options)


class CloudResource(Resource):
    """A resource in the cloud."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud


def given(**members: Any) -> Document:
    """The members that have a value."""
    return {name: value for name, value in members.items() if value not in (None, [], {})}


def snake(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter.group().lower()}", name)


def tags_of(state: Plain, tags: list[str]) -> Plain:
    """All tags as an output; of the program's own those that are there, as no others are its concern."""
    wanted = state.get("tags") if state else tags
    return {"allTags": sorted(tags), "tags": None if wanted is None else [tag for tag in wanted if tag in tags]}


def only(found: list[Document], what: str) -> Document:
    if len(found) != 1:
        raise PluginError(f"there is no {what}" if not found else f"there are {len(found)} candidates: {what}")
    return found[0]


def message_of(error: Exception) -> str:
    """What an HTTP error says, with the service's own explanation."""
    details = getattr(error, "details", None)
    return f"{error}" if not details or str(details) in str(error) else f"{error}: {details}"
