"""Files that are there whole or not at all, and a place for what is needed on the way to them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagebuilder.errors import ImageError, no_space

_PIECE = 1 << 20


@contextmanager
def working(parent: Path) -> Iterator[Path]:
    """A directory in `parent` that is gone afterwards. What the file system refuses becomes an ImageError."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".image-", dir=parent) as name:
            work = Path(name)
            work.chmod(0o755)  # apt's unprivileged downloader must reach the root that is made inside
            yield work
    except OSError as error:
        raise file_error(error, parent) from error


def file_error(error: OSError, place: Path) -> ImageError:
    """What the system said about a file, as an error of ours."""
    where = error.filename or place
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(f"the disk is full at {where}")
    return ImageError("FileError", f"{where}: {error.strerror or error}")


def put(source: Path, target: Path) -> None:
    """Rename into place, on disk before it shows."""
    new = target.with_name(f".{target.name}.new")
    try:
        shutil.move(source, new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def copy_sparse(source: Path, target: Path, at: int) -> None:
    """Write a file's content into `target`, which exists, from byte `at` on; holes stay what they are there."""
    with source.open("rb") as reader, target.open("r+b") as writer:
        end, position = os.fstat(reader.fileno()).st_size, 0
        while position < end:
            try:
                position = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            hole = os.lseek(reader.fileno(), position, os.SEEK_HOLE)
            reader.seek(position)
            writer.seek(at + position)
            while position < hole and (piece := reader.read(min(_PIECE, hole - position))):
                writer.write(piece)
                position += len(piece)
