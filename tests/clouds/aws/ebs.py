"""The EBS direct APIs: what moto accepts unseen is checked here, and blocks are kept as checksums only.

As at AWS a pending snapshot can be written and not read, and one that is complete can be read and not written.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from moto.core.responses import ActionResult
from moto.ebs.models import EBSSnapshot, ebs_backends
from moto.ebs.responses import EBSResponse
from werkzeug.exceptions import HTTPException

BLOCK = 512 << 10


class EbsError(HTTPException):
    """An error of a JSON API of AWS; moto sends `description` with status `code` as it is."""

    def __init__(self, status: int, error: str, message: str, reason: str = "") -> None:
        self.code = status
        self.error = error
        super().__init__(json.dumps({"__type": error, "Message": message, "Reason": reason}))

    def get_headers(self, *_: Any, **__: Any) -> list[tuple[str, str]]:
        return [("Content-Type", "application/json"), ("x-amzn-ErrorType", self.error)]

    def get_body(self, *_: Any, **__: Any) -> str:
        return self.description or ""


@dataclass
class Ebs:
    """What is counted, and what client tokens stand for."""

    tokens: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    puts: Counter[tuple[str, int]] = field(default_factory=Counter)
    sums: dict[str, dict[int, bytes]] = field(default_factory=dict)
    in_flight: int = 0
    most_in_flight: int = 0
    bytes_put: int = 0

    def install(self) -> None:
        """Put it in moto's place, once in a process."""
        for name in ("start_snapshot", "put_snapshot_block", "complete_snapshot", "list_snapshot_blocks"):
            setattr(EBSResponse, name, _bound(getattr(self, name)))

    def reset(self) -> None:
        vars(self).update(vars(Ebs()))

    def describe(self) -> dict[str, Any]:
        """For the tests."""
        return {
            "blocks": len(self.puts),
            "again": sum(count - 1 for count in self.puts.values()),
            "bytes": self.bytes_put,
            "most_in_flight": self.most_in_flight,
            "snapshots": {
                snapshot: {
                    "status": self._status(snapshot),
                    "sums": {str(index): base64.b64encode(one).decode() for index, one in sums.items()},
                }
                for snapshot, sums in self.sums.items()
            },
        }

    @staticmethod
    def _status(snapshot: str) -> str:
        for backends in ebs_backends.values():
            for backend in backends.values():
                found = backend.ec2_backend.snapshots.get(snapshot)
                if found is not None:
                    return str(found.status)
        return "deleted"

    def start_snapshot(self, call: EBSResponse) -> ActionResult:
        backend = call.ebs_backend
        asked = {name: call._get_param(name) for name in ("VolumeSize", "Tags", "Description", "Timeout")}
        key = (call.region, call._get_param("ClientToken") or "")
        fingerprint = json.dumps(asked, sort_keys=True)
        if key[1] and key in self.tokens:
            known, snapshot_id = self.tokens[key]
            if known != fingerprint:
                raise EbsError(503, "ConflictException", "The client token was used with other parameters.")
            return _started(backend.snapshots[snapshot_id])
        snapshot = backend.start_snapshot(asked["VolumeSize"], asked["Tags"], asked["Description"] or "")
        own: Any = backend.ec2_backend.snapshots[snapshot.snapshot_id]
        own.status = "pending"
        backend.ec2_backend.volumes.pop(own.volume.id)  # moto makes one for each snapshot
        self.sums[snapshot.snapshot_id] = {}
        if key[1]:
            self.tokens[key] = fingerprint, snapshot.snapshot_id
        return _started(snapshot)

    def put_snapshot_block(self, call: EBSResponse) -> ActionResult:
        snapshot_id, index = call._get_param("SnapshotId"), int(call._get_param("BlockIndex"))
        snapshot = self._known(call, snapshot_id)
        if snapshot.status != "pending":
            raise EbsError(400, "ValidationException", "The snapshot is not pending.", "INVALID_SNAPSHOT_ID")
        data = call._get_param("BlockData")
        data = data if isinstance(data, bytes) else data.read()
        if len(data) != BLOCK or int(call._get_param("DataLength")) != BLOCK:
            raise EbsError(400, "ValidationException", "A block has 524288 bytes.", "INVALID_BLOCK")
        if not 0 <= index < int(snapshot.volume_size) * 2048:
            raise EbsError(400, "ValidationException", "The block is outside of the volume.", "INVALID_BLOCK")
        digest = hashlib.sha256(data).digest()
        told = call._get_param("Checksum")
        if call._get_param("ChecksumAlgorithm") != "SHA256" or told != base64.b64encode(digest).decode():
            raise EbsError(400, "ValidationException", "The checksum is another.", "INVALID_BLOCK")
        self.sums[snapshot_id][index] = digest
        self.puts[snapshot_id, index] += 1
        self.bytes_put += len(data)
        return ActionResult({"Checksum": told, "ChecksumAlgorithm": "SHA256"})

    def complete_snapshot(self, call: EBSResponse) -> ActionResult:
        snapshot_id = call._get_param("SnapshotId")
        snapshot = self._known(call, snapshot_id)
        sums = self.sums[snapshot_id]
        joined = b"".join(sums[index] for index in sorted(sums))
        whole = base64.b64encode(hashlib.sha256(joined).digest()).decode()
        told = call._get_param("Checksum")
        if snapshot.status != "pending" or int(call._get_param("ChangedBlocksCount")) != len(sums):
            raise EbsError(400, "ValidationException", "Not pending, or another number of blocks.")
        if told is not None and (told != whole or call._get_param("ChecksumAggregationMethod") != "LINEAR"):
            raise EbsError(400, "ValidationException", "The checksum is another.")
        snapshot.status = "completed"
        call.ebs_backend.ec2_backend.snapshots[snapshot_id].status = "completed"
        return ActionResult({"Status": "completed"})

    def list_snapshot_blocks(self, call: EBSResponse) -> ActionResult:
        snapshot_id = call._get_param("SnapshotId")
        snapshot = self._known(call, snapshot_id)
        if snapshot.status != "completed":
            raise EbsError(400, "ValidationException", "The snapshot is not completed.", "INVALID_SNAPSHOT_ID")
        blocks = [{"BlockIndex": index, "BlockToken": f"token-{index}"} for index in sorted(self.sums[snapshot_id])]
        return ActionResult({"Blocks": blocks, "VolumeSize": snapshot.volume_size, "BlockSize": BLOCK})

    @staticmethod
    def _known(call: EBSResponse, snapshot_id: str) -> EBSSnapshot:
        snapshot = call.ebs_backend.snapshots.get(snapshot_id)
        if snapshot is None or snapshot_id not in call.ebs_backend.ec2_backend.snapshots:
            raise EbsError(404, "ResourceNotFoundException", "There is no such snapshot.", "SNAPSHOT_NOT_FOUND")
        return snapshot


def _started(snapshot: EBSSnapshot) -> ActionResult:
    return ActionResult(
        {
            "SnapshotId": snapshot.snapshot_id,
            "OwnerId": snapshot.account_id,
            "Status": snapshot.status,
            "StartTime": snapshot.start_time,
            "VolumeSize": snapshot.volume_size,
            "BlockSize": BLOCK,
            "Tags": snapshot.tags,
            "Description": snapshot.description,
        }
    )


def _bound(method: Any) -> Any:
    def action(call: EBSResponse) -> ActionResult:
        return method(call)  # type: ignore[no-any-return]

    return action
