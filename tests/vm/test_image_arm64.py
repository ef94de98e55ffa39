"""An image for arm64, built on this machine through QEMU's user mode, and booted on an emulated arm64."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from imagebuilder.errors import ImageError
from imagebuilder.platforms import platform_of
from tests.vm.imagefile import ImageFile, image_file
from tests.vm.test_image_boots import TARGET, booted, check_agent

FIRMWARE = Path("/usr/share/AAVMF/AAVMF_CODE.fd")
QEMU = "qemu-system-aarch64"
MACHINE = ("-machine", "virt", "-cpu", "cortex-a72")
# Nothing is promised of another architecture than this machine's.
SLOWER = 3

pytestmark = pytest.mark.skipif(
    not os.environ.get("CAA_SOAK") or os.geteuid() != 0 or shutil.which(QEMU) is None or not FIRMWARE.exists(),
    reason="a long run: CAA_SOAK=1, as root, with qemu-system-arm and qemu-efi-aarch64",
)


@pytest.fixture(scope="module")
def image() -> ImageFile:
    try:
        platform_of("arm64")
    except ImageError as error:
        pytest.skip(str(error))
    return image_file(arch="arm64")


def test_it_boots_from_firmware(image: ImageFile, tmp_path: Path) -> None:
    assert image.facts["arch"] == "arm64"
    flash = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}"]
    device = ["-device", "virtio-blk-pci,drive=root,bootindex=1"]
    with booted(tmp_path, *MACHINE, *flash, *device, disk=image.path, qemu=QEMU) as vm:
        check_agent(vm, SLOWER * TARGET["firmware"])


def test_it_boots_directly(image: ImageFile, tmp_path: Path) -> None:
    kernel = ["-kernel", str(image.vmlinuz), "-initrd", str(image.initrd), "-append", image.command_line]
    device = ["-device", "virtio-blk-pci,drive=root"]
    with booted(tmp_path, *MACHINE, *kernel, *device, disk=image.path, qemu=QEMU) as vm:
        check_agent(vm, SLOWER * TARGET["direct"])
