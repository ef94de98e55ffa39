"""A raw disk on this machine, ready to be published: what is in it, what it is for, and what it is measured by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.bootable import Bootable, look
from imagebuilder.errors import ImageError
from imagebuilder.steps import Progress

# Read at once for the digest: large enough that the progress costs nothing.
_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole, bootable disk. `path` is raw and sparse, `size` its bytes, holes included, `arch` amd64, arm64 or s390x.

    `digest` is the sha256 of the content in hex. `measurements` are what a verifier of confidential guests compares,
    each sha256 in hex: `disk`; `uki` (the unified kernel image as a file) and `verity-root-hash` where there is one;
    `tpm-pcr-11`, what that register of a TPM holds when the kernel starts, where the disk was built here.
    """

    path: Path
    size: int
    arch: str
    digest: str
    measurements: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Demands:
    """What a disk must be, wherever it comes from: its architecture; a root checked by dm-verity; FIPS mode."""

    arch: str
    verity: bool = False
    fips: bool = False


def read_disk(path: Path, name: str, demands: Demands, progress: Progress) -> Disk:
    """Look at a raw disk that came from `name`. Raises ImageError when it is not what is demanded."""
    found = look(path, name)
    if found.arch != demands.arch:
        raise ImageError(
            "WrongArchitecture", f"{name} is a disk for {found.arch} ({found.why}); what is asked for is {demands.arch}"
        )
    # An option without an effect would be a promise that nobody keeps.
    if demands.verity and not found.root_hash:
        raise ImageError(
            "NotAsAsked", f"{name} has no unified kernel image with the root hash of dm-verity, as is asked for"
        )
    if demands.fips and "fips=1" not in found.command_line.split():
        raise ImageError("NotAsAsked", f"{name} has no unified kernel image that starts in FIPS mode, as is asked for")
    digest = _digest(path, progress)
    return Disk(path, path.stat().st_size, found.arch, digest, _measurements(found, digest))


def _measurements(found: Bootable, digest: str) -> Mapping[str, str]:
    measured = {"disk": digest, "uki": found.uki, "verity-root-hash": found.root_hash}
    return {name: value for name, value in measured.items() if value}


def _digest(path: Path, progress: Progress) -> str:
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            done += len(piece)
            progress("measure", done, size)
    return digest.hexdigest()
