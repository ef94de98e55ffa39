"""`caa image` in processes that start quickly and can be killed, on disks that are made quickly.

A helper process has everything imported and forks for each command, which is otherwise a second of importing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

MIB = 1 << 20
BLOCK = 512 << 10
PATIENCE_S = 120.0
_PRELOAD = ["caa.cli.image", "caa.images.setup", "caa.settings", "imagebuilder.publish.aws", "tests.clouds.imagelab"]


def context() -> ForkServerContext:
    """Where commands run."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(_PRELOAD)
    return made


def _main(verb: list[str], environ: dict[str, str], out: str) -> None:
    os.environ.clear()
    os.environ.update(environ)
    with open(out, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    from caa.cli.main import main

    code = main(["image", *verb])
    sys.stdout.flush()
    os._exit(code)


@dataclass
class Command:
    """One `caa image`, under way or over."""

    process: Any
    out: Path

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit code; below 0 the signal that ended it."""
        self.process.join(PATIENCE_S)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"`caa image` does not end:\n{self.said}")
        return int(self.process.exitcode)

    @property
    def said(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""


@dataclass
class ImageLab:
    """One node's `caa image`."""

    directory: Path
    environ: dict[str, str]
    context: ForkServerContext
    commands: list[Command] = field(default_factory=list)

    def begin(self, *verb: str, **environ: str) -> Command:
        out = self.directory / f"said-{len(self.commands)}"
        given = {"PATH": os.environ["PATH"], **self.environ, **environ}
        process = self.context.Process(target=_main, args=(list(verb), given, str(out)))
        process.start()
        command = Command(process, out)
        self.commands.append(command)
        return command

    def run(self, *verb: str, code: int = 0, **environ: str) -> str:
        """What it said; it must end with this code."""
        command = self.begin(*verb, **environ)
        assert command.wait() == code, command.said
        return command.said

    def json(self, *verb: str, **environ: str) -> Any:
        command = self.begin(*verb, "--json", **environ)
        assert command.wait() == 0, command.said
        return json.loads(command.said.splitlines()[-1])

    def close(self) -> None:
        for command in self.commands:
            command.kill()
            command.process.join()


@contextlib.contextmanager
def image_lab(directory: Path, environ: dict[str, str], disk: Path, node: str = "worker-1") -> Iterator[ImageLab]:
    directory.mkdir(parents=True, exist_ok=True)
    own = {
        "CAA_STATE_DIR": str(directory / "state"),
        "PODS_DIR": "/run/caa-test/pods",  # short, and never made
        "CAA_CLUSTER_ID": "prod",
        "NODE_NAME": node,
        "PODVM_IMAGE_URI": str(disk),
    }
    made = ImageLab(directory, own | environ, context())
    try:
        yield made
    finally:
        made.close()


def make_disk(path: Path, size: int = 64 * MIB, blocks: int = 24, seed: int = 1) -> Path:
    """A sparse disk with so many blocks of data spread over it, one of zeros that were written, and half a block."""
    dice = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for number in range(blocks):
            file.seek(number * 2 * BLOCK)
            file.write(dice.randbytes(BLOCK))
        file.seek(0)
        file.write(_master_boot_record(size))
        file.seek((blocks * 2 + 1) * BLOCK)
        file.write(bytes(BLOCK))
        file.seek((blocks * 2 + 4) * BLOCK)
        file.write(dice.randbytes(BLOCK // 2))
    return path


def _master_boot_record(size: int) -> bytes:
    """Code for a PC's BIOS and one partition: the least that is taken for a disk that boots."""
    entry = struct.pack("<B3sB3sII", 0x80, b"", 0x83, b"", 2048, size // 512 - 2048)
    return b"\xeb\xfe".ljust(446, b"\0") + entry.ljust(64, b"\0") + b"\x55\xaa"


def block_sums(path: Path) -> dict[int, bytes]:
    """Block number -> sha256 of every block that is not all zeros."""
    data = path.read_bytes()
    pieces = {at // BLOCK: data[at : at + BLOCK].ljust(BLOCK, b"\0") for at in range(0, len(data), BLOCK)}
    return {number: hashlib.sha256(piece).digest() for number, piece in pieces.items() if any(piece)}
