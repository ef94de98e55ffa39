"""`caa image`: the pod VM image of the configured cloud."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import caa
from caa.cli import imagebuild
from caa.cli.bars import Bars
from caa.cli.main import fail


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`build` and `ensure`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    imagebuild.add_arguments(verbs)
    ensure = verbs.add_parser("ensure", help="build and publish the image if the cloud has none")
    ensure.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it."""
    return imagebuild.run(args, environ) if args.verb == "build" else _ensure(args, environ)


def _ensure(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    # Imported here, so that `caa image --help` stays quick.
    from caa.settings import load
    from imagebuilder.ensure import ensure_image
    from imagebuilder.errors import ImageError
    from providers.base import ConfigError, ProviderError

    begun = time.monotonic()
    try:
        settings = load(environ)
        with Bars("image", quiet=args.json) as progress:
            ensured = ensure_image(
                settings.cloud_provider,
                environ,
                guest_source=Path(caa.__file__).parent,
                payload=settings.payload,
                progress=progress,
            )
    except (ConfigError, ImageError, ProviderError) as error:
        fail(str(error))
    seconds = round(time.monotonic() - begun, 1)
    if args.json:
        print(json.dumps({"image": ensured.name, "built": ensured.built, "seconds": seconds}))
    else:
        print(f"image {ensured.name}: " + (f"built in {seconds} s" if ensured.built else "present"))
    return 0
