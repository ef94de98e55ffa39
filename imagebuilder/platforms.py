"""What differs between the architectures that the recipe builds for, and whether this machine can build for them."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.errors import ImageError

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
# What the kernel calls the architectures.
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Platform:
    """One architecture. Partition types are of the discoverable partitions specification ("root", "root verity")."""

    kernel: str
    """Debian's package. The cloud kernels have the drivers of the clouds' VMs and few others.

    amd64's is unpacked 3 s sooner under emulation (LZ4 rather than XZ) and has ext4 built in. It has no AHCI driver.
    """
    triple: str
    stub: str
    """systemd's program that starts a kernel, in the package systemd-boot-efi of the architecture."""
    loader: str
    """The name that firmware looks for on a disk that it has no entry for."""
    objcopy: str
    console: str
    root_type: str
    verity_type: str
    emulator: str
    """The entry in binfmt_misc that runs its programs elsewhere."""


PLATFORMS = {
    "amd64": Platform(
        kernel="linux-image-cloud-amd64",
        triple="x86_64-linux-gnu",
        stub="linuxx64.efi.stub",
        loader="BOOTX64.EFI",
        objcopy="objcopy",
        console="ttyS0",
        root_type="4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
        verity_type="2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5",
        emulator="qemu-x86_64",
    ),
    "arm64": Platform(
        kernel="linux-image-cloud-arm64",
        triple="aarch64-linux-gnu",
        stub="linuxaa64.efi.stub",
        loader="BOOTAA64.EFI",
        objcopy="aarch64-linux-gnu-objcopy",
        console="ttyAMA0",
        root_type="B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
        verity_type="DF3300CE-D69F-4C92-978C-9BFB0F38D820",
        emulator="qemu-aarch64",
    ),
}


def platform_of(arch: str) -> Platform:
    """The platform, if the recipe knows it and this machine can run its programs. Raises ImageError (CannotBuild)."""
    if arch not in PLATFORMS:
        why = "its boot record is written by zipl, on such a machine only" if arch == "s390x" else "it is not supported"
        raise ImageError(
            "CannotBuild",
            f"images for {arch} are not built by the recipe ({why}; allowed: {', '.join(PLATFORMS)}); name a disk by "
            "PODVM_IMAGE_URI or --source",
        )
    found = PLATFORMS[arch]
    if _MACHINES.get(platform.machine()) != arch and not _emulated(found.emulator):
        raise ImageError(
            "CannotBuild",
            f"this machine cannot run programs of {arch}, which building for it takes: apt-get install "
            f"qemu-user-static, with {_BINFMT} mounted; or build on {arch}; or name a disk by PODVM_IMAGE_URI or "
            "--source",
        )
    return found


def _emulated(name: str) -> bool:
    """Whether the kernel hands such programs to QEMU; it must have opened that before (F), to find it in a chroot."""
    try:
        entry = (_BINFMT / name).read_text()
    except OSError:
        return False
    flags = next((line.removeprefix("flags: ") for line in entry.splitlines() if line.startswith("flags:")), "")
    return entry.startswith("enabled") and "F" in flags
