"""The openstack plugin: its resource types and look-ups."""

import re
from collections.abc import Mapping

from ..common import Function, Plugin, PluginError, Resource
from ..values import Plain
from .cloud import Cloud, Gone, given, message_of, only
from .compute import Instance, Keypair, ServerGroup
from .identity import ApplicationCredential
from .networking import FloatingIp, FloatingIpAssociate, Port, SecGroup, SecGroupRule
from .storage import Container, Ec2Credential, Volume

# The members of an image in Glance's API that are not its free properties.
IMAGE_MEMBERS = frozenset(
    {
        "id",
        "name",
        "status",
        "visibility",
        "checksum",
        "container_format",
        "disk_format",
        "created_at",
        "updated_at",
        "owner",
        "self",
        "file",
        "schema",
        "os_hash_algo",
        "os_hash_value",
        "direct_url",
    }
)


class OpenStack(Plugin):
    """The plugin."""

    name = "openstack"

    def __init__(self) -> None:
        self.cloud = Cloud(self)
        super().__init__()

    def resources(self) -> list[Resource]:
        """Compute, storage, networking, and who may use what is stored."""
        return [
            kind(self.cloud)
            for kind in (
                Keypair,
                ServerGroup,
                Instance,
                Volume,
                Container,
                Ec2Credential,
                ApplicationCredential,
                SecGroup,
                SecGroupRule,
                Port,
                FloatingIp,
                FloatingIpAssociate,
            )
        ]

    def functions(self) -> Mapping[str, Function]:
        """Networks, images and flavors."""
        return {
            "openstack:networking/getNetwork:getNetwork": self.get_network,
            "openstack:images/getImage:getImage": self.get_image,
            "openstack:compute/getFlavor:getFlavor": self.get_flavor,
        }

    def connect(self) -> None:
        """Authentication waits for the first call, as it does in the official provider by default."""
        if self.config.get("swauth"):
            raise PluginError("swauth is not implemented by the stand-in for the official openstack plugin")

    def explain(self, error: Exception) -> str | None:
        """Errors of openstacksdk, keystoneauth and the connection."""
        import requests  # noqa: PLC0415
        from keystoneauth1.exceptions import ClientException  # noqa: PLC0415
        from openstack.exceptions import SDKException  # noqa: PLC0415

        if isinstance(error, SDKException):
            return message_of(error)
        if isinstance(error, (Gone, ClientException, requests.RequestException)):
            return str(error)
        return None

    def get_network(self, arguments: Plain) -> Plain:
        """The one network that fits the arguments."""
        query = given(
            id=arguments.get("networkId"),
            name=arguments.get("name"),
            description=arguments.get("description"),
            status=arguments.get("status"),
            project_id=arguments.get("tenantId"),
            mtu=arguments.get("mtu"),
            tags=",".join(arguments.get("tags", [])) or None,
        )
        if "external" in arguments:
            query["router:external"] = arguments["external"]
        found = self.cloud.network("GET", "/networks", **query)["networks"]
        if cidr := arguments.get("matchingSubnetCidr"):
            subnets = self.cloud.network("GET", "/subnets", cidr=cidr)["subnets"]
            found = [item for item in found if item["id"] in {subnet["network_id"] for subnet in subnets}]
        network = only(found, "network that fits the query")
        return {
            "id": network["id"],
            "networkId": network["id"],
            "name": network["name"],
            "description": network.get("description", ""),
            # The official look-up has these two as texts.
            "adminStateUp": str(network["admin_state_up"]).lower(),
            "shared": str(network["shared"]).lower(),
            "external": network.get("router:external", False),
            "status": network["status"],
            "mtu": network.get("mtu", 0),
            "dnsDomain": network.get("dns_domain") or "",
            "tenantId": network.get("tenant_id", network.get("project_id", "")),
            "availabilityZoneHints": network.get("availability_zone_hints", []),
            "allTags": network.get("tags", []),
            "subnets": network.get("subnets", []),
            "segments": [],
            "transparentVlan": bool(network.get("vlan_transparent")),
            "region": self.cloud.region,
        }

    def get_image(self, arguments: Plain) -> Plain:
        """The one image that fits the arguments, or the newest one with `mostRecent`."""
        query = given(
            name=arguments.get("name"),
            visibility=arguments.get("visibility"),
            owner=arguments.get("owner"),
            status="active",
            member_status=arguments.get("memberStatus"),
            container_format=arguments.get("containerFormat"),
            disk_format=arguments.get("diskFormat"),
            size_min=arguments.get("sizeMin"),
            size_max=arguments.get("sizeMax"),
            tag=arguments.get("tags") or arguments.get("tag"),
        )
        if arguments.get("hidden"):
            query["os_hidden"] = True
        query["sort"] = arguments.get("sort", "name:asc")
        found = self.cloud.call("image", "GET", "/images", query=query)["images"]
        properties = arguments.get("properties", {})
        pattern = re.compile(arguments.get("nameRegex", ""))
        found = [
            image
            for image in found
            if pattern.search(image["name"]) and all(image.get(key) == value for key, value in properties.items())
        ]
        if arguments.get("mostRecent") and found:
            found = [max(found, key=lambda image: str(image["created_at"]))]
        image = only(found, "image that fits the query")
        return {
            "id": image["id"],
            "name": image["name"],
            "checksum": image.get("checksum") or "",
            "containerFormat": image.get("container_format") or "",
            "diskFormat": image.get("disk_format") or "",
            "createdAt": image["created_at"],
            "updatedAt": image["updated_at"],
            "file": image.get("file", ""),
            "schema": image.get("schema", ""),
            "owner": image.get("owner") or "",
            "minDiskGb": image.get("min_disk", 0),
            "minRamMb": image.get("min_ram", 0),
            "protected": image.get("protected", False),
            "sizeBytes": image.get("size") or 0,
            "tags": image.get("tags", []),
            "visibility": image.get("visibility", ""),
            "metadata": {},
            "properties": {
                key: value for key, value in image.items() if isinstance(value, str) and key not in IMAGE_MEMBERS
            },
            "region": self.cloud.region,
        }

    def get_flavor(self, arguments: Plain) -> Plain:
        """The one flavor that fits the arguments."""
        flavors = (
            [self.cloud.compute("GET", f"/flavors/{arguments['flavorId']}")["flavor"]]
            if "flavorId" in arguments
            else self.cloud.compute("GET", "/flavors/detail")["flavors"]
        )
        equal = {"name": "name", "description": "description", "ram": "ram", "vcpus": "vcpus", "disk": "disk"}
        equal |= {"swap": "swap", "rxTxFactor": "rxtx_factor"}
        least = {"minRam": "ram", "minDisk": "disk"}
        found = [
            flavor
            for flavor in flavors
            if all((flavor.get(member) or 0) == arguments[name] for name, member in equal.items() if name in arguments)
            and all(flavor[member] >= arguments[name] for name, member in least.items() if name in arguments)
        ]
        flavor = only(found, "flavor that fits the query")
        return {
            "id": flavor["id"],
            "flavorId": flavor["id"],
            "name": flavor["name"],
            "description": flavor.get("description") or "",
            "ram": flavor["ram"],
            "vcpus": flavor["vcpus"],
            "disk": flavor["disk"],
            "swap": flavor.get("swap") or 0,
            "rxTxFactor": flavor.get("rxtx_factor", 1.0),
            "isPublic": flavor.get("os-flavor-access:is_public", True),
            "extraSpecs": self.cloud.compute("GET", f"/flavors/{flavor['id']}/os-extra_specs").get("extra_specs", {}),
            "region": self.cloud.region,
        }
