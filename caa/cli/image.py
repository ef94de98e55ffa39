"""`caa image`: the pod VM image of the configured cloud."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import caa
from caa.cli.main import fail


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`ensure`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    ensure = verbs.add_parser("ensure", help="build and publish the image if the cloud has none")
    ensure.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it."""
    # Imported here, so that `caa image --help` stays quick.
    from caa.settings import load
    from imagebuilder.ensure import ensure_image
    from imagebuilder.tools import BuildError
    from providers.base import ConfigError, ProviderError

    begun = time.monotonic()
    try:
        settings = load(environ)
        with _progress(args.json) as progress:
            ensured = ensure_image(
                settings.cloud_provider,
                environ,
                guest_source=Path(caa.__file__).parent,
                payload=settings.payload,
                progress=progress,
            )
    except (ConfigError, BuildError, ProviderError) as error:
        fail(str(error))
    seconds = round(time.monotonic() - begun, 1)
    if args.json:
        print(json.dumps({"image": ensured.name, "built": ensured.built, "seconds": seconds}))
    else:
        print(f"image {ensured.name}: " + (f"built in {seconds} s" if ensured.built else "present"))
    return 0


class _progress:  # noqa: N801  # a context manager read as a verb
    """Bars on a terminal, a line for each step elsewhere, nothing with --json."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._step = ""

    def __enter__(self) -> Callable[[str, float], None]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._bar = (
            Progress(TextColumn("{task.description:>20}"), BarColumn(), TimeElapsedColumn(), console=console)
            if console.is_terminal and not self._quiet
            else None
        )
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("image", total=1.0)
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _show(self, step: str, share: float) -> None:
        if self._bar:
            self._bar.update(self._task, description=step, completed=share)
        elif step != self._step and not self._quiet:
            print(f"image: {step}", file=sys.stderr)
        self._step = step
