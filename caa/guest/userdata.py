"""User data -> files under /run/peerpod. Reads the cloud-config that the worker sends, and nothing more of cloud-init.

The shape is the one guests of this kind have always read, strictly:

    #cloud-config

    write_files:
      - path: /run/peerpod/apf.json
        content: |
          ...

Only `write_files` with `path` and `content`; any other key is an error, for a key that is silently ignored
(`permissions`, `runcmd`) would leave a VM that is not what its sender asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from caa.guest.log import log
from caa.guest.writefiles import File, UserDataError

INITDATA = "/run/peerpod/initdata"
SOURCE = Path("/media/cidata/user-data")
"""Where the ISO labelled `cidata` is mounted."""

# Twice the largest user data of any cloud (64 KiB, and a third more for base64).
MAX_BYTES = 256 << 10

# Path -> mode. Everything else is skipped. The two that hold a private key or registry passwords are for root alone.
ALLOWED = {
    "/run/peerpod/aa.toml": 0o644,
    "/run/peerpod/cdh.toml": 0o644,
    "/run/peerpod/apf.json": 0o600,
    "/run/peerpod/auth.json": 0o600,
    INITDATA: 0o644,
    "/run/peerpod/scratch-space.marker": 0o644,
}


def parse(text: bytes) -> list[File]:
    """The entries of `write_files` in order, allowed or not. Raises UserDataError naming line and key."""
    if len(text) > MAX_BYTES:
        raise UserDataError(f"the user data has {len(text)} bytes; at most {MAX_BYTES} are allowed")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserDataError(f"the user data is not UTF-8 at byte {error.start}") from None
    files = _known_shape(decoded)
    if files is None:
        from caa.guest.cloudconfig import read_events

        files = read_events(decoded)
        _check_unicode(files)
    return files


def _check_unicode(files: list[File]) -> None:
    """An escape in YAML can name half a character, which no file can hold."""
    for number, file in enumerate(files, 1):
        try:
            "".join(file).encode()
        except UnicodeEncodeError:
            raise UserDataError(f"entry {number} of write_files holds half a character") from None


def _known_shape(text: str) -> list[File] | None:
    """The entries, if the text is exactly what this project's worker writes; None says nothing about other text.

    YAML would read the same from it (the tests hold the two against each other), but importing it takes 15 ms, and
    twenty times as long in an emulated pod VM.
    """
    if not text.isascii() or not text.replace("\n", "").isprintable() or not text.endswith("\n"):
        return None
    head, *entries = text.split("\n  - path: ")
    if head != "#cloud-config\n\nwrite_files:" or not entries:
        return None
    entries[-1] = entries[-1].removesuffix("\n")
    files = []
    for entry in entries:
        path, *body = entry.split("\n")
        if not path.startswith("/") or not path.translate(_PLAIN_PATH).isalnum():
            return None
        content = ""
        if body:
            block = body[1:]
            # The first line settles a block's indentation, and blank lines at its end are not content.
            if body[0] != "    content: |" or not block or not block[-1].strip() or block[0][6:7] in ("", " "):
                return None
            if any(line and not line.startswith("      ") for line in block):
                return None
            content = "".join(f"{line[6:]}\n" for line in block)
        files.append(File(path, content))
    return files


# Characters of a path that have no meaning in YAML, whatever comes before or after them.
_PLAIN_PATH = dict.fromkeys(map(ord, "/._-"))


def write_files(files: Iterable[File], root: Path = Path("/"), allowed: Mapping[str, int] = ALLOWED) -> list[str]:
    """Write the allowed files below `root`, each by rename so that a reader never sees half; returns their paths.

    Paths are compared as text: no spelling other than those in `allowed` is ever opened, and no link is followed.
    Raises UserDataError naming the path that cannot be written.
    """
    written = []
    for path, content in files:
        mode = allowed.get(path)
        if mode is None:
            log(f"user data: skipped {path[:200]!r}; allowed are {', '.join(allowed)}")
            continue
        target = root / path.removeprefix("/")
        try:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            directory = os.open(target.parent, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _write(directory, target.name, content, mode)
            finally:
                os.close(directory)
        except OSError as error:
            raise UserDataError(f"cannot write {path}: {error.strerror}") from None
        written.append(path)
    return written


def _write(directory: int, name: str, content: str, mode: int) -> None:
    new = f".{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(new, dir_fd=directory)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=directory)
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(descriptor, mode)  # whatever the umask
        out.write(content.encode())
    os.replace(new, name, src_dir_fd=directory, dst_dir_fd=directory)


def read_source(source: Path = SOURCE) -> bytes:
    """The user data on the ISO, or the beginning of it, if it is too long. Raises UserDataError."""
    try:
        with source.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserDataError(f"cannot read {source}: {error.strerror}") from None


def provision(user_data: bytes, root: Path = Path("/")) -> list[str]:
    """Write the files of the user data, then those of its initdata; returns the paths in order.

    Raises UserDataError or InitdataError; nothing is written when either is in error.
    """
    files = parse(user_data)
    given: dict[str, str] = {}
    for path, content in files:
        if path in given:
            raise UserDataError(f"path {path[:200]!r} twice in write_files")
        given[path] = content
    measured = _initdata_files(given, root)
    written = write_files(files, root)
    written += write_files((File(*file) for file in measured.items()), root, dict.fromkeys(measured, 0o644))
    log(f"user data: wrote {', '.join(written) or 'nothing'}")
    return written


def _initdata_files(given: Mapping[str, str], root: Path) -> dict[str, str]:
    """What initdata makes of itself: that of the user data, else one that is there already, else a ready-made one."""
    from caa.guest.initdata import MAX_TOML_BYTES, NONE_GIVEN, NONE_GIVEN_FILES, read_initdata

    if INITDATA in given:
        return read_initdata(given[INITDATA])
    there = root / INITDATA.removeprefix("/")
    try:
        with there.open("rb") as file:
            return read_initdata(file.read(MAX_TOML_BYTES).decode("latin-1"))
    except FileNotFoundError:
        return {INITDATA: NONE_GIVEN, **NONE_GIVEN_FILES}
    except OSError as error:
        raise UserDataError(f"cannot read {INITDATA}: {error.strerror}") from None
