"""`caa controller`: the controller of a Kubernetes cluster's KataConfigs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from caa.cli.main import fail

# The extra that brings them.
_LIBRARIES = frozenset({"kopf", "lightkube", "httpx2"})
# Of the providers' `lag`, the longest is 30 s.
_LEAST_GRACE = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument(
        "--namespace", help="where the DaemonSets are; that of the container's service account by default"
    )
    parser.add_argument(
        "--image", help="the image of the DaemonSets; CAA_IMAGE by default, or else the one this container runs"
    )
    parser.add_argument(
        "--orphan-grace",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long a node is gone before its VMs are ended; 600 by default",
    )
    parser.add_argument("--manifests", type=Path, help="a directory of DaemonSets, instead of those that ship")


def _seconds(text: str) -> float:
    """At least what a cloud's lists lag behind, with a margin."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not _LEAST_GRACE <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: must be a number of seconds from {_LEAST_GRACE:g}")
    return seconds


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Watch until SIGTERM."""
    import asyncio

    try:
        from caa.controller.main import run as control
        from caa.controller.objects import SHIPPED
        from caa.kubernetes.answers import RefusedError
    except ModuleNotFoundError as error:
        if error.name not in _LIBRARIES:
            raise
        fail(
            f"`caa controller` needs a library that is not installed ({error.name}): "
            "pip install peerpod-cloud-adaptor[kubernetes]"
        )
    from caa.logs import set_up_logging
    from providers.base import ConfigError

    image = args.image or environ.get("CAA_IMAGE", "").strip()
    set_up_logging("console", "INFO")
    try:
        asyncio.run(control(args.namespace, image, args.manifests or SHIPPED, timedelta(seconds=args.orphan_grace)))
    except ConfigError as error:
        fail(str(error))
    except RefusedError as error:
        fail(f"the API server refuses what the controller needs: {error}")
    return 0
