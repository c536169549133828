"""Storage: volumes, containers of the object store, and the credentials of its S3 API."""

from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import quote

from ..common import PluginError, Work
from ..difference import Change
from ..facts import Habits
from ..values import Plain
from .cloud import CloudResource, Document, Gone, given

# From here on Cinder lets a volume grow while it is attached.
ONLINE_EXTEND = "3.42"


class Volume(CloudResource):
    """`openstack.blockstorage.Volume`: a disk that servers can be given."""

    token = "openstack:blockstorage/volume:Volume"
    habits = Habits(
        auto_name=True,
        defaults={"volumeRetypePolicy": "never"},
        sets=frozenset({"attachments", "schedulerHints"}),
        refused=frozenset({"schedulerHints", "backupId", "consistencyGroupId", "sourceReplica"}),
    )

    def create(self, wanted: Plain, work: Work) -> None:
        request = given(
            size=wanted["size"],
            name=wanted["name"],
            description=wanted.get("description"),
            availability_zone=wanted.get("availabilityZone"),
            metadata=wanted.get("metadata"),
            volume_type=wanted.get("volumeType"),
            imageRef=wanted.get("imageId"),
            snapshot_id=wanted.get("snapshotId"),
            source_volid=wanted.get("sourceVolId"),
        )
        volume = self.cloud.volume("POST", "/volumes", {"volume": request})["volume"]
        work.made(volume["id"])
        self._reach(volume["id"], {"available"}, {"downloading", "creating"}, work)

    def read(self, id: str, state: Plain) -> Plain | None:
        try:
            volume = self._get(id)
        except Gone:
            return None
        return {
            "name": volume["name"],
            "description": volume.get("description"),
            "size": volume["size"],
            "availabilityZone": volume["availability_zone"],
            "volumeType": volume["volume_type"],
            "metadata": volume["metadata"],
            "snapshotId": volume.get("snapshot_id"),
            "sourceVolId": volume.get("source_volid"),
            "region": self.cloud.region,
            "attachments": [
                {"id": each["id"], "instanceId": each["server_id"], "device": each["device"]}
                for each in volume["attachments"]
            ],
        }

    def update(self, id: str, state: Plain, wanted: Plain, changes: Mapping[str, Change], work: Work) -> None:
        if "size" in changes:
            self._extend(id, wanted, work)
        if "volumeType" in changes:
            retype = {"new_type": wanted["volumeType"], "migration_policy": wanted.get("volumeRetypePolicy", "never")}
            self.cloud.volume("POST", f"/volumes/{id}/action", {"os-retype": retype})
            self._reach(id, {"available", "in-use"}, {"retyping"}, work)
        request: Document = {"name": wanted["name"], "description": wanted.get("description", "")}
        if "metadata" in changes:
            request["metadata"] = wanted.get("metadata", {})
        self.cloud.volume("PUT", f"/volumes/{id}", {"volume": request})

    def _extend(self, id: str, wanted: Plain, work: Work) -> None:
        microversion = None
        if self._get(id)["status"] == "in-use":
            if not wanted.get("enableOnlineResize"):
                raise PluginError(
                    f"volume {id} is attached to the instance and resizing online is disabled, "
                    "see enable_online_resize option"
                )
            microversion = ONLINE_EXTEND
        extend = {"os-extend": {"new_size": wanted["size"]}}
        self.cloud.volume("POST", f"/volumes/{id}/action", extend, microversion)
        self._reach(id, {"available", "in-use"}, {"extending"}, work)

    def delete(self, id: str, state: Plain, work: Work) -> None:
        from openstack import exceptions  # noqa: PLC0415

        try:
            volume = self._get(id)
            for attachment in volume["attachments"]:
                try:
                    self.cloud.compute("DELETE", f"/servers/{attachment['server_id']}/os-volume_attachments/{id}")
                except (Gone, exceptions.ConflictException):
                    continue
            if volume["attachments"]:
                self._reach(id, {"available"}, {"in-use", "attaching", "detaching"}, work)
            if volume["status"] != "deleting":
                self.cloud.volume("DELETE", f"/volumes/{id}")
            self._reach(id, set(), {"deleting", "downloading", "available"}, work)
        except Gone:
            return

    def _get(self, id: str) -> Document:
        volume: Document = self.cloud.volume("GET", f"/volumes/{id}")["volume"]
        return volume

    def _reach(self, id: str, targets: set[str], passing: set[str], work: Work) -> None:
        """Wait for a status; `passing` are those on the way. Raises `Gone` when there is no such volume any more."""

        def look() -> str | None:
            status = str(self._get(id)["status"])
            if status in targets:
                return status
            if status not in passing:
                raise PluginError(f"volume {id} is {status}, and not on its way to {' or '.join(targets) or 'its end'}")
            return None

        work.wait(f"volume {id} to become {' or '.join(sorted(targets)) or 'gone'}", look)


