"""A pod VM's disk that `caa image build` made of the sources as they are, kept until they change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    """Run the command; what it printed."""
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
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


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
