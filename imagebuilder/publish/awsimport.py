"""AWS by way of S3: the disk as an object, which EC2's ImportSnapshot makes a snapshot of.

For where the EBS direct APIs may not be used. Needs a bucket and the role `vmimport`, and sends holes as well.

The task's client token makes it one, and the task names its snapshot, which is tagged when it is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagebuilder.publish.base import Content, ImageName, Work
from imagebuilder.publish.objectstorage import Upload
from imagebuilder.publish.patience import patiently
from providers.aws.client import Ec2
from providers.base import InvalidRequestError, ProviderError

_POLL_SECONDS = 15.0
_GONE = frozenset({"NoSuchUpload", "NoSuchKey"})


class SnapshotImport:
    """Imports into one region, from one bucket."""

    def __init__(self, ec2: Ec2, s3: Ec2, bucket: str) -> None:
        self._ec2 = ec2
        self._s3 = s3
        self._bucket = bucket

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """A call of S3. Raises ProviderError."""
        return self._s3.call(operation, {"bucket": self._bucket}, **parameters)

    def snapshot(self, disk: Content, name: ImageName, work: Work, tags: list[dict[str, str]]) -> str:
        """A completed snapshot with the disk in it. Raises ProviderError."""
        task = work.resources.get("task", "")
        if not task:
            if not work.resources.get("object"):
                self._object(name).send(disk.path, work, _is_gone)
                work.note("object", _key(name))
            task = self._begin(name, work)
        work.phase("import")
        snapshot = self._wait(task, work)
        patiently(work, lambda: self._ec2.call("create_tags", Resources=[snapshot], Tags=tags))
        work.note("snapshot", snapshot)
        work.note("task", "")
        patiently(work, lambda: self._object(name).delete({}, _is_gone))
        work.note("object", "")
        return snapshot

    def delete(self, name: ImageName, resources: Mapping[str, str]) -> None:
        """Remove the object, and what a task made that nobody tagged. Absent is done."""
        task = self._task(resources["task"]) if resources.get("task") else {}
        if task.get("SnapshotId"):
            self._ec2.call("delete_snapshot", SnapshotId=task["SnapshotId"])
        elif task.get("Status") == "active":
            self._ec2.call("cancel_import_task", ImportTaskId=resources["task"])
        self._object(name).delete(resources, _is_gone)

    def _begin(self, name: ImageName, work: Work) -> str:
        place = {"S3Bucket": self._bucket, "S3Key": _key(name)}
        begun = patiently(
            work,
            lambda: self._ec2.call(
                "import_snapshot",
                ClientToken=work.token,
                Description=f"peer pod VM image {name.digest}",
                DiskContainer={"Format": "RAW", "UserBucket": place},
            ),
        )
        task = str(begun["ImportTaskId"])
        work.note("task", task)
        return task

    def _wait(self, task: str, work: Work) -> str:
        while True:
            found = patiently(work, lambda: self._task(task))
            match found.get("Status"):
                case "completed":
                    return str(found["SnapshotId"])
                case "active":
                    work.sleep(_POLL_SECONDS)
                case status:
                    said = found.get("StatusMessage", "")
                    raise InvalidRequestError("ImportFailed", f"AWS did not import the disk: {status or 'gone'} {said}")

    def _task(self, task: str) -> dict[str, Any]:
        found = self._ec2.read("describe_import_snapshot_tasks", ImportTaskIds=[task]).get("ImportSnapshotTasks", [])
        return dict(found[0].get("SnapshotTaskDetail", {})) if found else {}

    def _object(self, name: ImageName) -> Upload:
        return Upload(self, self._bucket, _key(name))


def _key(name: ImageName) -> str:
    return f"{name.label}.raw"


def _is_gone(error: Exception) -> bool:
    return isinstance(error, ProviderError) and error.reason in _GONE
