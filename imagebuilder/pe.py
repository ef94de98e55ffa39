"""EFI programs (PE32+), as far as unified kernel images need them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """One section: its name, where it is loaded relative to the image base, its bytes there and in the file."""

    name: str
    address: int
    size: int
    file_at: int
    file_size: int


@dataclass(frozen=True, slots=True)
class Program:
    """An EFI program's sections and where it wants to be loaded. `alignment` is that of sections in memory."""

    base: int
    alignment: int
    sections: tuple[Section, ...]

    @property
    def end(self) -> int:
        """The end of the last section, relative to the base."""
        return max((one.address + one.size for one in self.sections), default=0)


def read_program(data: bytes) -> Program | None:
    """Read the headers; None when it is no EFI program."""
    try:
        (header,) = struct.unpack_from("<I", data, 0x3C)
        if data[:2] != b"MZ" or data[header : header + 4] != b"PE\0\0":
            return None
        count, optional_size = struct.unpack_from("<H12xH", data, header + 6)
        optional = header + 24
        (base,) = struct.unpack_from("<Q", data, optional + 24)
        (alignment,) = struct.unpack_from("<I", data, optional + 32)
        return Program(base, max(alignment, 0x1000), tuple(_sections(data, optional + optional_size, count)))
    except struct.error:
        return None


def _sections(data: bytes, table: int, count: int) -> Iterator[Section]:
    for index in range(count):
        name, size, address, file_size, file_at = struct.unpack_from("<8s4I", data, table + 40 * index)
        yield Section(name.rstrip(b"\0").decode("latin-1"), address, size, file_at, file_size)


def section(data: bytes, name: str) -> bytes | None:
    """The content of a section; None without program or section."""
    program = read_program(data)
    found = next((one for one in program.sections if one.name == name), None) if program else None
    return data[found.file_at : found.file_at + min(found.size, found.file_size)] if found else None


def command_line_of(data: bytes) -> str | None:
    """The kernel command line of a unified kernel image ("" if it has none); None when the program is not one."""
    if section(data, ".linux") is None:
        return None
    line = section(data, ".cmdline") or b""
    return line.rstrip(b"\0\n").decode(errors="replace")


def settle(data: bytes, epoch: int) -> bytes:
    """The program as if it had been linked at `epoch`, without the checksum, which firmware does not look at."""
    settled = bytearray(data)
    (header,) = struct.unpack_from("<I", data, 0x3C)
    struct.pack_into("<I", settled, header + 8, epoch)
    struct.pack_into("<I", settled, header + 24 + 64, 0)
    return bytes(settled)
