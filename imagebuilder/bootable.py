"""What a raw disk boots, seen from outside: its partition table, and on it what each architecture's firmware looks for.

Nothing is mounted; the EFI partition is read with mtools.
"""

from __future__ import annotations

import hashlib
import re
import struct
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.errors import ImageError
from imagebuilder.pe import command_line_of
from imagebuilder.tools import BuildError, run

_SECTOR = 512
_HEAD_BYTES = 34 * _SECTOR  # with a GPT of the usual 128 entries
_ESP_TYPE = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
# Types that the discoverable partitions specification and GRUB give to what only one architecture has.
_TYPES = {
    uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"): "amd64",
    uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"): "arm64",
    uuid.UUID("5eead9a9-fe09-4a1e-a1d7-520d00531306"): "s390x",
    uuid.UUID("21686148-6449-6e6f-744e-656564454649"): "amd64",  # "BIOS boot"
}
# Where UEFI firmware looks on a disk that it has no entry for: name -> Debian's word for the architecture.
_LOADERS = {
    "BOOTX64.EFI": "amd64",
    "BOOTAA64.EFI": "arm64",
    "BOOTIA32.EFI": "i386",
    "BOOTARM.EFI": "armhf",
    "BOOTRISCV64.EFI": "riscv64",
}
# First bytes of a disk that zipl prepared: as a SCSI or virtio disk, or as a DASD ("IPL1" in EBCDIC).
_ZIPL = (b"zIPL", b"\xc9\xd7\xd3\xf1")
# A unified kernel image has some tens of MiB; this one would be read into memory.
_MAX_PROGRAM_BYTES = 512 << 20
_MBR_PROTECTIVE = 0xEE


@dataclass(frozen=True, slots=True)
class Bootable:
    """What was found. `uki` is the sha256 of the unified kernel image, `root_hash` that of dm-verity; "" without.

    `command_line` is the kernel's; "" when it is not in a unified kernel image.
    """

    arch: str
    why: str
    uki: str = ""
    root_hash: str = ""
    command_line: str = ""


@dataclass(frozen=True, slots=True)
class _Partition:
    kind: uuid.UUID
    start: int  # bytes
    end: int  # bytes, exclusive


def look(path: Path, name: str) -> Bootable:
    """Look into a raw disk that came from `name`. Raises ImageError: NotADisk, Truncated, NotBootable."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if len(head) < 2 * _SECTOR or not (head[510:512] == b"\x55\xaa" or head.startswith(_ZIPL)):
        raise ImageError("NotADisk", f"{name} is not a disk: it has no partition table ({_seen(head)})")
    partitions = _gpt(head, size, name) if head[_SECTOR : _SECTOR + 8] == b"EFI PART" else _mbr(head, size, name)
    esp = next((one for one in partitions if one.kind == _ESP_TYPE), None)
    if esp and (found := _from_esp(path, esp, name)):
        return found
    if head.startswith(_ZIPL):
        return Bootable("s390x", "a zipl boot record")
    for one in partitions:
        if one.kind in _TYPES:
            return Bootable(_TYPES[one.kind], "the type of a partition")
    if any(head[:440]):
        return Bootable("amd64", "boot code for a PC's BIOS")
    raise ImageError(
        "NotBootable", f"{name} is a disk that nothing boots from: no EFI/BOOT/BOOT*.EFI, no zipl and no boot code"
    )


def _gpt(head: bytes, size: int, name: str) -> list[_Partition]:
    (backup,) = struct.unpack_from("<Q", head, _SECTOR + 32)
    if (backup + 1) * _SECTOR > size:
        raise _truncated(name, (backup + 1) * _SECTOR, size)
    entries, count, length = struct.unpack_from("<QII", head, _SECTOR + 72)
    found = []
    for index in range(min(count, 128)):
        at = entries * _SECTOR + index * length
        entry = head[at : at + 48]
        if len(entry) == 48 and any(entry[:16]):
            first, last = struct.unpack_from("<QQ", entry, 32)
            found.append(_Partition(uuid.UUID(bytes_le=entry[:16]), first * _SECTOR, (last + 1) * _SECTOR))
    return _within(found, size, name)


def _mbr(head: bytes, size: int, name: str) -> list[_Partition]:
    found = []
    for at in range(446, 510, 16):
        kind = head[at + 4]
        first, count = struct.unpack_from("<II", head, at + 8)
        if kind and kind != _MBR_PROTECTIVE and count:
            esp = _ESP_TYPE if kind == 0xEF else uuid.UUID(int=kind)
            found.append(_Partition(esp, first * _SECTOR, (first + count) * _SECTOR))
    if not found and not head.startswith(_ZIPL):
        raise ImageError("NotADisk", f"{name} is not a disk: its partition table is empty ({_seen(head)})")
    return _within(found, size, name)


def _within(partitions: list[_Partition], size: int, name: str) -> list[_Partition]:
    end = max((one.end for one in partitions), default=0)
    if end > size:
        raise _truncated(name, end, size)
    return partitions


def _truncated(name: str, needed: int, size: int) -> ImageError:
    return ImageError("Truncated", f"{name} is cut off: its partition table needs {needed} bytes, and it has {size}")


def _seen(head: bytes) -> str:
    """What it looks like, for a person who gave the wrong file."""
    known = {
        b"\x7fELF": "it looks like a program",
        b"\x1f\x8b": "it looks like gzip; unpack it first",
        b"\xfd7zXZ": "it looks like xz; unpack it first",
        b"\x28\xb5\x2f\xfd": "it looks like zstd; unpack it first",
        b"PK\x03\x04": "it looks like a zip archive; unpack it first",
        b"KDMV": "it looks like VMDK; convert it with qemu-img first",
        b"vhdxfile": "it looks like VHDX; convert it with qemu-img first",
        b"<": "it looks like a web page",
    }
    if not head:
        return "it is empty"
    if len(head) > 262 and head[257:262] == b"ustar":
        return "it looks like a tar archive"
    return next((text for magic, text in known.items() if head.startswith(magic)), f"it begins with {head[:8].hex()}")


def loader_of(path: Path, name: str) -> bytes | None:
    """The EFI program of a raw disk that boots a kernel: the unified kernel image, if there is one; None without."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    partitions = _gpt(head, path.stat().st_size, name) if head[_SECTOR : _SECTOR + 8] == b"EFI PART" else []
    esp = next((one for one in partitions if one.kind == _ESP_TYPE), None)
    found = _efi(path, esp, name) if esp else None
    return found.program if found else None


