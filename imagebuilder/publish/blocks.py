"""Which blocks of a disk hold data, and which of those a cloud has already."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path


class BlockSet:
    """A set of block numbers, written down as one bit each: 512 bytes for 2 GiB in blocks of 512 KiB."""

    def __init__(self, count: int, written: bytes = b"") -> None:
        """`count` blocks, of which those in `written`, the `bytes()` of an earlier set, are in it."""
        self._bits = bytearray(-(-count // 8))
        if len(written) == len(self._bits):  # of another size: of another disk, so nothing of it holds
            self._bits[:] = written

    def __contains__(self, index: int) -> bool:
        return bool(self._bits[index >> 3] & 1 << (index & 7))

    def __len__(self) -> int:
        return sum(byte.bit_count() for byte in self._bits)

    def __bytes__(self) -> bytes:
        return bytes(self._bits)

    def add(self, index: int) -> None:
        """Put a block in."""
        self._bits[index >> 3] |= 1 << (index & 7)


def data_blocks(path: Path, size: int, block: int) -> Iterator[int]:
    """The numbers of blocks that may hold something other than zeros, in order; holes of the file are passed over.

    The file system knows holes, not zeros that were written: whoever reads a block looks once more.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        next_block = 0
        at = 0
        while at < size:
            try:
                at = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole until the end
                    return
                raise
            end = min(os.lseek(descriptor, at, os.SEEK_HOLE), size)
            first = max(next_block, at // block)
            last = -(-end // block)
            yield from range(first, last)
            next_block = max(next_block, last)
            at = max(end, next_block * block)
    finally:
        os.close(descriptor)


class BlockReader:
    """Reads blocks of a file from any number of threads. The last one is filled up with zeros."""

    def __init__(self, path: Path, block: int) -> None:
        self._block = block
        self._zeros = bytes(block)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, index: int) -> bytes | None:
        """A block, or None when it is all zeros."""
        data = os.pread(self._descriptor, self._block, index * self._block)
        if len(data) < self._block:
            data += bytes(self._block - len(data))
        return None if data == self._zeros else data

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
