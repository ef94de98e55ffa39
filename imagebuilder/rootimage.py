"""The root as an ext4 file system, equal byte for byte when its files are equal, and its hash tree for dm-verity."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.recipe import Inputs
from imagebuilder.steps import Progress, tell
from imagebuilder.tools import BuildError, run

_MIB = 1 << 20
# What a pod may write to the root beside its containers, which live in memory: logs of a real agent, caches. A root
# that is read-only needs none.
_FREE_BYTES = 256 * _MIB
_FREE_BYTES_READ_ONLY = 4 * _MIB
# Both the file system's and the hash tree's, so that one read is checked by one hash.
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Verity:
    """A hash tree. `root_hash` and `salt` are hex, `blocks` the 4 KiB blocks of data it covers."""

    tree: Path
    root_hash: str
    salt: str
    blocks: int


@dataclass(frozen=True, slots=True)
class RootImage:
    """A file system in a file, and its hash tree if it has one."""

    path: Path
    verity: Verity | None


def build_root_image(root: Path, inputs: Inputs, work: Path, progress: Progress) -> RootImage:
    """Make the file system of the tree at `root`. Raises ImageError."""
    tell(progress, "file system")
    free = _FREE_BYTES_READ_ONLY if inputs.verity else _FREE_BYTES
    size = _round_up(int(tree_size(root) * 1.05) + free)
    path = work / "root.img"
    with path.open("wb") as file:
        file.truncate(size)
    identity = str(uuid.uuid5(inputs.id, "root file system"))
    settled = {"E2FSPROGS_FAKE_TIME": str(inputs.source_date_epoch)}
    run(
        # No journal: the disk lives as long as one boot. No reserved blocks: only root runs here.
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-b", str(_BLOCK), "-m", "0", "-O", "^has_journal", "-L", "root"),
            *("-U", identity, "-E", f"hash_seed={identity},lazy_itable_init=1,nodiscard", "-d", root, path),
        ],
        environment=settled,
    )
    _settle_times(path, inputs.source_date_epoch, settled)
    if not inputs.verity:
        return RootImage(path, None)
    tell(progress, "hash tree")
    return RootImage(path, _hash_tree(path, inputs, work))


def _settle_times(path: Path, epoch: int, settled: dict[str, str]) -> None:
    """mke2fs takes over when files were last read and changed, which nobody can set beforehand. So it is set here."""
    listed = run(["debugfs", "-R", "stats", path])
    counts = {name: int(value) for name, value in re.findall(r"^(Inode count|Free inodes): +(\d+)$", listed, re.M)}
    if len(counts) != 2:
        raise BuildError("debugfs does not tell how many files there are")
    # mke2fs takes inodes one after the other; 2 is the root directory, 11 the first that is free to use.
    last = counts["Inode count"] - counts["Free inodes"]
    stamp = f"@{epoch}"
    script = "".join(
        f"set_inode_field <{inode}> {field} {stamp}\n"
        for inode in [2, *range(11, last + 1)]
        for field in ("atime", "ctime", "crtime")
    )
    run(["debugfs", "-w", "-f", "/dev/stdin", path], text=script, environment=settled)


def _hash_tree(path: Path, inputs: Inputs, work: Path) -> Verity:
    tree = work / "verity.img"
    salt = hashlib.sha256(inputs.id.bytes).hexdigest()
    printed = run(
        [
            *("veritysetup", "format", "--hash", "sha256", "--salt", salt, f"--uuid={uuid.uuid5(inputs.id, 'verity')}"),
            *(f"--data-block-size={_BLOCK}", f"--hash-block-size={_BLOCK}", path, tree),
        ]
    )
    match = re.search(r"^Root hash:\s+([0-9a-f]{64})$", printed, re.M)
    if match is None:
        raise BuildError(f"veritysetup tells no root hash: {printed}")
    size = tree.stat().st_size
    with tree.open("r+b") as file:
        file.truncate(_round_up(size))
    return Verity(tree, match[1], salt, path.stat().st_size // _BLOCK)


def tree_size(root: Path | None) -> int:
    """Bytes of the tree (or file) in blocks of 4 KiB, with one inode (256 bytes) for each name."""
    if root is None:
        return 0
    total = root.stat().st_size if root.is_file() else 0
    for directory, _, names in os.walk(root):
        total += _BLOCK
        for name in names:
            size = os.lstat(os.path.join(directory, name)).st_size
            total += -(-size // _BLOCK) * _BLOCK + 256
    return total


def _round_up(size: int) -> int:
    return -(-size // _MIB) * _MIB
