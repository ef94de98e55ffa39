"""Session tokens: whose they are and how long they hold, signed with the node's key. Nothing is kept of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import struct
from pathlib import Path

KEY_BYTES = 32
_FILE = "metadata.key"
_EXPIRY = struct.Struct(">Q")
_NONCE_BYTES = 8
_MAC_BYTES = 24


class Tokens:
    """Makes and checks tokens. One of another pod, another dialect or another node does not fit."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "Tokens(...)"

    def issue(self, kind: str, sandbox_id: str, expires: int) -> str:
        """A new token of printable ASCII that holds until `expires`, seconds since 1970."""
        claim = _EXPIRY.pack(expires) + secrets.token_bytes(_NONCE_BYTES)
        return base64.urlsafe_b64encode(claim + self._mac(kind, sandbox_id, claim)).decode()

    def fits(self, token: str, kind: str, sandbox_id: str, now: float) -> bool:
        """Whether it is one of these, and holds at `now`."""
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return False
        claim, mac = raw[: _EXPIRY.size + _NONCE_BYTES], raw[_EXPIRY.size + _NONCE_BYTES :]
        if not hmac.compare_digest(mac, self._mac(kind, sandbox_id, claim)):
            return False
        return now < float(_EXPIRY.unpack_from(claim)[0])

    def _mac(self, kind: str, sandbox_id: str, claim: bytes) -> bytes:
        message = b"\0".join((kind.encode(), sandbox_id.encode(), claim))
        return hmac.digest(self._key, message, hashlib.sha256)[:_MAC_BYTES]


def node_key(state_dir: Path) -> bytes:
    """The node's key, made when there is none. It is kept, so that clients' tokens outlive a restart of the service."""
    path = state_dir / _FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) == KEY_BYTES:
            return key
        path.unlink()  # cut short by a crash; tokens made with it are few and soon over
        return node_key(state_dir)
    with os.fdopen(descriptor, "wb") as file:
        key = secrets.token_bytes(KEY_BYTES)
        file.write(key)
    return key