@dataclass(frozen=True, slots=True)
class _Efi:
    arch: str
    place: str
    program: bytes
    command_line: str | None  # of a unified kernel image


def _from_esp(path: Path, esp: _Partition, name: str) -> Bootable | None:
    found = _efi(path, esp, name)
    if found is None or found.command_line is None:
        return Bootable(found.arch, found.place) if found else None
    match = re.search(r"\b(?:roothash|usrhash)=([0-9a-fA-F]{64,128})\b", found.command_line)
    uki = hashlib.sha256(found.program).hexdigest()
    return Bootable(found.arch, found.place, uki, match[1].lower() if match else "", found.command_line)


def _efi(path: Path, esp: _Partition, name: str) -> _Efi | None:
    image = f"{path}@@{esp.start}"
    loader = next((one for one in _listing(image, "EFI/BOOT") if one.upper() in _LOADERS), None)
    if loader is None:
        return None
    arch, place = _LOADERS[loader.upper()], f"EFI/BOOT/{loader}"
    first = _read(image, place, path.parent, name)
    if (line := command_line_of(first)) is not None:
        return _Efi(arch, place, first, line)
    for one in _listing(image, "EFI/Linux"):  # where systemd-boot finds unified kernel images
        program = _read(image, f"EFI/Linux/{one}", path.parent, name)
        if (line := command_line_of(program)) is not None:
            return _Efi(arch, f"EFI/Linux/{one}", program, line)
    return _Efi(arch, place, first, None)


def _read(image: str, place: str, work: Path, name: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix=".esp-", dir=work) as directory:
        copy = Path(directory) / "file"
        try:
            run(["mcopy", "-n", "-i", image, f"::/{place}", copy])
        except BuildError as error:
            raise ImageError("NotADisk", f"{name}: {place} on its EFI partition cannot be read: {error}") from None
        if copy.stat().st_size > _MAX_PROGRAM_BYTES:
            raise ImageError("TooLarge", f"{name}: {place} has {copy.stat().st_size >> 20} MiB")
        return copy.read_bytes()


def _listing(image: str, directory: str) -> list[str]:
    try:
        listed = run(["mdir", "-b", "-i", image, f"::/{directory}"])
    except BuildError:  # no such directory, or no FAT
        return []
    return [line.rpartition("/")[2] for line in listed.splitlines() if not line.endswith("/")]
