"""Build a pod VM's disk by the recipe: inputs -> root -> initrd -> disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from imagebuilder.disk import assemble, build_uki, kernel_command_line, uki_sections
from imagebuilder.errors import ImageError
from imagebuilder.formats import check_space
from imagebuilder.initrd import build_initrd
from imagebuilder.pcr import expected_pcr11
from imagebuilder.platforms import platform_of
from imagebuilder.recipe import Recipe, read_inputs
from imagebuilder.rootfs import build_rootfs
from imagebuilder.rootimage import build_root_image, tree_size
from imagebuilder.steps import Progress, tell
from imagebuilder.tools import check_tools

# The unpacked root, its image and the disk, with room to spare; measured 0.9 GB.
_WORK_BYTES = 2 << 30
# Of the payload: in the root, in the root's image, and in the disk.
_COPIES = 3
_TOOLS = (
    *("apt-get", "chroot", "debugfs", "depmod", "dpkg-deb", "mcopy", "mke2fs", "mkfs.vfat", "mmdebstrap"),
    *("qemu-img", "sfdisk", "tar"),
)


def build_raw(out: Path, work: Path, recipe: Recipe, arch: str, progress: Progress) -> Mapping[str, str]:
    """Write the raw disk `out`, with all that is needed on the way in `work`. Needs root. Raises ImageError.

    Returns those measurements, of the kind that `Disk` has, that cannot be taken from the disk alone. Equal inputs and
    equal packages give an equal disk, byte for byte.
    """
    platform = platform_of(arch)
    check_tools([*_TOOLS, platform.objcopy, *(["veritysetup"] if recipe.verity else [])])
    if os.geteuid() != 0:
        raise ImageError("NotRoot", "building an image needs root, for the files in it belong to root")
    inputs = read_inputs(recipe, arch)
    check_space(work, _WORK_BYTES + _COPIES * tree_size(recipe.payload), "building an image")
    root = build_rootfs(work, inputs, recipe, progress)
    tell(progress, "initrd")
    initrd = work / "initrd.img"
    build_initrd(root.path, root.kernel.release, work, initrd, inputs)
    image = build_root_image(root.path, inputs, work, progress)
    tell(progress, "kernel image")
    sections = uki_sections(root.kernel, initrd, kernel_command_line(inputs, image.verity), work)
    build_uki(root.kernel, sections, inputs, work / "uki.efi")
    measured = {"tpm-pcr-11": expected_pcr11(root.path, sections)}
    shutil.rmtree(root.path)
    tell(progress, "disk")
    assemble(image, work / "uki.efi", inputs, out)
    return measured
