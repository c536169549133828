"""The workers that one runner manager has made through its plugin: nothing that is declared, and yet to be removed.

GitLab Runner removes them when it ends. What remains, when it was killed or its machine is gone, is removed here:
creating this resource does nothing, deleting it, after the manager, removes the servers of the manager's group.
"""

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, Resource

from components.openstack_client import OpenStackProvider
from renderers.autoscaler import GROUP_KEY

_SECONDS_TO_DELETE = 300


class _WorkersProvider(OpenStackProvider):
    replacing = frozenset({"group"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(str(props["group"]), dict(props))

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
