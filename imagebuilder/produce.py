"""From any source to a file in any format: `caa image build`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.bootable import loader_of
from imagebuilder.errors import ImageError
from imagebuilder.files import put, working
from imagebuilder.formats import from_raw
from imagebuilder.pe import section
from imagebuilder.recipe import Recipe
from imagebuilder.sources import obtain
from imagebuilder.steps import Progress

_ENDINGS = {".qcow2": "qcow2", ".vhd": "vhd"}


@dataclass(frozen=True, slots=True)
class Output:
    """The file to write. `kind` is one of formats.FORMATS, or None to go by the end of its name.

    `kernel`: also beside it, with the endings vmlinuz, initrd and cmdline, what is needed to boot without firmware.
    """

    path: Path
    kind: str | None = None
    kernel: bool = False


@dataclass(frozen=True, slots=True)
class Produced:
    """A written disk. `size` is the virtual one in bytes, `used` what of it is not a hole; the rest as of Disk."""

    path: Path
    kind: str
    arch: str
    size: int
    used: int
    measurements: Mapping[str, str]


def produce(
    source: str,
    output: Output,
    *,
    arch: str,
    progress: Progress,
    recipe: Recipe,
    auth_file: Path | None = None,
) -> Produced:
    """Write the disk of a source. What was at the path stays until the new one is whole. Raises ImageError."""
    path = output.path
    kind = output.kind or _ENDINGS.get(path.suffix.lower(), "raw")
    if path.is_dir():
        raise ImageError("FileError", f"{path} is a directory; a file's path is needed")
    if not path.parent.is_dir():
        raise ImageError("FileError", f"{path.parent} is no directory that exists, so {path.name} cannot be put there")
    with working(path.parent) as work:
        disk = obtain(source, work, arch=arch, progress=progress, recipe=recipe, auth_file=auth_file)
        used = disk.path.stat().st_blocks * 512
        written = disk.path
        if kind != "raw":
            written = work / "written"
            from_raw(disk.path, kind, written, progress)
        if output.kernel:
            _write_kernel(disk.path, source or "the recipe's disk", path)
        put(written, path)
    return Produced(path, kind, disk.arch, disk.size, used, disk.measurements)


def _write_kernel(raw: Path, name: str, beside: Path) -> None:
    program = loader_of(raw, name) or b""
    for section_name, suffix in ((".linux", "vmlinuz"), (".initrd", "initrd"), (".cmdline", "cmdline")):
        content = section(program, section_name)
        if content is None:
            raise ImageError("NotBootable", f"{name} has no unified kernel image with a section {section_name}")
        new = beside.with_name(f".{beside.name}.{suffix}.part")
        new.write_bytes(content.rstrip(b"\0") if suffix == "cmdline" else content)
        put(new, beside.with_name(f"{beside.name}.{suffix}"))
