"""Block storage: volumes."""

from collections.abc import Mapping

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
