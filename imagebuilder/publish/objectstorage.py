"""Object storage as S3 clients speak it: a file as one object, in parts that are sent once.

Unlike an EBS snapshot an unfinished upload can be read: the storage says which parts it has, with the checksum of each.
So nothing is written down here but the upload's id.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from imagebuilder.publish.base import Work
from imagebuilder.publish.patience import patiently

# Parts may be from 5 MiB on, and at most 10,000: this is for 80 GiB, and costs little memory in parallel.
PART = 8 << 20
SENDERS = 8


class Storage(Protocol):
    """Calls of an S3 client by their names, with the provider contract's errors."""

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]: ...


class Upload:
    """One object. `note` of `Work` keeps the id of the upload under "upload"."""

    def __init__(self, storage: Storage, bucket: str, key: str) -> None:
        self._storage = storage
        self._place = {"Bucket": bucket, "Key": key}

    def send(self, path: Path, work: Work, is_gone: Callable[[Exception], bool]) -> None:
        """Send the file, or what is missing of it. `is_gone` knows the error for an upload or object that is not there.

        An object that is there whole is sent again only by who asks: its content cannot be told from here.
        """
        upload, there = self._begun(work, is_gone)
        size = path.stat().st_size
        numbers = range(1, -(-size // PART) + 1)
        work.phase("upload", size, sum(1 for number in numbers if number in there) * PART)
        progress = _Progress(work)

        def part(number: int) -> dict[str, Any]:
            work.check()
            with path.open("rb") as file:
                file.seek((number - 1) * PART)
                data = file.read(PART)
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()  # what S3 makes of a part
            if there.get(number) != digest:
                sent = patiently(
                    work,
                    lambda: self._storage.call(
                        "upload_part", **self._place, UploadId=upload, PartNumber=number, Body=data
                    ),
                )
                digest = str(sent["ETag"]).strip('"')
            progress.add(len(data))
            return {"PartNumber": number, "ETag": f'"{digest}"'}

        with ThreadPoolExecutor(SENDERS, thread_name_prefix="upload") as pool:
            try:
                parts = list(pool.map(part, numbers))
            except BaseException:  # also when this process is told to end
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        work.check()
        patiently(
            work,
            lambda: self._storage.call(
                "complete_multipart_upload", **self._place, UploadId=upload, MultipartUpload={"Parts": parts}
            ),
        )
        work.note("upload", "")

    def delete(self, resources: Mapping[str, str], is_gone: Callable[[Exception], bool]) -> None:
        """Remove the object, and every unfinished upload of it. Absent is done."""
        listed = self._storage.call(
            "list_multipart_uploads", Bucket=self._place["Bucket"], Prefix=self._place["Key"]
        ).get("Uploads", [])
        uploads = {one["UploadId"] for one in listed if one["Key"] == self._place["Key"]}
        for upload in uploads | ({resources["upload"]} if resources.get("upload") else set()):
            self._unless_gone("abort_multipart_upload", is_gone, UploadId=upload)
        self._unless_gone("delete_object", is_gone)

    def _unless_gone(self, operation: str, is_gone: Callable[[Exception], bool], **more: str) -> None:
        try:
            self._storage.call(operation, **self._place, **more)
        except Exception as error:
            if not is_gone(error):
                raise

    def _begun(self, work: Work, is_gone: Callable[[Exception], bool]) -> tuple[str, dict[int, str]]:
        """The upload's id, and the parts that it has: number -> MD5."""
        noted = work.resources.get("upload", "")
        if noted:
            try:
                return noted, patiently(work, lambda: self._parts(noted))
            except Exception as error:
                if not is_gone(error):
                    raise
        upload = str(patiently(work, lambda: self._storage.call("create_multipart_upload", **self._place))["UploadId"])
        work.note("upload", upload)
        return upload, {}

    def _parts(self, upload: str) -> dict[int, str]:
        found: dict[int, str] = {}
        after = 0
        while True:
            page = self._storage.call("list_parts", **self._place, UploadId=upload, PartNumberMarker=after)
            found |= {int(one["PartNumber"]): str(one["ETag"]).strip('"') for one in page.get("Parts", [])}
            if not page.get("IsTruncated"):
                return found
            after = int(page["NextPartNumberMarker"])


class _Progress:
    def __init__(self, work: Work) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._done = 0

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._work.progress(self._done)
