"""A TPM for a VM: swtpm, and the registers it has by the commands that it got."""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EXTEND = (0x182).to_bytes(4, "big")  # TPM2_CC_PCR_Extend
_DIGEST_BYTES = {0x04: 20, 0x0B: 32, 0x0C: 48, 0x0D: 64}  # TPM_ALG_SHA1, SHA256, SHA384, SHA512
_SHA256 = 0x0B


@contextmanager
def tpm(directory: Path) -> Iterator[tuple[list[str], Path]]:
    """QEMU's arguments for it, and the log of its commands."""
    directory.mkdir()
    socket, log = directory / "socket", directory / "log"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}", "--ctrl", f"type=unixio,path={socket}"]
    process = subprocess.Popen([*command, "--log", f"level=20,file={log}", "--flags", "startup-clear"])
    try:
        deadline = time.monotonic() + 30
        while not socket.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        given = ["-chardev", f"socket,id=tpm,path={socket}", "-tpmdev", "emulator,id=tpm,chardev=tpm"]
        yield [*given, "-device", "tpm-tis,tpmdev=tpm"], log
    finally:
        process.kill()
        process.wait()


def registers(log: Path) -> dict[int, str]:
    """The sha256 bank as the commands made it, hex. A register that nothing was measured into is missing."""
    found: dict[int, bytes] = {}
    for said in re.finditer(r"SWTPM_IO_Read: length \d+\n((?:[ 0-9A-F]+\n)+)", log.read_text(errors="replace")):
        command = bytes.fromhex(said[1])
        if command[6:10] == _EXTEND:
            number = int.from_bytes(command[10:14], "big")
            for digest in _digests(command):
                found[number] = hashlib.sha256(found.get(number, bytes(32)) + digest).digest()
    return {number: value.hex() for number, value in found.items()}


def _digests(command: bytes) -> Iterator[bytes]:
    """Those for the sha256 bank; before them come handle, size of the authorisation, that, and their count."""
    at = 18 + int.from_bytes(command[14:18], "big")
    count, at = int.from_bytes(command[at : at + 4], "big"), at + 4
    for _ in range(count):
        kind, at = int.from_bytes(command[at : at + 2], "big"), at + 2
        if kind == _SHA256:
            yield command[at : at + _DIGEST_BYTES[kind]]
        at += _DIGEST_BYTES[kind]
