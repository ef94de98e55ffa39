"""What an image is made from. Equal inputs give an equal id, which tells images apart."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from imagebuilder.tools import BuildError, run

RECIPE = Path(__file__).with_name("recipe")
SUITE = "bookworm"  # Debian 12, whose python3 (3.11) the guest's code is written for

# The parts of the guest's source that go into the image.
GUEST_PARTS = ("__init__.py", "ttrpc", "guest", "podnetwork")
# The builder's modules that decide what is in an image.
_RECIPE_CODE = ("bootstrap", "build", "disk", "initrd", "modules", "pe", "platforms", "recipe", "rootfs", "rootimage")
AGENT = Path("usr/local/bin/kata-agent")

# One name space for all ids derived from inputs. Any fixed UUID would do; this is the one that was drawn.
_NAMESPACE = uuid.UUID("5d0a4b5e-3c86-4f0e-9a5f-7f2d8f6d1c11")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the recipe is to make. `guest_source` is the package that runs in the VM.

    `payload` is a directory or tar laid over the root. `verity`: the root is read-only and checked by dm-verity, and
    what is written to it is kept in memory. `fips`: the kernel starts in FIPS mode.
    """

    guest_source: Path
    payload: Path | None = None
    verity: bool = False
    fips: bool = False


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that decides what is in an image, but the versions of Debian's packages. Digests are sha256 in hex."""

    arch: str
    suite: str
    recipe: str
    guest: str
    payload: str  # "" without payload: then the image has the stand-in agent
    agent: str  # "kata-agent" or "stand-in"
    source_date_epoch: int
    verity: bool
    fips: bool

    @property
    def id(self) -> uuid.UUID:
        """All ids in the image follow from it."""
        return uuid.uuid5(_NAMESPACE, json.dumps(asdict(self), sort_keys=True))


def read_inputs(recipe: Recipe, arch: str) -> Inputs:
    """The inputs as they are now. Raises ImageError for an input that cannot work."""
    guest_source, payload = recipe.guest_source, recipe.payload
    for part in GUEST_PARTS:
        if not (guest_source / part).exists():
            raise BuildError(f"guest_source: {guest_source} has no {part}")
    return Inputs(
        arch=arch,
        suite=SUITE,
        recipe=_digest_of([RECIPE, *(Path(__file__).with_name(f"{name}.py") for name in _RECIPE_CODE)], plain_mode),
        guest=_digest_of([guest_source / part for part in GUEST_PARTS], plain_mode),
        payload=_payload_digest(payload) if payload else "",
        agent="kata-agent" if payload and _has_agent(payload) else "stand-in",
        source_date_epoch=_source_date_epoch(),
        verity=recipe.verity,
        fips=recipe.fips,
    )


def lines(name: str, arch: str = "") -> list[str]:
    """The entries of a list in the recipe, without comments; without those for other architectures ("name [amd64]")."""
    found = []
    for line in (RECIPE / name).read_text().splitlines():
        entry, _, only = line.partition(" [")
        if entry.strip() and not entry.startswith("#") and only.strip("] ") in ("", arch):
            found.append(entry.strip())
    return found


def _source_date_epoch() -> int:
    """The time stamped on files. Fixed unless asked otherwise, so that equal inputs give equal images."""
    value = os.environ.get("SOURCE_DATE_EPOCH", "")
    if value and not value.isdigit():
        raise BuildError(f"SOURCE_DATE_EPOCH: {value!r} is not allowed: seconds since 1970")
    return int(value or "1735689600")  # 2025-01-01, within the dates that vfat and ext4 can hold


def _payload_digest(payload: Path) -> str:
    if payload.is_dir():
        return _digest_of([payload])
    if payload.is_file():
        with payload.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    raise BuildError(f"payload: {payload} is not a directory or a tar file")


def _has_agent(payload: Path) -> bool:
    if payload.is_dir():
        return (payload / AGENT).is_file()
    names = run(["tar", "-tf", payload]).splitlines()
    return str(AGENT) in {name.removeprefix("./").removeprefix("/") for name in names}


def plain_mode(mode: int) -> int:
    """The mode that a file of ours has in the image, whatever the umask was when it was checked out."""
    if stat.S_ISLNK(mode):
        return mode
    return stat.S_IFMT(mode) | (0o755 if stat.S_ISDIR(mode) or mode & 0o100 else 0o644)


def _digest_of(roots: list[Path], settle: Callable[[int], int] = int) -> str:
    """Digest of trees: relative names, types, modes and contents; not times, and not the compiled files."""
    digest = hashlib.sha256()
    for root in sorted(roots):
        for path in [root, *_walk(root)]:
            mode = settle(path.lstat().st_mode)
            digest.update(f"{root.name}/{path.relative_to(root)}\0{mode:o}\0".encode())
            if stat.S_ISLNK(mode):
                digest.update(os.fsencode(os.readlink(path)))
            elif stat.S_ISREG(mode):
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _walk(root: Path) -> Iterator[Path]:
    if root.is_dir() and not root.is_symlink():
        for path in sorted(root.iterdir()):
            if path.name != "__pycache__":
                yield path
                yield from _walk(path)
