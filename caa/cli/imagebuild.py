"""`caa image build`: a disk on this machine, from any source, in the format that is asked for."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import caa
from caa.cli.bars import Bars
from caa.cli.main import USAGE, clear_up_on_sigterm, fail

_ABOUT = """Make a pod VM disk on this machine. Nothing is published.

sources:
  (none)                                 a minimal Debian, built here; needs root
  /path/to/disk                          raw, qcow2 or VHD, told by content
  https://host/disk#sha256=HEX           downloaded and checked
  oci::IMAGE[:TAG|@DIGEST][::PATH]       an OCI artefact, or an image with the disk at PATH (/image/podvm.qcow2)
"""
_EXAMPLES = """examples:
  caa image build --output podvm.qcow2
  caa image build --verity --fips --output podvm.raw --json
  caa image build --source oci::quay.io/org/podvm:1.2 --format vhd --output podvm.vhd
"""


def add_arguments(verbs: Any) -> None:
    """The options; what is not given is taken from the configuration."""
    build = verbs.add_parser(
        "build",
        help="make a disk on this machine, from a source or from nothing",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("--source", metavar="TEXT", help="where the disk comes from (PODVM_IMAGE_URI)")
    build.add_argument("--output", metavar="FILE", required=True, type=Path, help="what to write")
    build.add_argument(
        "--format", choices=("raw", "qcow2", "vhd"), help="of the file; by the end of its name if not given, else raw"
    )
    build.add_argument("--arch", choices=("amd64", "arm64", "s390x"), help="what the disk must be for (CAA_IMAGE_ARCH)")
    build.add_argument("--auth-file", metavar="FILE", type=Path, help="pull secrets for oci:: (REGISTRY_AUTH_FILE)")
    build.add_argument(
        "--kernel", action="store_true", help="also write FILE.vmlinuz, FILE.initrd and FILE.cmdline, to boot directly"
    )
    recipe = build.add_argument_group(
        "when it is built here", "A disk from a source must fulfil --verity and --fips, too."
    )
    recipe.add_argument(
        "--payload", metavar="PATH", type=Path, help="directory or tar laid over the root (PODVM_PAYLOAD)"
    )
    recipe.add_argument(
        "--verity",
        action="store_true",
        default=None,
        help="a read-only root, checked by dm-verity (CAA_IMAGE_VERITY)",
    )
    recipe.add_argument(
        "--fips",
        action="store_true",
        default=None,
        help="start the kernel in FIPS mode (BOOT_FIPS)",
    )
    build.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it and print what it measures."""
    from caa.images.keys import ImageKeys
    from imagebuilder.errors import ImageError
    from imagebuilder.produce import Output, produce
    from imagebuilder.sources import Recipe
    from providers.base import ConfigError
    from providers.keys import read_keys

    clear_up_on_sigterm()
    begun = time.monotonic()
    try:
        keys = read_keys(ImageKeys, environ)
        source = keys.image_source if args.source is None else args.source
        if source and args.payload:
            fail(f"--payload is for disks that are built here, and not for {source}", USAGE)
        recipe = Recipe(
            Path(caa.__file__).parent,
            args.payload or keys.payload,
            verity=keys.image_verity if args.verity is None else args.verity,
            fips=keys.boot_fips if args.fips is None else args.fips,
        )
        with Bars("image", quiet=args.json) as bars:
            times = _Times(bars)
            produced = produce(
                source,
                Output(args.output.absolute(), args.format, kernel=args.kernel),
                arch=args.arch or keys.image_arch,
                progress=times,
                recipe=recipe,
                auth_file=args.auth_file or keys.registry_auth_file,
            )
    except (ConfigError, ImageError) as error:
        fail(str(error))
    seconds, by_step = round(time.monotonic() - begun, 1), times.end()
    facts: dict[str, Any] = {
        "file": str(produced.path),
        "format": produced.kind,
        "arch": produced.arch,
        "size": produced.size,
        "bytes_used": produced.used,
    }
    if args.json:
        facts |= {"measurements": dict(produced.measurements), "seconds": seconds, "seconds_by_step": by_step}
        print(json.dumps(facts))
    else:
        print(f"{produced.path}: {produced.kind}, {produced.arch}, {seconds} s")
        print(f"  size {produced.size >> 20} MiB, {produced.used >> 20} MiB of it used")
        for name, value in produced.measurements.items():
            print(f"  {name} sha256 {value}")
    return 0


class _Times:
    """Passes progress on, and keeps how long each step took."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._began: list[tuple[str, float]] = []

    def __call__(self, step: str, done: int, total: int | None) -> None:
        if not self._began or self._began[-1][0] != step:
            self._began.append((step, time.monotonic()))
        self._bars(step, done, total)

    def end(self) -> dict[str, float]:
        """Seconds by step."""
        ends = [*(moment for _, moment in self._began[1:]), time.monotonic()]
        return {step: round(end - moment, 1) for (step, moment), end in zip(self._began, ends, strict=False)}
