"""Bytes from a server, whole and right: resumed where a connection broke, limited in size, checked by sha256."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from imagebuilder.errors import ImageError, PassingImageError
from imagebuilder.steps import Progress

# Far more than a disk of a pod VM takes when it is compressed or sparse.
MAX_DOWNLOAD_BYTES = 32 << 30
# Between two tries of which the first brought nothing. One that brought something is followed at once.
_WAITS = (0.5, 1.0, 2.0)
_WORTH_TRYING_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class Reply(Protocol):
    """An answer whose body is still to come. Names of headers are in small letters."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def pieces(self) -> Iterator[bytes]:
        """The body. Raises CutError when the connection breaks."""
        ...


class CutError(Exception):
    """There is no connection, or no longer. str() is what the client's library said."""


Opener = Callable[[int], AbstractContextManager[Reply]]
"""Asks for the bytes from an offset on. Raises CutError."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, and as what it is known to people. `before` is called once with its size, if that is told."""

    name: str
    sha256: str
    progress: Progress
    before: Callable[[int], None]


def download(open_at: Opener, wanted: Wanted) -> Iterator[bytes]:
    """The bytes of one file. Raises ImageError: at the end, too, so nothing may be used before.

    SourceNotFound, SourceDenied, SourceUnavailable (passing), TooLarge, DigestMismatch.
    """
    digest, done, total, failures = hashlib.sha256(), 0, None, 0
    while total is None or done < total:
        before = done
        try:
            with open_at(done) as reply:
                told = _size(reply, done, wanted.name)
                if total is None and told is not None:
                    _check_size(told, wanted.name)
                    wanted.before(told)
                    total = told
                skip = done if reply.status == 200 else 0  # the server cannot begin in the middle
                for piece in reply.pieces():
                    new, skip = piece[skip:], max(0, skip - len(piece))
                    digest.update(new)
                    done += len(new)
                    _check_size(done, wanted.name)
                    wanted.progress("download", done, total)
                    yield new
                if total is None:
                    break
                if done == before:
                    raise CutError(f"it ended after {done} of {total} bytes")
        except CutError as error:
            failures = 0 if done > before else failures + 1
            if failures > len(_WAITS):
                raise PassingImageError(
                    "SourceUnavailable", f"{wanted.name} cannot be read: {error} (tried {failures} times)"
                ) from None
            if failures:
                time.sleep(_WAITS[failures - 1])
    if digest.hexdigest() != wanted.sha256:
        raise ImageError(
            "DigestMismatch",
            f"{wanted.name} has the sha256 {digest.hexdigest()}, and not {wanted.sha256} as it should",
        )


def refused(status: int, name: str) -> ImageError | CutError | None:
    """What a status means: an error, one that may pass, or nothing."""
    if status in (200, 206):
        return None
    if status in _WORTH_TRYING_AGAIN:
        return CutError(f"the server answered {status}")
    if status in (401, 403):
        return ImageError("SourceDenied", f"{name} may not be read: the server answered {status}")
    if status in (404, 410):
        return ImageError("SourceNotFound", f"{name} does not exist: the server answered {status}")
    return ImageError("SourceRefused", f"{name} cannot be read: the server answered {status}")


def _size(reply: Reply, offset: int, name: str) -> int | None:
    """The size of the whole file, if the server tells."""
    if error := refused(reply.status, name):
        raise error
    if reply.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("content-range", ""))
        if match is None or int(match[1]) != offset:
            raise ImageError("SourceRefused", f"{name} cannot be read: the server answered with another part of it")
        return int(match[2])
    length = reply.headers.get("content-length", "")
    return int(length) if length.isdigit() and not reply.headers.get("content-encoding") else None


def _check_size(size: int, name: str) -> None:
    if size > MAX_DOWNLOAD_BYTES:
        raise ImageError(
            "TooLarge", f"{name} has {size >> 30} GiB or more; allowed: up to {MAX_DOWNLOAD_BYTES >> 30} GiB"
        )
