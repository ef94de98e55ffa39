"""AMIs as EC2 keeps them: what RegisterImage was told, a name for each, standing on a snapshot that is complete."""

from __future__ import annotations

from typing import Any

from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.models.amis import Ami
from moto.ec2.responses import EC2Response
from moto.ec2.utils import random_ami_id
from moto.s3.exceptions import S3ClientError as ClientError
from moto.s3.models import s3_backends

from tests.clouds.aws.errors import Ec2Error


class EmulatedImage(Ami):
    """moto gives every image a snapshot of its own, and forgets most of what it was told."""

    def __init__(self, backend: Any, image_id: str, told: dict[str, Any]) -> None:
        super().__init__(backend, image_id, name=told["Name"], description=told.get("Description", ""))
        del backend.snapshots[self.ebs_snapshot.id]
        self.architecture = told.get("Architecture", "i386")
        self.virtualization_type = told.get("VirtualizationType", "paravirtual")
        self.root_device_name = told.get("RootDeviceName", "/dev/sda1")
        self.root_device_type = "ebs"
        self.boot_mode = told.get("BootMode", "legacy-bios")
        self.tpm_support = told.get("TpmSupport")
        self.imds_support = told.get("ImdsSupport")
        self.ena_support = str(told.get("EnaSupport", "")).lower() == "true"
        self.mappings = told.get("BlockDeviceMappings", [])
        self.ebs_snapshot = backend.snapshots[snapshot_of(self.mappings)]
        self.ebs_snapshot.from_ami = image_id

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        mapping = self.mappings[0]
        own = {"SnapshotId": self.ebs_snapshot.id, "VolumeSize": self.ebs_snapshot.volume_size, "Encrypted": False}
        return [{"DeviceName": mapping["DeviceName"], "Ebs": {**mapping["Ebs"], **own}}]


def snapshot_of(mappings: list[dict[str, Any]]) -> str:
    """The snapshot of the first block device."""
    return str(mappings[0].get("Ebs", {}).get("SnapshotId", "")) if mappings else ""


def register_image(call: EC2Response) -> ActionResult:
    """Check what EC2 checks, and keep all of it."""
    call.error_on_dryrun()
    backend: Any = call.ec2_backend
    names = ("Name", "Description", "Architecture", "VirtualizationType", "RootDeviceName", "BootMode")
    told = {name: call._get_param(name) for name in (*names, "TpmSupport", "ImdsSupport", "EnaSupport")}
    told = {name: value for name, value in told.items() if value is not None}
    told["BlockDeviceMappings"] = call._get_param("BlockDeviceMappings", [])
    taken = next((image.id for image in backend.amis.values() if image.name == told["Name"]), None)
    if taken is not None:
        raise Ec2Error("InvalidAMIName.Duplicate", f"AMI name {told['Name']} is already in use by AMI {taken}")
    snapshot = backend.snapshots.get(snapshot_of(told["BlockDeviceMappings"]))
    if snapshot is None:
        raise Ec2Error("InvalidSnapshot.NotFound", "The snapshot does not exist.")
    if snapshot.status != "completed":
        raise Ec2Error("InvalidSnapshot.NotCompleted", f"Snapshot {snapshot.id} is in '{snapshot.status}' state.")
    image = EmulatedImage(backend, random_ami_id(), told)
    image.add_tags(call._parse_tag_specification().get("image", {}))
    backend.amis[image.id] = image
    return ActionResult({"ImageId": image.id})


class Imports:
    """ImportSnapshot: a snapshot of an object, one for each client token."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, str] = {}

    def import_snapshot(self, call: EC2Response) -> ActionResult:
        """The task is over at once."""
        token = call._get_param("ClientToken") or ""
        if token and token in self.tokens:
            return ActionResult({"ImportTaskId": self.tokens[token]})
        container = call._get_param("DiskContainer", {})
        place = container["UserBucket"]
        try:
            key = s3_backends[call.current_account]["aws"].get_object(place["S3Bucket"], place["S3Key"])
        except ClientError:
            key = None
        if key is None or container["Format"] != "RAW":
            raise Ec2Error("InvalidParameter", "The given S3 object is not there, or its format is not known.")
        backend: Any = call.ec2_backend
        volume = backend.create_volume(size=max(1, -(-key.size >> 30)), zone_name=f"{call.region}a")
        snapshot = backend.create_snapshot(volume.id, "imported")
        backend.volumes.pop(volume.id)
        task = f"import-snap-{len(self.tasks):017x}"
        detail = {"Status": "completed", "SnapshotId": snapshot.id, "DiskImageSize": float(key.size), "Format": "RAW"}
        self.tasks[task] = {"ImportTaskId": task, "SnapshotTaskDetail": detail}
        self.tokens[token] = task
        return ActionResult({"ImportTaskId": task, "SnapshotTaskDetail": detail})

    def describe(self, call: EC2Response) -> ActionResult:
        """Those that are named."""
        ids = call._get_param("ImportTaskIds", [])
        return ActionResult({"ImportSnapshotTasks": [self.tasks[one] for one in ids if one in self.tasks]})


def deregister_image(call: EC2Response) -> ActionResult:
    """The snapshot stays, and nothing stands on it any more."""
    call.error_on_dryrun()
    backend: Any = call.ec2_backend
    image_id = call._get_param("ImageId")
    image = backend.amis.get(image_id)
    backend.deregister_image(image_id)
    if isinstance(image, EmulatedImage):
        image.ebs_snapshot.from_ami = None
    return EmptyResult()
