"""`caa explain`: which instance a pod with these annotations would get, over the REST interface."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping

from caa.cli.main import FAILED, UNREACHABLE, fail


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    # Only here, for `caa --help` and every other command do without its HTTP library.
    from caa.cli.client import add_server_arguments

    parser.add_argument(
        "--annotation",
        type=_pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the pod, such as io.katacontainers.config.hypervisor.default_vcpus=2; may be repeated",
    )
    parser.add_argument("--output", choices=("table", "json"), default="table", help="for people or for programs")
    add_server_arguments(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it. 1, with the reason on stderr, when nothing would be launched; what became of each offering is shown."""
    from caa.cli.client import Client, RefusedError, UnreachableError

    try:
        with Client(args, environ) as client:
            explained = client.call("POST", "/v1/sizing/explain", body={"annotations": dict(args.annotation)})
    except RefusedError as error:
        fail(str(error), FAILED)
    except UnreachableError as error:
        fail(str(error), UNREACHABLE)
    if args.output == "json":
        json.dump(explained, sys.stdout, indent=2)
        print()
    else:
        from caa.cli.tables import sizing_table

        sizing_table(explained)
    if explained["refusal"]:
        sys.stdout.flush()
        fail(explained["refusal"]["detail"])
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: must be KEY=VALUE")
    return key, value
