"""Publishing a base volume.

A volume cannot be renamed, and a clone inside libvirt would copy the whole image once more. So the volume gets its
final name at once, and its qcow2 header, without which it is no image, is sent last, in a stream of its own after the
rest is on disk. Until then libvirt calls the volume raw, and `storage.base_volume` refuses to boot from it. Sending the
same file again, after a crash or from two nodes at once, writes the same bytes to the same places.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import libvirt

from providers.base import InvalidRequestError
from providers.libvirt import storage
from providers.libvirt.connection import Connections, alive
from providers.libvirt.errors import is_transport, lost, translate
from providers.libvirt.settings import LibvirtKeys

# All that makes a file a qcow2 image lies in its first cluster, which is never smaller than this.
_HEAD = 512
_CHUNK = 1 << 20
# qcow2 header: magic, version, offset of the backing file's name; at byte 72 the incompatible features.
_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA_FILE = 1 << 2

Progress = Callable[[int, int], None]
"""Called with (bytes sent, bytes in all)."""


def has_base_volume(keys: LibvirtKeys, name: str = "") -> bool:
    """Whether the base volume (LIBVIRT_VOL_NAME unless named) is there and whole. Raises ProviderError."""
    with _session(keys) as session:
        volume = storage.find(session.pool, name or keys.vol_name)
        return volume is not None and storage.describe(volume).format == "qcow2"


def is_base_of_another(keys: LibvirtKeys, name: str) -> bool:
    """Whether a volume of the pool, such as the disk of a pod VM, stands on the base volume. Raises ProviderError."""
    with _session(keys) as session:
        volume = storage.find(session.pool, name)
        if volume is None:
            return False
        path = storage.describe(volume).path
        return any(storage.describe(one).backing == path for one in session.pool.listAllVolumes())


def delete_base_volume(keys: LibvirtKeys, name: str) -> None:
    """Delete the volume, and nothing else of the pool; absent is done. Raises ProviderError."""
    with _session(keys) as session:
        storage.delete(session.pool, name)


def volume_state(keys: LibvirtKeys, name: str) -> str:
    """ "" for no volume, "whole", or "unfinished" for one whose upload was broken off. Raises ProviderError."""
    with _session(keys) as session:
        volume = storage.find(session.pool, name)
        if volume is None:
            return ""
        return "whole" if storage.describe(volume).format == "qcow2" else "unfinished"


def upload_base_volume(
    keys: LibvirtKeys, path: Path, name: str = "", progress: Progress = lambda _sent, _total: None
) -> None:
    """Make the base volume from a qcow2 file. A whole one of that name is never touched: running pod VMs use it.

    Raises InvalidRequestError (reason ImageInvalid, ImageExists) and any other ProviderError; call again to go on.
    """
    name = name or keys.vol_name
    size = path.stat().st_size
    with path.open("rb") as file, _session(keys) as session:
        head = file.read(_HEAD)
        _check_header(path, head)
        pool = session.pool
        volume = storage.find(pool, name)
        if volume is not None:
            there = storage.describe(volume)
            if there.format == "qcow2":
                raise InvalidRequestError(
                    "ImageExists", f"LIBVIRT_POOL={keys.pool} has a volume {name!r} already; choose another name"
                )
            if there.capacity != size:  # the unfinished upload of another file
                storage.delete(pool, name)
                volume = None
        if volume is None:
            volume = storage.new_raw(pool, name, size)
        storage.upload(session.conn, volume, _pieces(file, size, progress), _HEAD, size - _HEAD)
        storage.upload(session.conn, volume, [head], 0, _HEAD)
        progress(size, size)


def _pieces(file: BinaryIO, size: int, progress: Progress) -> Iterator[bytes]:
    sent = _HEAD
    while chunk := file.read(_CHUNK):
        yield chunk
        sent += len(chunk)
        if sent < size:  # the last word comes after the header
            progress(sent, size)


def _check_header(path: Path, head: bytes) -> None:
    def refuse(why: str) -> InvalidRequestError:
        return InvalidRequestError("ImageInvalid", f"{path.name} cannot be a base volume: {why}")

    if len(head) < _HEAD or head[:4] != _MAGIC:
        raise refuse("it is no qcow2 image")
    version, backing = struct.unpack_from(">IQ", head, 4)
    features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 else 0
    if backing or features & _EXTERNAL_DATA_FILE:
        raise refuse("it refers to another file, which a pod VM would then read on the libvirt host")


@dataclass(frozen=True, slots=True)
class _Session:
    conn: libvirt.virConnect
    pool: libvirt.virStoragePool


@contextlib.contextmanager
def _session(keys: LibvirtKeys) -> Iterator[_Session]:
    """A connection for the length of one publication, with libvirt's errors in the contract's words."""
    connections = Connections(keys)
    try:
        with connections.borrow() as conn:
            try:
                yield _Session(conn, conn.storagePoolLookupByName(keys.pool))
            except libvirt.libvirtError as error:
                if is_transport(error) or not alive(conn):
                    raise lost(keys, error) from error
                raise translate(error, keys) from error
    finally:
        connections.close()