class Container(CloudResource):
    """`openstack.objectstorage.Container`: a bucket, as S3 has it."""

    token = "openstack:objectstorage/container:Container"
    habits = Habits(
        auto_name=True,
        defaults={"forceDestroy": False, "versioning": False},
        replaces=frozenset({"name"}),
        refused=frozenset({"versioning", "versioningLegacy", "containerSyncTo", "containerSyncKey"}),
    )
    headers: ClassVar[Mapping[str, str]] = {"containerRead": "X-Container-Read", "containerWrite": "X-Container-Write"}

    def create(self, wanted: Plain, work: Work) -> None:
        policy = {"X-Storage-Policy": wanted["storagePolicy"]} if "storagePolicy" in wanted else {}
        self.cloud.objects("PUT", self._path(wanted["name"]), self._request(wanted) | policy)
        work.made(wanted["name"])

    def read(self, id: str, state: Plain) -> Plain | None:
        try:
            headers = self.cloud.objects("HEAD", self._path(id))
        except Gone:
            return None
        # The official provider does not read metadata back.
        return {
            "name": id,
            "storagePolicy": headers.get("X-Storage-Policy", ""),
            "storageClass": headers.get("X-Storage-Class", ""),
            "region": self.cloud.region,
            **{name: headers[header] for name, header in self.headers.items() if headers.get(header)},
        }

    def update(self, id: str, state: Plain, wanted: Plain, changes: Mapping[str, Change], work: Work) -> None:
        gone = state.get("metadata", {}).keys() - wanted.get("metadata", {}).keys()
        removed = {f"X-Container-Meta-{key}": "" for key in gone}
        headers = {header: wanted.get(name, "") for name, header in self.headers.items()}
        self.cloud.objects("POST", self._path(id), self._request(wanted) | removed | headers)

    def delete(self, id: str, state: Plain, work: Work) -> None:
        from openstack import exceptions  # noqa: PLC0415

        try:
            self.cloud.objects("DELETE", self._path(id))
        except Gone:
            return
        except exceptions.ConflictException:
            if not state.get("forceDestroy"):
                raise
            for thing in self.cloud.listing("object_store", self._path(id), format="json"):
                self.cloud.objects("DELETE", f"{self._path(id)}/{quote(thing['name'])}")
            self.delete(id, state, work)

    def _request(self, wanted: Plain) -> dict[str, str]:
        kept = {header: wanted[name] for name, header in self.headers.items() if name in wanted}
        return kept | {f"X-Container-Meta-{key}": value for key, value in wanted.get("metadata", {}).items()}

    @staticmethod
    def _path(name: str) -> str:
        return f"/{quote(name, safe='')}"


class Ec2Credential(CloudResource):
    """`openstack.identity.Ec2CredentialV3`: an access key and its secret, as S3 wants them."""

    token = "openstack:identity/ec2CredentialV3:Ec2CredentialV3"
    unchangeable = True

    def create(self, wanted: Plain, work: Work) -> None:
        _, project = self.cloud.owner
        body = {"tenant_id": wanted.get("projectId", project)}
        work.made(self.cloud.call("identity", "POST", self._path(wanted), body=body)["credential"]["access"])

    def read(self, id: str, state: Plain) -> Plain | None:
        try:
            found = self.cloud.call("identity", "GET", f"{self._path(state)}/{id}")["credential"]
        except Gone:
            return None
        return {
            "access": found["access"],
            "secret": found["secret"],
            "userId": found["user_id"],
            "projectId": found["tenant_id"],
            "trustId": found.get("trust_id") or "",
            "region": self.cloud.region,
        }

    def delete(self, id: str, state: Plain, work: Work) -> None:
        try:
            self.cloud.call("identity", "DELETE", f"{self._path(state)}/{id}")
        except Gone:
            return

    def _path(self, properties: Plain) -> str:
        return f"/users/{properties.get('userId') or self.cloud.owner[0]}/credentials/OS-EC2"
