"""The disk: GPT, an EFI partition with one unified kernel image, the root, its hash tree. No loop devices, no mounts.

All ids come from the inputs' id or the hash tree, so that equal inputs give an equal disk, byte for byte.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from imagebuilder.files import copy_sparse
from imagebuilder.pe import read_program, settle
from imagebuilder.platforms import PLATFORMS
from imagebuilder.recipe import Inputs
from imagebuilder.rootfs import Kernel
from imagebuilder.rootimage import RootImage, Verity
from imagebuilder.tools import BuildError, run

_MIB = 1 << 20
# Partitions begin at whole MiB, as every partitioning tool does; the last MiB is for the second GPT.
_ESP_START = 1 * _MIB
# 32 KiB: the one file is read in few large pieces.
_SECTORS_PER_CLUSTER = 64
# FAT's own tables and the directory.
_ESP_SLACK = 2 * _MIB
_ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"


def kernel_command_line(inputs: Inputs, verity: Verity | None) -> str:
    """What the kernel is started with, from the disk or directly.

    net.ifnames=0: the initrd's DHCP client has the card up, and a card that is up cannot be renamed. noautogroup: every
    service is a session, and within the groups of sessions the units' Nice= would mean nothing. roothash= is systemd's
    word; what else the initrd must know to set up dm-verity is in podvm.verity=: blocks of data, and the salt.
    """
    console = PLATFORMS[inputs.arch].console
    words = [
        f"root=PARTLABEL={root_label(inputs.id)} console=tty0 console={console} quiet loglevel=4 panic=5",
        "net.ifnames=0 noautogroup",
    ]
    if verity:
        words.append(f"roothash={verity.root_hash} podvm.verity={verity.blocks},{verity.salt}")
    if inputs.fips:
        words.append("fips=1")
    return " ".join(words)


def root_label(image_id: uuid.UUID) -> str:
    """Name of the root partition, unique to the image: a second disk can never be mistaken for it."""
    return f"podvm-{image_id.hex[:16]}"


def uki_sections(kernel: Kernel, initrd: Path, command_line: str, work: Path) -> dict[str, Path]:
    """The files of a unified kernel image, by the names that systemd has for them."""
    (work / "cmdline").write_text(command_line)
    (work / "osrel").write_text("ID=podvm\nNAME=podvm\nPRETTY_NAME=podvm\n")
    return {"osrel": work / "osrel", "cmdline": work / "cmdline", "initrd": initrd, "linux": kernel.vmlinuz}


def build_uki(kernel: Kernel, sections: Mapping[str, Path], inputs: Inputs, out: Path) -> None:
    """One EFI program of these sections, as systemd's stub expects them."""
    program = read_program(kernel.stub.read_bytes())
    if program is None:
        raise BuildError(f"{kernel.stub.name} of the package systemd-boot-efi is not an EFI program")
    address, alignment = program.end, program.alignment
    arguments: list[str | Path] = []
    for name, path in sections.items():  # the kernel last: it may unpack itself in place
        address = -(-address // alignment) * alignment
        arguments += ["--add-section", f".{name}={path}"]
        arguments += ["--change-section-vma", f".{name}={program.base + address:#x}"]
        address += path.stat().st_size
    run([PLATFORMS[inputs.arch].objcopy, *arguments, kernel.stub, out])
    out.write_bytes(settle(out.read_bytes(), inputs.source_date_epoch))  # objcopy notes when it ran


def assemble(image: RootImage, uki: Path, inputs: Inputs, out: Path) -> None:
    """Write the raw disk of the parts. Raises ImageError."""
    platform = PLATFORMS[inputs.arch]
    esp_size = _round_up(uki.stat().st_size + _ESP_SLACK)
    root_start = _ESP_START + esp_size
    root_size = image.path.stat().st_size
    root_id = verity_id = _id(inputs, "root")
    end = root_start + root_size
    rows = [_row(_ESP_START, esp_size, _ESP_TYPE, "esp", _id(inputs, "esp"))]
    if image.verity:
        # The two halves of the root hash, as the specification has it: tools find both parts by the hash alone.
        root_id, verity_id = uuid.UUID(image.verity.root_hash[:32]), uuid.UUID(image.verity.root_hash[-32:])
        end += image.verity.tree.stat().st_size
    label = root_label(inputs.id)
    rows.append(_row(root_start, root_size, platform.root_type, label, root_id))
    if image.verity:
        size = image.verity.tree.stat().st_size
        rows.append(_row(root_start + root_size, size, platform.verity_type, f"{label}-verity", verity_id))
    with out.open("wb") as file:
        file.truncate(end + _MIB)
    table = "\n".join(["label: gpt", f"label-id: {_id(inputs, 'disk')}", *rows, ""])
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", out], text=table)
    _write_esp(out, uki, esp_size, inputs)
    copy_sparse(image.path, out, root_start)
    if image.verity:
        copy_sparse(image.verity.tree, out, root_start + root_size)


def _row(start: int, size: int, kind: str, name: str, identity: uuid.UUID) -> str:
    return f"start={start >> 9}, size={size >> 9}, type={kind}, name={name}, uuid={identity}"


def _id(inputs: Inputs, of: str) -> uuid.UUID:
    return uuid.uuid5(inputs.id, of)


def _write_esp(disk: Path, uki: Path, size: int, inputs: Inputs) -> None:
    epoch = inputs.source_date_epoch
    os.utime(uki, (epoch, epoch))
    esp = disk.with_name("esp.img")
    with esp.open("wb") as file:
        file.truncate(size)
    run(["mkfs.vfat", "--invariant", "-s", str(_SECTORS_PER_CLUSTER), "-i", inputs.id.hex[:8], "-n", "ESP", esp])
    stamp = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    run(["mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"], environment=stamp)
    run(["mcopy", "-m", "-i", esp, uki, f"::/EFI/BOOT/{PLATFORMS[inputs.arch].loader}"], environment=stamp)
    copy_sparse(esp, disk, _ESP_START)
    esp.unlink()


def _round_up(size: int) -> int:
    return -(-size // _MIB) * _MIB
