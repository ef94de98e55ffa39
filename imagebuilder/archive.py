"""One file out of a tar archive that is still arriving. Nothing else of it ever touches a disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from imagebuilder.errors import ImageError
from imagebuilder.formats import MAX_DISK_BYTES

_WHITEOUT = ".wh."  # how a layer says that a file of the layers below is gone
_OPAQUE = ".wh..wh..opq"

_UNREADABLE = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
_PACKED: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}


class _Stream(io.RawIOBase):
    """Pieces as a file that can only be read on."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer)  # type: ignore[arg-type]
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def extract(pieces: Iterator[bytes], path: str, out: Path, name: str) -> bool:
    """Write the archive's file at `path` to `out`; False when it has none. Raises ImageError.

    All pieces are read in any case, for what checks them speaks at their end.
    """
    wanted = _settled(path)
    found = hidden = False
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Stream(pieces), 1 << 20), mode="r|*") as archive:
            for member in archive:
                place = _settled(member.name)
                if place == wanted:
                    _write(archive, member, out, name)
                    found = True
                hidden = hidden or _hides(place, wanted)
    except _UNREADABLE as error:
        _read_on(pieces)  # whoever checks them may know better what is wrong
        raise ImageError("NotADisk", f"{name}: the archive cannot be read: {error}") from None
    _read_on(pieces)
    if hidden and not found:  # what hides a file hides that of the layers below only
        raise ImageError("SourceNotFound", f"{name} was deleted in a later layer")
    return found


def _read_on(pieces: Iterator[bytes]) -> None:
    for _ in pieces:
        pass


def unpack(path: Path, name: str, out: Path) -> Path:
    """What is in `path` without the packing around it, at `out`: of a tar archive the only file. Else `path` itself.

    Told by content. Raises ImageError.
    """
    with path.open("rb") as file:
        head = file.read(512)
    opener = next((one for magic, one in _PACKED.items() if head.startswith(magic)), None)
    if opener is None and head[257:262] != b"ustar":
        return path
    inside = _only_file(path, name)
    if inside is not None:
        with path.open("rb") as file:
            extract(iter(lambda: file.read(1 << 20), b""), inside, out, f"{name}::{inside}")
        return out
    if opener is None:
        raise ImageError("NotADisk", f"{name}: the archive cannot be read")
    try:
        with opener(path) as packed, out.open("wb") as file:
            while piece := packed.read(1 << 20):
                file.write(piece)
                if file.tell() > MAX_DISK_BYTES:
                    raise ImageError("TooLarge", f"{name} unpacks to more than {MAX_DISK_BYTES >> 30} GiB")
    except _UNREADABLE as error:
        raise ImageError("Truncated", f"{name} cannot be unpacked: {error}") from None
    return out


def _only_file(path: Path, name: str) -> str | None:
    """The one file in an archive; None when it is none. Raises ImageError when there are several."""
    names: list[str] = []
    try:
        with tarfile.open(path, mode="r|*") as archive:
            names.extend(member.name for member in archive if member.isfile())
    except _UNREADABLE:
        if not names:
            return None
        raise ImageError("Truncated", f"{name} is an archive that is cut off or damaged") from None
    if len(names) != 1:
        listed = ", ".join(names[:10]) or "nothing"
        raise ImageError("NotADisk", f"{name} is an archive of {listed}; one disk is needed")
    return names[0]


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, out: Path, name: str) -> None:
    if member.issym() or member.islnk():
        raise ImageError("NotADisk", f"{name} is a link to {member.linkname}; name that")
    content = archive.extractfile(member)
    if content is None:
        raise ImageError("NotADisk", f"{name} is not a file")
    if member.size > MAX_DISK_BYTES:
        raise ImageError("TooLarge", f"{name} has {member.size >> 30} GiB")
    with out.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)


def _settled(path: str) -> str:
    return str(PurePosixPath("/", path))


def _hides(place: str, wanted: str) -> bool:
    directory, _, last = place.rpartition("/")
    if last == _OPAQUE:
        return wanted.startswith(f"{directory}/")
    if not last.startswith(_WHITEOUT):
        return False
    gone = f"{directory}/{last.removeprefix(_WHITEOUT)}"
    return wanted == gone or wanted.startswith(f"{gone}/")
