"""CopyFile of the stand-in agent: files, directories and links below the shared directory, and nowhere else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from caa.ttrpc.frames import Code, StatusError
from caa.ttrpc.protobuf import Message, field


class CopyFileRequest(Message):
    """One piece of a file. `file_mode` holds the type too; for a symbolic link `data` is its target."""

    path: str = field(1)
    file_size: int = field(2)
    file_mode: int = field(3)
    dir_mode: int = field(4)
    uid: int = field(5)
    gid: int = field(6)
    offset: int = field(7)
    data: bytes = field(8)


def copy_file(request: CopyFileRequest, shared: Path) -> None:
    """Write one piece. Raises StatusError INVALID_ARGUMENT for a path outside `shared`, INTERNAL for I/O errors."""
    path = Path(request.path)
    if not path.is_absolute() or ".." in path.parts or "\0" in request.path or shared not in path.parents:
        raise StatusError(Code.INVALID_ARGUMENT, f"the path is not below {shared}")
    if request.offset < 0 or request.offset + len(request.data) > max(request.file_size, len(request.data)):
        raise StatusError(Code.INVALID_ARGUMENT, "the piece lies outside the file")
    try:
        if not path.parent.resolve().is_relative_to(shared.resolve()):
            raise StatusError(Code.INVALID_ARGUMENT, f"the path leaves {shared} through a link")
        # Go's directory bit is outside 0o777; without any mode a directory must still be usable.
        path.parent.mkdir(mode=request.dir_mode & 0o777 or 0o750, parents=True, exist_ok=True)
        _write(request, path)
    except OSError as error:
        raise StatusError(Code.INTERNAL, f"cannot copy: {error.strerror}") from None


def _write(request: CopyFileRequest, path: Path) -> None:
    mode = request.file_mode & 0o7777
    if stat.S_ISDIR(request.file_mode):
        if path.is_symlink():
            path.unlink()
        path.mkdir(exist_ok=True)
        path.chmod(mode)
    elif stat.S_ISLNK(request.file_mode):
        path.unlink(missing_ok=True)
        os.symlink(request.data, os.fsencode(path))
        return
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_TRUNC if request.offset == 0 else 0)
        descriptor = os.open(path, flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.pwrite(descriptor, request.data, request.offset)
            os.fchmod(file.fileno(), mode)
    if os.geteuid() == 0:
        os.chown(path, request.uid, request.gid, follow_symlinks=False)
