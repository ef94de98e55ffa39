"""The pod VM image of the configured cloud: there already, or built and published now."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.build import build
from imagebuilder.rawdisk import Progress
from imagebuilder.recipe import Recipe
from providers.base import ConfigError, Problem
from providers.keys import read_keys

# Where images are built: on disk, for the work takes about 1 GB, more than /tmp may hold in memory.
WORK_DIR = Path("/var/tmp")  # noqa: S108  # a directory of our own with a random name is made in it


@dataclass(frozen=True, slots=True)
class Ensured:
    """The image's name in the cloud, and whether it was made just now."""

    name: str
    built: bool


def ensure_image(
    cloud: str, environ: Mapping[str, str], *, guest_source: Path, payload: Path | None, progress: Progress
) -> Ensured:
    """Make sure that the configured image exists. Raises ConfigError, ImageError, ProviderError; may be repeated."""
    if cloud not in _CLOUDS:
        allowed = ", ".join(sorted(_CLOUDS))
        raise ConfigError([Problem("CLOUD_PROVIDER", f"{cloud!r}: images are built for {allowed} only")])
    return _CLOUDS[cloud](environ, guest_source, payload, progress)


def _libvirt(environ: Mapping[str, str], guest_source: Path, payload: Path | None, progress: Progress) -> Ensured:
    # Imported here: whoever builds for another cloud has no libvirt binding.
    from providers.libvirt.images import has_base_volume, upload_base_volume
    from providers.libvirt.settings import LibvirtKeys

    keys = read_keys(LibvirtKeys, environ)
    if has_base_volume(keys):
        return Ensured(keys.vol_name, built=False)
    with tempfile.TemporaryDirectory(prefix="podvm-image-", dir=WORK_DIR) as directory:
        path = Path(directory) / "podvm.qcow2"
        build(path, recipe=Recipe(guest_source, payload), progress=progress)
        upload_base_volume(keys, path, progress=lambda sent, total: progress("upload", sent, total))
    return Ensured(keys.vol_name, built=True)


_CLOUDS: dict[str, Callable[[Mapping[str, str], Path, Path | None, Progress], Ensured]] = {"libvirt": _libvirt}
