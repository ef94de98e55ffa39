"""Disk formats: told by content, never by name; into raw, and out of it into what clouds take."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

from imagebuilder.errors import ImageError, no_space
from imagebuilder.steps import Progress
from imagebuilder.tools import BuildError, check_tools, run, run_with_percent

FORMATS = ("raw", "qcow2", "vhd")
# Larger than any pod VM image (the incumbent's have 30 GiB), and small enough to notice a wrong or hostile header.
MAX_DISK_BYTES = 128 << 30
# Azure takes virtual sizes of whole MiB only.
_VHD_STEP = 1 << 20
# Magic number, version, place and length of the backing file's name, method of encryption, incompatible features.
_QCOW2_HEADER = struct.Struct(">4sIQI12xI36xQ")
_QCOW2_EXTERNAL_DATA = 1 << 2
# What must stay free beside what is written, so that a check before the work is not undone by a log file.
_SPARE_BYTES = 64 << 20


def detect(path: Path) -> str:
    """qemu-img's name for the format. Whatever has no magic number is raw."""
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(max(0, path.stat().st_size - 512))
        foot = file.read(8)
    if head.startswith(b"QFI\xfb"):
        return "qcow2"
    if b"conectix" in (head, foot):
        return "vpc"
    return "raw"


def to_raw(source: Path, name: str, out: Path, progress: Progress) -> None:
    """Write the disk in `source`, which people know as `name`, to `out` as a sparse raw file. Raises ImageError."""
    check_tools(["qemu-img"])
    kind = detect(source)
    size = _virtual_size(source, kind, name)
    if size > MAX_DISK_BYTES:
        raise ImageError("TooLarge", f"{name} is a disk of {size >> 30} GiB; allowed: up to {MAX_DISK_BYTES >> 30} GiB")
    check_space(out.parent, _bytes_needed(source, kind), f"unpacking {name}")
    try:
        run_with_percent(
            ["qemu-img", "convert", "-p", "-f", kind, "-O", "raw", source, out],
            lambda share: progress("unpack", int(share * size), size),
        )
    except BuildError as error:
        raise ImageError("NotADisk", f"{name} cannot be read as {kind}: {error}") from None


def from_raw(raw: Path, kind: str, out: Path, progress: Progress) -> None:
    """Write a raw disk as one of FORMATS. VHD is of fixed size, a whole number of MiB, as Azure wants it."""
    check_tools(["qemu-img"])
    size = raw.stat().st_size
    options = {
        "raw": ["-O", "raw"],
        "qcow2": ["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
        # force_size: without it qemu-img rounds to cylinders, which Azure takes for a wrong size.
        "vhd": ["-O", "vpc", "-o", "subformat=fixed,force_size=on"],
    }[kind]
    check_space(out.parent, _allocated(raw), f"writing {out.name}")
    source = raw
    if kind == "vhd" and size % _VHD_STEP:
        # Rounded up in a copy: the source may be somebody's own file.
        source = out.with_name(f".{out.name}.rounded")
    try:
        if source is not raw:
            run(["cp", "--sparse=always", "--reflink=auto", raw, source])
            os.truncate(source, -(-size // _VHD_STEP) * _VHD_STEP)
        run_with_percent(
            ["qemu-img", "convert", "-p", "-f", "raw", *options, source, out],
            lambda share: progress("convert", int(share * size), size),
        )
    finally:
        if source is not raw:
            source.unlink(missing_ok=True)


def check_space(directory: Path, needed: int, purpose: str) -> None:
    """Raise PassingImageError (NoSpace) unless `needed` bytes and a little more are free."""
    free = shutil.disk_usage(directory).free
    if free < needed + _SPARE_BYTES:
        raise no_space(f"{directory} has {free >> 20} MiB free; {purpose} needs {(needed + _SPARE_BYTES) >> 20} MiB")


def _virtual_size(path: Path, kind: str, name: str) -> int:
    """Checked before anything of the file is used: it may come from anywhere."""
    try:
        if kind == "qcow2":
            _check_alone(path, name)
            _check_whole(path, name)
        found: dict[str, Any] = json.loads(run(["qemu-img", "info", "-f", kind, "--output", "json", path]))
    except BuildError as error:
        raise ImageError("NotADisk", f"{name} cannot be read as {kind}: {error}") from None
    return int(found["virtual-size"])


def _check_alone(path: Path, name: str) -> None:
    """A qcow2 may name other files, and those of this machine would end up in the image.

    Looked at here, for qemu-img opens them to tell what they are.
    """
    with path.open("rb") as file:
        header = file.read(_QCOW2_HEADER.size).ljust(_QCOW2_HEADER.size, b"\0")
        _, version, backing_at, backing_size, encryption, features = _QCOW2_HEADER.unpack(header)
        file.seek(min(backing_at, 1 << 20))
        backing = file.read(min(backing_size, 1023)).decode(errors="replace")
    if backing_at:
        raise ImageError("NotADisk", f"{name} is a qcow2 that needs another file ({backing}); flatten it first")
    if version >= 3 and features & _QCOW2_EXTERNAL_DATA:
        raise ImageError("NotADisk", f"{name} is a qcow2 that has its data in another file; flatten it first")
    if encryption:
        raise ImageError("NotADisk", f"{name} is encrypted; decrypt it first")


def _check_whole(path: Path, name: str) -> None:
    """qemu-img reads zeros beyond a file's end, so a truncated qcow2 would become a broken disk without a word."""
    # It ends with 2 or 3 for what it found, which is no failure of the command.
    script = 'qemu-img check -f qcow2 "$1" 2>&1 || [ $? -le 3 ]'
    report = run(["sh", "-c", script, "sh", path])
    if "exceeding the end of the file" in report:
        raise ImageError("Truncated", f"{name} is cut off: it has {path.stat().st_size} bytes and should have more")
    if found := re.search(r"(\d+) errors were found|check errors|image is corrupt", report):
        raise ImageError("NotADisk", f"{name} is a damaged qcow2: {found[0]}")


def _bytes_needed(source: Path, kind: str) -> int:
    """What the raw file will take. Compressed clusters grow; zeros take nothing."""
    if kind == "raw":
        return _allocated(source)
    extents = json.loads(run(["qemu-img", "map", "-f", kind, "--output", "json", source]))
    return sum(int(one["length"]) for one in extents if one["data"] and not one["zero"])


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512
