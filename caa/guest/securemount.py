"""Opening an encrypted disk: one call to the confidential data hub, which gets the key and mounts."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from caa.ttrpc.frames import HEADER, MAX_DATA, REQUEST, Code, Request, Response, StatusError, frame
from caa.ttrpc.protobuf import DecodeError, Message, field

CDH_SOCKET = Path("/run/confidential-containers/cdh.sock")
# The hub may still be starting; the incumbent tries for as long.
_CONNECT_SECONDS = 20.0
_POLL_SECONDS = 0.2
# Getting a key means attesting to a key broker, and an empty disk is formatted with integrity.
_CALL_SECONDS = 600.0

# The first bytes of every LUKS volume.
_LUKS = b"LUKS\xba\xbe"


class SecureMountRequest(Message):
    """api.SecureMountRequest."""

    volume_type: str = field(1)
    options: dict[str, str] = field(2)
    flags: list[str] = field(3)
    mount_point: str = field(4)


def secure_mount(hub: Path, device: Path, place: Path, fs_type: str, key_id: str, mapper: str) -> None:
    """Open `device` with the key `key_id` and mount it on `place`. Raises StatusError; OSError if it cannot be read."""
    with device.open("rb") as disk:
        encrypted = disk.read(len(_LUKS)) == _LUKS
    options = {
        "devicePath": str(device),
        "sourceType": "encrypted" if encrypted else "empty",
        "targetType": "fileSystem",
        "encryptionType": "luks2",
        "filesystemType": fs_type,
        "key": f"kbs:///{key_id}",
        "mapperName": mapper,
    }
    request = SecureMountRequest(volume_type="block-device", options=options, mount_point=str(place))
    _call(hub, Request(service="api.SecureMountService", method="SecureMount", payload=request.encode()))


def _call(path: Path, request: Request) -> None:
    with _connect(path) as hub:
        hub.settimeout(_CALL_SECONDS)
        try:
            hub.sendall(frame(1, REQUEST, request.encode()))
            length, *_ = HEADER.unpack(_exactly(hub, HEADER.size))
            if length > MAX_DATA:
                raise StatusError(Code.INTERNAL, "the confidential data hub answered more than ttrpc allows")
            answer = Response.decode(_exactly(hub, length))
        except (OSError, DecodeError) as error:
            raise StatusError(Code.UNAVAILABLE, f"the confidential data hub did not answer: {error}") from None
    if answer.status is not None and answer.status.code:
        raise StatusError(answer.status.code, f"the confidential data hub refused: {answer.status.message[:300]}")


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        hub = socket.socket(socket.AF_UNIX)
        try:
            hub.connect(str(path))
        except OSError as error:
            hub.close()
            if time.monotonic() >= deadline:
                text = f"no confidential data hub at {path} after {_CONNECT_SECONDS:.0f} s: {error.strerror}"
                raise StatusError(Code.UNAVAILABLE, text) from None
            time.sleep(_POLL_SECONDS)
        else:
            return hub


def _exactly(hub: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = hub.recv(size - len(data))
        if not piece:
            raise ConnectionError("the connection ended")
        data += piece
    return data
