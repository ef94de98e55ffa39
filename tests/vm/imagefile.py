"""A pod VM's disk that `caa image build` made of the sources as they are, kept until they change."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import caa
from imagebuilder.recipe import Recipe, read_inputs

CACHE = Path(os.environ.get("CAA_TEST_IMAGE_CACHE", "/var/cache/caa-test"))


class ImageFile(NamedTuple):
    """A qcow2, what boots the same system without firmware, and what the command printed."""

    path: Path
    vmlinuz: Path
    initrd: Path
    command_line: str
    facts: dict[str, Any]


def build(out: Path, *options: str) -> dict[str, Any]:
    """Run the command; what it printed, with the CPU time it took and how crowded the machine was meanwhile."""
    command = [
        sys.executable,
        "-m",
        "caa.cli.main",
        "image",
        "build",
        "--json",
        "--kernel",
        "--output",
        str(out),
        *options,
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Crowding() as crowding:
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts: dict[str, Any] = json.loads(done.stdout)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**facts, "cpu_seconds": round(used, 1), "crowding": round(crowding.mean, 2)}


class Crowding:
    """A context; then how many times longer than alone on the machine a program took, as far as that is for the CPU."""

    def __init__(self) -> None:
        self.mean = 1.0
        self._samples: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Crowding:
        self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._ended.set()
        self._thread.join()
        self.mean = max(1.0, sum(self._samples) / len(self._samples))

    def _look(self) -> None:
        """A tenth of a second of work each two seconds."""
        while True:
            begun, used = time.monotonic(), time.thread_time()
            while time.thread_time() - used < 0.1:
                pass
            self._samples.append((time.monotonic() - begun) / (time.thread_time() - used))
            if self._ended.wait(2):
                return


def image_file(*, verity: bool = False, fips: bool = False, arch: str = "amd64") -> ImageFile:
    """The disk of these sources; built when there is none in the cache, which keeps one of each kind."""
    inputs = read_inputs(Recipe(Path(caa.__file__).parent, verity=verity, fips=fips), arch)
    kind = f"podvm-{arch}{'-verity' if verity else ''}{'-fips' if fips else ''}"
    CACHE.mkdir(parents=True, exist_ok=True)
    out = CACHE / f"{kind}.qcow2"
    record = CACHE / f"{kind}-{inputs.id}.json"
    if not record.exists():
        for old in CACHE.glob(f"{kind}-????????-*.json"):
            old.unlink()
        options = ["--arch", arch, *(["--verity"] if verity else []), *(["--fips"] if fips else [])]
        record.write_text(json.dumps(build(out, *options)))
    line = out.with_name(f"{out.name}.cmdline").read_text()
    facts = json.loads(record.read_text())
    return ImageFile(out, out.with_name(f"{out.name}.vmlinuz"), out.with_name(f"{out.name}.initrd"), line, facts)
