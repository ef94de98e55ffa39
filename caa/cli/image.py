"""`caa image`: the pod VM image of the configured cloud."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from caa.cli import imagebuild
from caa.cli.bars import Bars
from caa.cli.main import FAILED, clear_up_on_sigterm, fail

if TYPE_CHECKING:
    from caa.images.image import PodVmImage
    from caa.images.imaging import Imaging
    from caa.settings import Settings
    from imagebuilder.publish.base import Publisher

_VERBS = {
    "ensure": "build and publish the image if there is none",
    "status": "which image pod VMs boot, and how far one that is being built is",
    "list": "every image that was built for this cluster",
    "refresh": "build the image anew; the one before goes when no sandbox needs it any more",
    "retry": "try again to build the image that could not be built",
    "delete": "remove every image that was built for this cluster; never one of somebody else",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    imagebuild.add_arguments(verbs)
    for verb, summary in _VERBS.items():
        verbs.add_parser(verb, help=summary).add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it."""
    return imagebuild.run(args, environ) if args.verb == "build" else _with_cloud(args, environ)


def _with_cloud(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    # Imported here, so that `caa image --help` stays quick.
    from caa.images import setup
    from caa.images.imaging import ImageFailedError, ImageInUseError
    from caa.ledger import LedgerError
    from caa.settings import load
    from imagebuilder.errors import ImageError
    from providers.base import ConfigError, ProviderError

    clear_up_on_sigterm()
    try:
        settings = load(environ)
        if not setup.supported(settings):
            return _say(args, {"image": "", "state": "unsupported", "built": False}, _unsupported(settings))
        with setup.publisher(settings, environ) as publisher, Bars("image", quiet=args.json) as bars:
            return _run(args, settings, environ, publisher, lambda image: _show(bars, image))
    except (ConfigError, ImageError, ProviderError, LedgerError, ImageFailedError, ImageInUseError) as error:
        fail(str(error))


def _show(bars: Bars, image: PodVmImage) -> None:
    if image.phase:
        bars(image.step or image.phase, image.done, image.total)


def _unsupported(settings: Settings) -> str:
    return f"images are not built for {settings.cloud_provider}: nothing to do"


def _run(
    args: argparse.Namespace,
    settings: Settings,
    environ: Mapping[str, str],
    publisher: Publisher,
    tell: Callable[[PodVmImage], None],
) -> int:
    from caa.images import setup

    configured = publisher.configured()
    if configured and args.verb == "ensure":
        said = {"image": configured, "state": "configured", "built": False, "seconds": 0.0}
        return _say(args, said, f"image {configured}: present ({publisher.key})")
    with setup.opened(settings) as store:
        imaging = setup.make(settings, environ, publisher, store, tell)
        match args.verb:
            case "ensure" | "retry" | "refresh":
                return _build(args, imaging, configured)
            case "delete":
                gone = [image.image_id or image.id for image in imaging.delete()]
                return _say(args, {"deleted": gone}, "\n".join(f"image {one}: deleted" for one in gone))
            case "status":
                return _status(args, imaging, configured)
            case _:
                return _list(args, imaging)


def _build(args: argparse.Namespace, imaging: Imaging, configured: str) -> int:
    begun = time.monotonic()
    before = imaging.store.ready(imaging.cluster, imaging.account)
    if args.verb == "refresh" and configured and (before is None or before.image_id != configured):
        fail(f"{imaging.publisher.key}={configured} was not built here; unset it to have an image built")
    if args.verb == "retry" and not imaging.retry():
        fail("no image failed", FAILED)
    image = imaging.refresh() if args.verb == "refresh" else imaging.ensure()
    imaging.sweep()
    built = before is None or before.id != image.id
    seconds = round(time.monotonic() - begun, 1)
    said = {"image": image.image_id, "state": str(image.state), "built": built, "seconds": seconds}
    said |= {"digest": image.digest, "measurements": dict(image.measurements)}
    return _say(args, said, f"image {image.image_id}: " + (f"built in {seconds} s" if built else "present"))


def _status(args: argparse.Namespace, imaging: Imaging, configured: str) -> int:
    from caa.images.image import described

    image = imaging.store.open(imaging.cluster, imaging.account) or imaging.store.ready(
        imaging.cluster, imaging.account
    )
    said: dict[str, Any] = {"configured": configured or None, "image": described(image) if image else None}
    lines = [f"image {configured}: configured ({imaging.publisher.key})"] if configured else []
    if image is not None:
        lines.append(f"image {image.image_id or image.id}: {image.told()}")
    return _say(args, said, "\n".join(lines) or "there is no image; `caa image ensure` builds one")


def _list(args: argparse.Namespace, imaging: Imaging) -> int:
    from caa.cli.tables import table
    from caa.images.image import described

    images = imaging.store.all(imaging.cluster, imaging.account)
    if args.json:
        print(json.dumps([described(image) for image in images], indent=2))
        return 0
    rows = [
        (one.image_id or "-", str(one.state), one.source, one.digest[:12] or "-", f"{one.created_at:%Y-%m-%d %H:%M}")
        for one in images
    ]
    table(("IMAGE", "STATE", "SOURCE", "DIGEST", "BEGUN"), rows)
    return 0


def _say(args: argparse.Namespace, for_programs: dict[str, Any], for_people: str) -> int:
    print(json.dumps(for_programs) if args.json else for_people)
    return 0
