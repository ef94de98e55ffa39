"""Disks of a few MiB that have all that firmware looks for, for tests that need no whole system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

STUB = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
PATH = {**os.environ, "PATH": f"/usr/sbin:/sbin:{os.environ['PATH']}"}
MIB = 1 << 20
ROOT_HASH = "ab" * 32
# Of the EFI partition; the rest of the disk is for contents.
_ESP = 4


def uki(work: Path, command_line: str = f"quiet roothash={ROOT_HASH}") -> bytes:
    """A unified kernel image whose kernel is none."""
    arguments: list[str] = []
    contents = {".cmdline": command_line, ".initrd": "initrd", ".linux": "linux"}
    for index, (name, text) in enumerate(contents.items(), start=1):
        (work / name).write_text(text)
        arguments += [
            "--add-section",
            f"{name}={work / name}",
            "--change-section-vma",
            f"{name}={0x100000 * (index + 1):#x}",
        ]
    subprocess.run(["objcopy", *arguments, STUB, work / "uki.efi"], check=True)
    return (work / "uki.efi").read_bytes()


def gpt_disk(out: Path, loader: str = "BOOTX64.EFI", program: bytes = b"MZ", *, mib: int = 16) -> Path:
    """A raw disk with an EFI partition that has one loader; with random bytes after it, which cannot be compressed."""
    with out.open("wb") as file:
        file.truncate(mib * MIB)
    table = f"label: gpt\nstart=2048, size={_ESP * 2048}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n"
    subprocess.run(["sfdisk", "-q", out], input=table, text=True, check=True, env=PATH)
    esp, efi = out.with_name("esp"), out.with_name("loader")
    with esp.open("wb") as file:
        file.truncate(_ESP * MIB)
    efi.write_bytes(program)
    subprocess.run(["mkfs.vfat", esp], check=True, env=PATH, stdout=subprocess.DEVNULL)
    subprocess.run(["mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"], check=True)
    subprocess.run(["mcopy", "-i", esp, efi, f"::/EFI/BOOT/{loader}"], check=True)
    with out.open("r+b") as file:
        file.seek(MIB)
        file.write(esp.read_bytes())
        file.seek((_ESP + 2) * MIB)
        file.write(os.urandom(2 * MIB))
    esp.unlink()
    efi.unlink()
    return out


def convert(raw: Path, kind: str, out: Path) -> Path:
    """With qemu-img; kind is its name for the format, with options after a comma."""
    name, _, options = kind.partition(",")
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", name, *(["-o", options] if options else []), raw, out], check=True
    )
    return out
