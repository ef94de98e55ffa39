"""Build a pod VM image by the recipe: inputs -> root -> initrd -> disk, under a temporary name until it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from imagebuilder.disk import STUB, STUB_PACKAGE, assemble, build_uki, kernel_command_line
from imagebuilder.errors import ImageError
from imagebuilder.files import put, working
from imagebuilder.formats import check_space, from_raw
from imagebuilder.initrd import build_initrd
from imagebuilder.rawdisk import Progress
from imagebuilder.recipe import Inputs, Recipe, read_inputs
from imagebuilder.rootfs import build_rootfs
from imagebuilder.rootimage import build_root_image
from imagebuilder.tools import BuildError, check_tools

# The unpacked root, its image and the disk, with room to spare; measured 0.9 GB.
_WORK_BYTES = 2 << 30
_TOOLS = (
    *("apt-get", "chroot", "debugfs", "depmod", "dpkg-deb", "mcopy", "mke2fs", "mkfs.vfat", "mmdebstrap", "objcopy"),
    *("qemu-img", "sfdisk", "tar"),
)


@dataclass(frozen=True, slots=True)
class RawImage:
    """What the recipe made beside the raw disk, in the work directory: the same system for booting without firmware."""

    inputs: Inputs
    vmlinuz: Path
    initrd: Path
    command_line: str


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """A finished image. `digest` is the sha256 of `path` in hex.

    Beside the qcow2 lie `vmlinuz`, `initrd` and `cmdline` for booting the same root without firmware.
    """

    path: Path
    digest: str
    inputs: Inputs
    vmlinuz: Path
    initrd: Path
    command_line: str


def build_raw(out: Path, work: Path, recipe: Recipe, arch: str, progress: Progress) -> RawImage:
    """Write the raw disk `out`, with all that is needed on the way in `work`. Needs root. Raises ImageError.

    Equal inputs and equal packages give an equal disk, byte for byte.
    """
    progress("check", 0, None)
    check_tools([*_TOOLS, *(["veritysetup"] if recipe.verity else [])], {STUB: STUB_PACKAGE})
    if os.geteuid() != 0:
        raise ImageError("NotRoot", "building an image needs root, for the files in it belong to root")
    inputs = read_inputs(recipe, arch)
    check_space(work, _WORK_BYTES, "building an image")
    try:
        return _build(out, work, inputs, recipe, progress)
    except OSError as error:
        raise BuildError(f"building failed: {error.strerror}: {error.filename or out}") from error


def build(out: Path, *, recipe: Recipe, arch: str = "amd64", progress: Progress = lambda *_: None) -> BuiltImage:
    """Build the image at `out` (qcow2), with its record at `out`.json. Needs root. Raises ImageError.

    What was at `out` stays as it was until the new image is whole; nothing is left beside it on failure.
    """
    with working(out.parent) as work:
        made = build_raw(work / "disk.raw", work, recipe, arch, progress)
        from_raw(work / "disk.raw", "qcow2", work / "image", progress)
        digest = _sha256(work / "image")
        (work / "record").write_text(made.inputs.to_json(digest))
        (work / "cmdline").write_text(made.command_line + "\n")
        for source, suffix in ((made.vmlinuz, "vmlinuz"), (made.initrd, "initrd"), (work / "cmdline", "cmdline")):
            put(source, _beside(out, suffix))
        put(work / "record", _beside(out, "json"))
        put(work / "image", out)  # last: the record names its digest, so half a change is never taken for an image
    return _result(out, digest, made.inputs)


def read_built(out: Path, *, recipe: Recipe, arch: str = "amd64") -> BuiltImage | None:
    """The image at `out` if it is whole and made from these inputs as they are now; packages may be older."""
    inputs = read_inputs(recipe, arch)
    try:
        record = json.loads(_beside(out, "json").read_text())
        digest = _sha256(out)
        if record.pop("id") != str(inputs.id) or record.pop("digest") != digest:
            return None
        return _result(out, digest, Inputs(**record))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _result(out: Path, digest: str, inputs: Inputs) -> BuiltImage:
    command_line = _beside(out, "cmdline").read_text().strip()
    return BuiltImage(out, digest, inputs, _beside(out, "vmlinuz"), _beside(out, "initrd"), command_line)


def _build(out: Path, work: Path, inputs: Inputs, recipe: Recipe, progress: Progress) -> RawImage:
    progress("packages", 0, None)
    root = build_rootfs(work, inputs, recipe)
    inputs = replace(inputs, packages=root.packages)
    progress("root file system", 0, None)
    initrd = work / "initrd.img"
    build_initrd(root.path, root.release, work, initrd, verity=inputs.verity)
    image = build_root_image(root.path, inputs, work)
    shutil.rmtree(root.path)
    progress("disk", 0, None)
    command_line = kernel_command_line(inputs, image.verity)
    build_uki(root.vmlinuz, initrd, command_line, inputs.source_date_epoch, work / "uki.efi")
    assemble(image, work / "uki.efi", inputs, out)
    return RawImage(inputs, root.vmlinuz, initrd, command_line)


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
