"""The disk: GPT, an EFI partition with one unified kernel image, an ext4 root. No loop devices, no mounts.

All ids come from the inputs' id, so that equal inputs give equal partitions and an equal EFI partition. The root is
equal in names, contents and ids, not in every byte: mke2fs takes over when its files were last touched.
"""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path

from imagebuilder.tools import BuildError, run

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
STUB_PACKAGE = "systemd-boot-efi"

_MIB = 1 << 20
# Partitions begin at whole MiB, as every partitioning tool does; the last MiB is for the second GPT.
_ESP_START = 1 * _MIB
# What a pod may write to the root beside its containers, which live in memory: logs of a real agent, caches.
_FREE_BYTES = 256 * _MIB
# 32 KiB: the one file is read in few large pieces.
_SECTORS_PER_CLUSTER = 64
# FAT's own tables and the directory.
_ESP_SLACK = 2 * _MIB
_ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_ROOT_TYPE = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"  # "root, x86-64" of the discoverable partitions specification


def kernel_command_line(image_id: uuid.UUID) -> str:
    """What the kernel is started with, from the disk or directly.

    net.ifnames=0: the initrd's DHCP client has the card up, and a card that is up cannot be renamed. noautogroup: every
    service is a session, and within the groups of sessions the units' Nice= would mean nothing.
    """
    return (
        f"root=PARTLABEL={root_label(image_id)} console=tty0 console=ttyS0 quiet loglevel=4 panic=5 "
        "net.ifnames=0 noautogroup"
    )


def root_label(image_id: uuid.UUID) -> str:
    """Name of the root partition, unique to the image: a second disk can never be mistaken for it."""
    return f"podvm-{image_id.hex[:16]}"


def build_uki(vmlinuz: Path, initrd: Path, command_line: str, work: Path, out: Path) -> None:
    """One EFI program of kernel, initrd and command line, as the systemd-boot stub expects its sections."""
    (work / "cmdline").write_text(command_line)
    (work / "osrel").write_text("ID=podvm\nNAME=podvm\nPRETTY_NAME=podvm\n")
    sections = {".osrel": work / "osrel", ".cmdline": work / "cmdline", ".initrd": initrd, ".linux": vmlinuz}
    base, address, alignment = _pe_end(STUB.read_bytes())
    arguments: list[str | Path] = []
    for name, path in sections.items():  # the kernel last: it may unpack itself in place
        address = -(-address // alignment) * alignment
        arguments += ["--add-section", f"{name}={path}", "--change-section-vma", f"{name}={base + address:#x}"]
        address += path.stat().st_size
    run(["objcopy", *arguments, STUB, out])


def _pe_end(data: bytes) -> tuple[int, int, int]:
    """(image base, end of the last section relative to it, section alignment) of a PE32+ file."""
    (header,) = struct.unpack_from("<I", data, 0x3C)
    if data[header : header + 4] != b"PE\0\0":
        raise BuildError(f"{STUB} is not an EFI program; reinstall {STUB_PACKAGE}")
    count, optional_size = struct.unpack_from("<H12xH", data, header + 6)
    optional = header + 24
    (base,) = struct.unpack_from("<Q", data, optional + 24)
    (alignment,) = struct.unpack_from("<I", data, optional + 32)
    end = 0
    for index in range(count):
        size, address = struct.unpack_from("<II", data, optional + optional_size + 40 * index + 8)
        end = max(end, address + size)
    return base, end, max(alignment, 0x1000)


def build_disk(root: Path, uki: Path, image_id: uuid.UUID, epoch: int, out: Path) -> None:
    """Write the raw disk. `epoch` is the time stamped on files. Raises BuildError."""
    esp_size = _round_up(uki.stat().st_size + _ESP_SLACK)
    root_start = _ESP_START + esp_size
    root_size = _round_up(int(_tree_size(root) * 1.05) + _FREE_BYTES)
    with out.open("wb") as file:
        file.truncate(root_start + root_size + _MIB)
    table = (
        f"label: gpt\nlabel-id: {uuid.uuid5(image_id, 'disk')}\n"
        f"start={_ESP_START >> 9}, size={esp_size >> 9}, type={_ESP_TYPE}, name=esp, "
        f"uuid={uuid.uuid5(image_id, 'esp')}\n"
        f"start={root_start >> 9}, size={root_size >> 9}, type={_ROOT_TYPE}, name={root_label(image_id)}, "
        f"uuid={uuid.uuid5(image_id, 'root')}\n"
    )
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", out], text=table)
    _write_esp(out, uki, esp_size, image_id, epoch)
    identity = str(uuid.uuid5(image_id, "root file system"))
    run(
        # No journal: the disk lives as long as one boot. No reserved blocks: only root runs here.
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal", "-L", "root"),
            *("-U", identity, "-E", f"hash_seed={identity},lazy_itable_init=1,nodiscard,offset={root_start}"),
            *("-d", str(root), str(out), f"{root_size >> 10}k"),
        ],
        environment={"E2FSPROGS_FAKE_TIME": str(epoch), "SOURCE_DATE_EPOCH": str(epoch)},
    )


def _write_esp(disk: Path, uki: Path, size: int, image_id: uuid.UUID, epoch: int) -> None:
    os.utime(uki, (epoch, epoch))
    esp = disk.with_name("esp.img")
    with esp.open("wb") as file:
        file.truncate(size)
    run(["mkfs.vfat", "--invariant", "-s", str(_SECTORS_PER_CLUSTER), "-i", image_id.hex[:8], "-n", "ESP", esp])
    stamp = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    run(["mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"], environment=stamp)
    run(["mcopy", "-m", "-i", esp, uki, "::/EFI/BOOT/BOOTX64.EFI"], environment=stamp)
    with disk.open("r+b") as target:
        target.seek(_ESP_START)
        target.write(esp.read_bytes())
    esp.unlink()


def _tree_size(root: Path) -> int:
    """Bytes of the tree in blocks of 4 KiB, with one inode (256 bytes) for each name."""
    total = 0
    for directory, _, names in os.walk(root):
        total += 4096
        for name in names:
            size = os.lstat(os.path.join(directory, name)).st_size
            total += -(-size // 4096) * 4096 + 256
    return total


def _round_up(size: int) -> int:
    return -(-size // _MIB) * _MIB
