"""The initrd: busybox, one script and the drivers of the root's disk.

Compressed, for firmware reads a disk more slowly than the kernel unpacks; gzip, for it needs no tool.
"""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path

from imagebuilder.modules import choose, named
from imagebuilder.recipe import RECIPE, Inputs, lines, plain_mode
from imagebuilder.tools import run

_APPLETS = (
    *("cat", "chroot", "echo", "find", "grep", "ls", "mkdir", "modprobe", "mount", "reboot", "sh", "sleep", "sort"),
    "switch_root",
)

# A root that is checked and read-only, and what is written to it in memory above.
_VERITY_MODULES = ("dm_verity", "overlay")


def build_initrd(root: Path, release: str, work: Path, out: Path, inputs: Inputs) -> None:
    """Write the initrd for kernel `release` of the root file system at `root`."""
    tree = work / "initrd"
    for name in ("bin", "dev", "proc", "root", "sys"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", tree / "bin/busybox")
    for applet in _APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    shutil.copy(RECIPE / "initrd-init", tree / "init")
    (tree / "init").chmod(0o755)
    if inputs.verity:
        _copy_program(root, "usr/sbin/dmsetup", tree)
    source, target = root / "lib/modules" / release, tree / "lib/modules" / release
    names = [*lines("initrd-modules.txt", inputs.arch), *(_VERITY_MODULES if inputs.verity else ())]
    for module in choose(source, names, named, "initrd-modules.txt"):
        (target / module).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / module, target / module)
    for name in ("modules.order", "modules.builtin"):
        shutil.copy(source / name, target / name)
    run(["depmod", "-b", tree, release])
    for index in target.glob("modules.*.bin"):  # busybox reads the text files
        index.unlink()
    write_cpio(tree, out)


def _copy_program(root: Path, program: str, tree: Path) -> None:
    """A program of the root with the libraries it loads, each where the program looks for it."""
    listed = run(["chroot", root, "ldd", f"/{program}"])
    for name in [f"/{program}", *re.findall(r"(/\S+)(?= \()", listed)]:
        target = tree / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy((root / name.lstrip("/")), target)
        target.chmod(0o755)


def write_cpio(tree: Path, out: Path) -> None:
    """The tree as a cpio archive of the format the kernel reads ("newc", gzip).

    Owned by root, without times, and with the same modes under any umask.
    """
    with out.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for inode, path in enumerate(sorted(tree.rglob("*")), start=1):
            data = b"" if path.is_dir() else bytes(path.readlink()) if path.is_symlink() else path.read_bytes()
            file.write(_cpio_entry(str(path.relative_to(tree)), inode, plain_mode(path.lstat().st_mode), data))
        file.write(_cpio_entry("TRAILER!!!", 0, 0, b""))


def _cpio_entry(name: str, inode: int, mode: int, data: bytes) -> bytes:
    # inode, mode, uid, gid, links, mtime, size, device x 4, length of the name, checksum
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return _padded(header) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
