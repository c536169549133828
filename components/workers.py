"""The workers that one runner manager has made through its plugin: nothing that is declared, and yet to be removed.

GitLab Runner removes them when it ends. What remains, when it was killed or its machine is gone, is removed here:
creating this resource does nothing, deleting it, after the manager, removes the servers of the manager's group.
"""

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, UpdateResult

from components.openstack_client import OpenStackProvider
from renderers.autoscaler import GROUP_KEY

_SECONDS_TO_DELETE = 300


class _WorkersProvider(OpenStackProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(str(props["group"]), dict(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        changed = [key for key in ("group", "cloud") if _olds.get(key) != _news.get(key)]
        return DiffResult(changes=bool(changed), replaces=[key for key in changed if key == "group"])

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(dict(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        with self.openstack(_props) as cloud:
            compute = cloud.compute
            workers = [server for server in compute.servers() if server.metadata.get(GROUP_KEY) == _id]
            for server in workers:
                compute.delete_server(server)
            for server in workers:
                compute.wait_for_delete(server, wait=_SECONDS_TO_DELETE)


class Workers(Resource, module="openstack", name="Workers"):
    """Deleting this removes the servers of a group.

    `cloud` is what the stack's layers say of the openstack provider.
    """

    def __init__(
        self,
        name: str,
        group: pulumi.Input[str],
        cloud: Mapping[str, str] | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(_WorkersProvider(), name, {"group": group, "cloud": cloud}, opts)
