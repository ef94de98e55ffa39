"""Volumes: the overlay and the seed of a domain. Only ever makes and deletes volumes; the pool itself is not ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import libvirt

from providers.base import InvalidRequestError
from providers.libvirt.probe import parse

GIB = 1 << 30

# A stream message carries at most 256 KiB less its header; larger pieces are only cut again.
_PIECE = 256 * 1024 - 4096

# Pool types whose volumes are files that a qcow2 overlay can sit in and on.
FILE_POOLS = ("dir", "fs", "netfs")


@dataclass(frozen=True, slots=True)
class Volume:
    """What libvirt says of a volume. `backing` is the path of the volume under it, "" if none."""

    path: str
    format: str
    capacity: int  # bytes
    backing: str


def pool_path(pool: libvirt.virStoragePool) -> str:
    """The directory of the pool on the libvirt host."""
    return parse(pool.XMLDesc()).findtext("target/path", "")


def find(pool: libvirt.virStoragePool, name: str) -> libvirt.virStorageVol | None:
    """The volume, or None."""
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise


def describe(volume: libvirt.virStorageVol) -> Volume:
    """Read a volume's description."""
    root = parse(volume.XMLDesc())
    kind = root.find("target/format")
    return Volume(
        path=root.findtext("target/path", ""),
        format=kind.get("type", "") if kind is not None else "",
        capacity=int(root.findtext("capacity", "0")),
        backing=root.findtext("backingStore/path", ""),
    )


def base_volume(pool: libvirt.virStoragePool, name: str) -> Volume:
    """The base volume. Raises InvalidRequestError when it is not there, or not whole.

    A base volume whose upload was broken off has no qcow2 header yet (see images.py), so libvirt calls it raw.
    """
    volume = find(pool, name)
    if volume is None:
        raise InvalidRequestError(
            "ImageMissing",
            f"the pool LIBVIRT_POOL={pool.name()} has no volume {name!r} (LIBVIRT_VOL_NAME); `caa image ensure` builds "
            "it, and after a copy by hand libvirt needs `virsh pool-refresh`",
        )
    base = describe(volume)
    if base.format != "qcow2":
        raise InvalidRequestError(
            "ImageNotReady",
            f"the volume {name!r} (LIBVIRT_VOL_NAME) in LIBVIRT_POOL={pool.name()} is {base.format or 'of no format'}, "
            "not qcow2: its upload is unfinished, which `caa image ensure` repairs, or it is no image",
        )
    return base


def ensure_overlay(pool: libvirt.virStoragePool, name: str, base: Volume, size: int) -> None:
    """Make the overlay unless it is there and whole. Only for a domain whose guest never ran."""
    capacity = max(size, base.capacity)
    volume = find(pool, name)
    if volume is not None:
        there = describe(volume)
        if there.format == "qcow2" and there.backing == base.path and there.capacity == capacity:
            return
        volume.delete()
    definition = _volume_xml(name, capacity, "qcow2")
    backing = ET.SubElement(definition, "backingStore")
    ET.SubElement(backing, "path").text = base.path
    ET.SubElement(backing, "format", type="qcow2")
    pool.createXML(ET.tostring(definition, encoding="unicode"))


def ensure_seed(conn: libvirt.virConnect, pool: libvirt.virStoragePool, name: str, content: bytes) -> None:
    """Make the seed, or write it whole once more: whether an earlier upload reached its end cannot be seen.

    The same request gives the same bytes, so writing over a good seed changes nothing. Only for a domain whose guest
    never ran.
    """
    volume = find(pool, name)
    if volume is not None and describe(volume).capacity != len(content):
        volume.delete()
        volume = None
    if volume is None:
        definition = _volume_xml(name, len(content), "raw")
        volume = pool.createXML(ET.tostring(definition, encoding="unicode"))
    upload(conn, volume, [content], 0, len(content))


def upload(
    conn: libvirt.virConnect, volume: libvirt.virStorageVol, pieces: Iterable[bytes], offset: int, length: int
) -> None:
    """Send bytes into a volume. On return they are on the host's disk. libvirt then reads the pool anew by itself."""
    stream = conn.newStream(0)
    try:
        volume.upload(stream, offset, length, 0)
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[stream.send(bytes(rest[:_PIECE])) :]
        stream.finish()
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise


def delete(pool: libvirt.virStoragePool, name: str) -> None:
    """Delete a volume; absent is done."""
    volume = find(pool, name)
    if volume is None:
        return
    try:
        volume.delete()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise


def new_raw(pool: libvirt.virStoragePool, name: str, size: int) -> libvirt.virStorageVol:
    """Make an empty sparse file of `size` bytes."""
    return pool.createXML(ET.tostring(_volume_xml(name, size, "raw"), encoding="unicode"))


def _volume_xml(name: str, capacity: int, kind: str) -> ET.Element:
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = name
    ET.SubElement(volume, "capacity", unit="bytes").text = str(capacity)
    ET.SubElement(volume, "allocation", unit="bytes").text = "0"
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", type=kind)
    permissions = ET.SubElement(target, "permissions")
    # Seeds hold keys and overlays hold what the pod wrote. QEMU's user gets its access from libvirt at start.
    ET.SubElement(permissions, "mode").text = "0600"
    return volume
