"""Build a pod VM image: inputs -> root -> initrd -> disk -> qcow2, under a temporary name until it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from imagebuilder.disk import STUB, STUB_PACKAGE, build_disk, build_uki, kernel_command_line
from imagebuilder.initrd import build_initrd
from imagebuilder.recipe import Inputs, read_inputs
from imagebuilder.rootfs import build_rootfs
from imagebuilder.tools import BuildError, check_tools, run

# The unpacked root, the raw disk and the image, with room to spare; measured 0.9 GB.
_WORK_BYTES = 2 << 30

Progress = Callable[[str, float], None]
"""Called with the step that begins and the share of the work done before it, 0 to 1."""


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


def build(
    out: Path,
    *,
    guest_source: Path,
    payload: Path | None = None,
    arch: str = "amd64",
    progress: Progress = lambda step, share: None,
    work_dir: Path | None = None,
) -> BuiltImage:
    """Build the image at `out` (qcow2), with its record at `out`.json. Needs root. Raises BuildError.

    `guest_source` is the package that runs in the VM, `payload` a directory or tar laid over the root. What was at
    `out` stays as it was until the new image is whole; nothing is left in `work_dir`
    (default: beside `out`) on failure.
    """
    progress("check", 0.0)
    check_tools({STUB: STUB_PACKAGE})
    if os.geteuid() != 0:
        raise BuildError("building an image needs root, for the files in it belong to root")
    inputs = read_inputs(guest_source, payload, arch)
    out.parent.mkdir(parents=True, exist_ok=True)
    parent = work_dir or out.parent
    free = shutil.disk_usage(parent).free
    if free < _WORK_BYTES:
        raise BuildError(f"{parent} has {free >> 20} MiB free; building an image needs {_WORK_BYTES >> 20} MiB")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=parent) as name:
        work = Path(name)
        work.chmod(0o755)  # apt's unprivileged downloader must reach the root inside
        try:
            return _build(out, work, inputs, guest_source, payload, progress)
        except OSError as error:
            raise BuildError(f"building failed: {error.strerror}: {error.filename or out}") from error


def read_built(out: Path, *, guest_source: Path, payload: Path | None = None, arch: str = "amd64") -> BuiltImage | None:
    """The image at `out` if it is whole and made from these inputs as they are now; packages may be older."""
    inputs = read_inputs(guest_source, payload, arch)
    try:
        record = json.loads(_beside(out, "json").read_text())
        digest = _sha256(out)
        if record.pop("id") != str(inputs.id) or record.pop("digest") != digest:
            return None
        return _result(out, digest, Inputs(**record))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _result(out: Path, digest: str, inputs: Inputs) -> BuiltImage:
    command_line = kernel_command_line(inputs.id)
    return BuiltImage(out, digest, inputs, _beside(out, "vmlinuz"), _beside(out, "initrd"), command_line)


def _build(
    out: Path, work: Path, inputs: Inputs, guest_source: Path, payload: Path | None, progress: Progress
) -> BuiltImage:
    progress("root file system", 0.02)
    root = build_rootfs(work, inputs, guest_source, payload)
    inputs = replace(inputs, packages=root.packages)
    command_line = kernel_command_line(inputs.id)
    progress("kernel", 0.75)
    build_initrd(root.path, root.release, work, work / "initrd.img")
    build_uki(root.vmlinuz, work / "initrd.img", command_line, work, work / "uki.efi")
    progress("disk", 0.8)
    build_disk(root.path, work / "uki.efi", inputs.id, inputs.source_date_epoch, work / "disk.raw")
    progress("image", 0.9)
    run(["qemu-img", "convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd", work / "disk.raw", work / "image"])
    digest = _sha256(work / "image")
    (work / "record").write_text(inputs.to_json(digest))
    (work / "cmdline").write_text(command_line + "\n")
    progress("finish", 0.98)
    for source, suffix in ((root.vmlinuz, "vmlinuz"), (work / "initrd.img", "initrd"), (work / "cmdline", "cmdline")):
        _put(source, _beside(out, suffix))
    _put(work / "record", _beside(out, "json"))
    _put(work / "image", out)  # last: the record names its digest, so half a change is never taken for an image
    progress("done", 1.0)
    return _result(out, digest, inputs)


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")


def _put(source: Path, target: Path) -> None:
    """Rename into place; by way of a copy when the work directory is on another file system."""
    new = target.with_name(f".{target.name}.new")
    try:
        shutil.move(source, new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
