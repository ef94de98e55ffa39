"""AWS: the disk's blocks straight into an EBS snapshot, and an AMI of that. Needs no bucket and no `vmimport` role.

Exactly once: the snapshot is found by its tags, which StartSnapshot sets, or started again with the same token;
the AMI is found by its name, which is unique in an account and region.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from imagebuilder.publish.awsimport import SnapshotImport
from imagebuilder.publish.base import Content, ImageName, Work, arch_of
from imagebuilder.publish.patience import patiently
from imagebuilder.publish.upload import send_blocks
from providers.aws.client import Ec2
from providers.aws.metadata import WorkerMetadata
from providers.aws.settings import AwsKeys
from providers.aws.tags import literal
from providers.base import ConfigError, InvalidRequestError, Problem, ProviderError, UnavailableError

# The one block size of the EBS direct APIs.
BLOCK = 512 << 10
GIB = 1 << 30
# Debian's words -> EC2's.
_ARCH = {"amd64": "x86_64", "arm64": "arm64"}
# EBS cancels a snapshot of its own accord when no block came for so long: nothing is left of a build that nobody
# takes up again. A build that is taken up later starts a new one.
_SNAPSHOT_MINUTES = 180
_POLL_SECONDS = 2.0
ROOT_DEVICE = "/dev/xvda"


class AwsPublisher:
    """One region of one account."""

    key = "PODVM_AMI_ID"
    latest_key = "LATEST_AMI_ID"

    def __init__(self, keys: AwsKeys) -> None:
        worker = WorkerMetadata(keys)
        self._keys = keys
        self._ec2 = Ec2(keys, worker)
        self._ebs = Ec2(keys, worker, "ebs")
        self._s3 = Ec2(keys, worker, "s3")
        self._import = SnapshotImport(self._ec2, self._s3, keys.bucket)

    @property
    def account(self) -> str:
        """The region. Clusters that share a ledger are taken to share the AWS account."""
        return f"aws/{self._ec2.region}"

    def configured(self) -> str:
        """PODVM_AMI_ID. AWS is not asked."""
        return self._keys.ami_id

    def check(self) -> None:
        """See Publisher."""
        if self._keys.image_upload == "s3" and not self._keys.bucket:
            raise ConfigError([Problem("BUCKET_NAME", "is required for CAA_AWS_IMAGE_UPLOAD=s3")])

    def publish(self, disk: Content, name: ImageName, work: Work) -> str:
        """See Publisher."""
        arch = arch_of(disk, _ARCH, "AWS")
        image = patiently(work, lambda: self._image(name))
        if image is None:
            snapshot = self._uploaded(disk, name, work)
            image = self._registered(name, snapshot, arch, work)
        work.note("ami", image["ImageId"])
        return self._available(image, work)

    def exists(self, image_id: str) -> bool:
        """See Publisher."""
        try:
            found = self._ec2.read("describe_images", {"image": image_id}, ImageIds=[image_id]).get("Images", [])
        except InvalidRequestError as error:
            if error.reason == "ImageMissing":
                return False
            raise
        return bool(found) and found[0].get("State", "available") == "available"

    def in_use(self, image_id: str) -> bool:
        """Never: an instance has its own copy of the disk."""
        return False

    def delete(self, name: ImageName, resources: Mapping[str, str]) -> None:
        """See Publisher. The AMI first, for a snapshot that an AMI stands on cannot be deleted."""
        for image in self._tagged("describe_images", "Images", name, Owners=["self"]):
            image_id = image["ImageId"]
            _unless_gone(partial(self._ec2.call, "deregister_image", {"image": image_id}, ImageId=image_id))
        for snapshot in self._tagged("describe_snapshots", "Snapshots", name, OwnerIds=["self"]):
            _unless_gone(partial(self._ec2.call, "delete_snapshot", SnapshotId=snapshot["SnapshotId"]))
        if self._keys.bucket:
            self._import.delete(name, resources)

    def close(self) -> None:
        """Close the connections."""
        self._s3.close()
        self._ec2.close()
        self._ebs.close()

    # The snapshot

    def _uploaded(self, disk: Content, name: ImageName, work: Work) -> str:
        """A completed snapshot with the disk in it."""
        if self._keys.image_upload == "s3" and not work.resources.get("snapshot"):
            return self._import.snapshot(disk, name, work, self._tags(name))
        snapshot, state = self._snapshot(disk, name, work)
        if state == "pending":
            sums = _Sums()
            count = send_blocks(disk, BLOCK, work, lambda index, data: self._put(snapshot, index, data, work), sums.add)
            work.check()
            self._complete(snapshot, count, sums.digest(), work)
        work.phase("import")
        while (state := patiently(work, lambda: self._state(snapshot))) != "completed":
            if state != "pending":
                raise UnavailableError("SnapshotLost", f"the snapshot {snapshot} is {state or 'gone'}; it is made anew")
            work.sleep(_POLL_SECONDS)
        return snapshot

    def _snapshot(self, disk: Content, name: ImageName, work: Work) -> tuple[str, str]:
        """The snapshot of this disk and its state, pending or completed; begun now if there is none that will do."""
        noted = work.resources.get("snapshot", "")
        if noted:
            state = patiently(work, lambda: self._state(noted))
            if state in ("pending", "completed"):
                return noted, state
        else:
            # Begun by a build that ended before it could write that down; it has no block yet that we know of.
            for one in patiently(work, lambda: self._tagged("describe_snapshots", "Snapshots", name)):
                if one["State"] in ("pending", "completed"):
                    work.note("snapshot", one["SnapshotId"])
                    return one["SnapshotId"], one["State"]
        work.save_blocks(b"", 0)
        token = hashlib.sha256(f"{work.token}/{noted}".encode()).hexdigest()
        started = patiently(
            work,
            lambda: self._ebs.call(
                "start_snapshot",
                VolumeSize=-(-disk.size // GIB),
                Tags=self._tags(name),
                Description=f"peer pod VM image {disk.digest}",
                ClientToken=token,
                Timeout=_SNAPSHOT_MINUTES,
            ),
        )
        work.note("snapshot", started["SnapshotId"])
        return started["SnapshotId"], "pending"

    def _put(self, snapshot: str, index: int, data: bytes, work: Work) -> None:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        patiently(
            work,
            lambda: self._ebs.call(
                "put_snapshot_block",
                SnapshotId=snapshot,
                BlockIndex=index,
                BlockData=data,
                DataLength=BLOCK,
                Checksum=checksum,
                ChecksumAlgorithm="SHA256",
            ),
        )

    def _complete(self, snapshot: str, count: int, checksum: str, work: Work) -> None:
        """EBS compares number and checksum with what it got. Asked again it refuses, for the snapshot is complete."""
        try:
            patiently(
                work,
                lambda: self._ebs.call(
                    "complete_snapshot",
                    SnapshotId=snapshot,
                    ChangedBlocksCount=count,
                    Checksum=checksum,
                    ChecksumAlgorithm="SHA256",
                    ChecksumAggregationMethod="LINEAR",
                ),
            )
        except InvalidRequestError:
            if patiently(work, lambda: self._state(snapshot)) != "completed":
                # What was sent is not what the checksum says: none of it can be trusted.
                work.save_blocks(b"", 0)
                raise

    def _state(self, snapshot: str) -> str:
        """pending, completed, error; "" when there is none."""
        wanted = [{"Name": "snapshot-id", "Values": [snapshot]}]  # by filter: absent is an answer, not an error
        found = self._ec2.read("describe_snapshots", Filters=wanted).get("Snapshots", [])
        return str(found[0]["State"]) if found else ""

    # The AMI

    def _registered(self, name: ImageName, snapshot: str, arch: str, work: Work) -> dict[str, Any]:
        work.phase("register")
        parameters: dict[str, Any] = {
            "Name": str(name),
            "Description": f"peer pod VM image {name.digest}",
            "Architecture": arch,
            "RootDeviceName": ROOT_DEVICE,
            "BlockDeviceMappings": [
                {
                    "DeviceName": ROOT_DEVICE,
                    "Ebs": {"SnapshotId": snapshot, "DeleteOnTermination": True, "VolumeType": "gp3"},
                }
            ],
            "VirtualizationType": "hvm",
            "EnaSupport": True,
            "BootMode": "uefi",
            "TpmSupport": "v2.0",
            "ImdsSupport": "v2.0",
            "TagSpecifications": [{"ResourceType": "image", "Tags": self._tags(name)}],
        }
        try:
            made = patiently(work, lambda: self._ec2.call("register_image", **parameters))
            return {"ImageId": made["ImageId"]}
        except InvalidRequestError as error:
            if error.reason != "InvalidAMINameDuplicate":
                raise
            image = patiently(work, lambda: self._image(name))  # registered by a call whose answer was lost
            if image is None:
                raise
            return image

    def _image(self, name: ImageName) -> dict[str, Any] | None:
        found = self._tagged("describe_images", "Images", name, Owners=["self"])
        return next((one for one in found if one.get("Name") == str(name)), None)

    def _available(self, image: dict[str, Any], work: Work) -> str:
        image_id = str(image["ImageId"])
        while not patiently(work, lambda: self.exists(image_id)):
            work.sleep(_POLL_SECONDS)
        return image_id

    # Tags

    def _tags(self, name: ImageName) -> list[dict[str, str]]:
        return [{"Key": key, "Value": value} for key, value in (*name.tags.items(), *self._keys.tags)]

    def _tagged(self, operation: str, key: str, name: ImageName, **parameters: Any) -> list[dict[str, Any]]:
        """What has all our tags of this image."""
        wanted = [{"Name": f"tag:{tag}", "Values": [literal(value)]} for tag, value in name.tags.items()]
        return list(self._ec2.pages(operation, key, Filters=wanted, **parameters))


class _Sums:
    """Checksums of blocks, in whatever order they come, and EBS's "linear" checksum of them all."""

    def __init__(self) -> None:
        self._sums: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def add(self, index: int, data: bytes) -> None:
        digest = hashlib.sha256(data).digest()
        with self._lock:
            self._sums[index] = digest

    def digest(self) -> str:
        joined = b"".join(self._sums[index] for index in sorted(self._sums))
        return base64.b64encode(hashlib.sha256(joined).digest()).decode()


def _unless_gone(call: Callable[[], object]) -> None:
    try:
        call()
    except ProviderError as error:
        if error.reason not in ("ImageMissing", "InvalidSnapshotNotFound"):
            raise
