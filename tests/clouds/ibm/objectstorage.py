"""Object storage as S3 clients speak it: buckets, objects, multipart uploads.

Path style, below /cos. No signature is checked.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

PREFIX = "/cos"
_PART = re.compile(r"<PartNumber>\s*(\d+)\s*</PartNumber>")
_XML = {"Content-Type": "application/xml"}


@dataclass
class Answer:
    """Of one request."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Buckets:
    """Everything in memory; asked with the emulator's one lock held."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[str, bytes]] = {}
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._numbers = itertools.count(1)
        self._names: dict[str, tuple[str, str]] = {}
        self.parts_put: Counter[tuple[str, int]] = Counter()

    def content(self, bucket: str, key: str) -> bytes | None:
        """None when there is no such object."""
        return self._buckets.get(bucket, {}).get(key)

    def counters(self) -> dict[str, int]:
        """What is left there."""
        objects = sum(len(bucket) for bucket in self._buckets.values())
        again = sum(count - 1 for count in self.parts_put.values())
        return {
            "buckets": len(self._buckets),
            "objects": objects,
            "uploads": len(self._uploads),
            "parts": len(self.parts_put),
            "parts_again": again,
        }

    def handle(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Answer:
        """One request; `path` is below /cos."""
        bucket, _, key = path.lstrip("/").partition("/")
        if not bucket:
            names = "".join(f"<Bucket><Name>{escape(name)}</Name></Bucket>" for name in self._buckets)
            return _xml("ListAllMyBucketsResult", f"<Buckets>{names}</Buckets>")
        if not key and "uploads" in query:
            return self._list_uploads(bucket, query.get("prefix", ""))
        if not key:
            return self._bucket(method, bucket, query)
        if bucket not in self._buckets:
            return _error(404, "NoSuchBucket")
        if "uploads" in query or "uploadId" in query:
            return self._upload(method, bucket, key, query, body)
        return self._object(method, self._buckets[bucket], key, body)

    def _bucket(self, method: str, bucket: str, query: Mapping[str, str]) -> Answer:
        if method == "PUT":
            self._buckets.setdefault(bucket, {})
            return Answer(200)
        if bucket not in self._buckets:
            return _error(404, "NoSuchBucket")
        if method == "DELETE":
            if self._buckets[bucket]:
                return _error(409, "BucketNotEmpty")
            del self._buckets[bucket]
            return Answer(204)
        if method == "HEAD":
            return Answer(200)
        prefix = query.get("prefix", "")
        found = sorted(key for key in self._buckets[bucket] if key.startswith(prefix))
        listed = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self._buckets[bucket][key])}</Size></Contents>"
            for key in found
        )
        head = f"<Name>{escape(bucket)}</Name><KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
        return _xml("ListBucketResult", head + listed)

    def _object(self, method: str, bucket: dict[str, bytes], key: str, body: bytes) -> Answer:
        if method == "PUT":
            bucket[key] = body
            return Answer(200, headers={"ETag": _etag(body)})
        if method == "DELETE":
            bucket.pop(key, None)
            return Answer(204)
        if key not in bucket:
            return _error(404, "NoSuchKey")
        headers = {"ETag": _etag(bucket[key]), "Content-Type": "application/octet-stream"}
        return Answer(200, bucket[key], headers)

    def _list_uploads(self, bucket: str, prefix: str) -> Answer:
        listed = "".join(
            f"<Upload><Key>{escape(key)}</Key><UploadId>{upload}</UploadId></Upload>"
            for upload, (place, key) in self._names.items()
            if place == bucket and key.startswith(prefix) and upload in self._uploads
        )
        return _xml("ListMultipartUploadsResult", f"<IsTruncated>false</IsTruncated>{listed}")

    def _upload(self, method: str, bucket: str, key: str, query: Mapping[str, str], body: bytes) -> Answer:
        if "uploads" in query:
            upload = f"upload-{next(self._numbers)}"
            self._uploads[upload] = {}
            self._names[upload] = (bucket, key)
            parts = f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"
            return _xml("InitiateMultipartUploadResult", parts)
        parts_so_far = self._uploads.get(query["uploadId"])
        if parts_so_far is None:
            return _error(404, "NoSuchUpload")
        if method == "GET":
            listed = "".join(
                f"<Part><PartNumber>{number}</PartNumber><ETag>{_etag(part)}</ETag><Size>{len(part)}</Size></Part>"
                for number, part in sorted(parts_so_far.items())
            )
            return _xml("ListPartsResult", f"<IsTruncated>false</IsTruncated>{listed}")
        if method == "PUT":
            self.parts_put[query["uploadId"], int(query["partNumber"])] += 1
            parts_so_far[int(query["partNumber"])] = body
            return Answer(200, headers={"ETag": _etag(body)})
        del self._uploads[query["uploadId"]]
        if method == "DELETE":
            return Answer(204)
        numbers = [int(number) for number in _PART.findall(body.decode())]
        if any(number not in parts_so_far for number in numbers):
            return _error(400, "InvalidPart")
        whole = b"".join(parts_so_far[number] for number in numbers)
        self._buckets[bucket][key] = whole
        return _xml("CompleteMultipartUploadResult", f"<Key>{escape(key)}</Key><ETag>{_etag(whole)}</ETag>")


def unchunked(body: bytes) -> bytes:
    """The content of a body in S3's own chunks, which have checksums behind them; those are not checked."""
    parts: list[bytes] = []
    at = 0
    while True:
        head, _, _ = body[at : at + 1024].partition(b"\r\n")
        size = int(head.partition(b";")[0], 16)
        at += len(head) + 2
        if not size:
            return b"".join(parts)
        parts.append(body[at : at + size])
        at += size + 2


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def _xml(name: str, inner: str, status: int = 200) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?><{name}>{inner}</{name}>'
    return Answer(status, text.encode(), dict(_XML))


def _error(status: int, code: str) -> Answer:
    return _xml("Error", f"<Code>{code}</Code><Message>{code}</Message>", status)
