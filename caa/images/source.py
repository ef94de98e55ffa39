"""What pod VM images are made from here: the disk that the settings name, or the recipe's."""

from __future__ import annotations

import shutil
from pathlib import Path

import caa
from caa.settings import Settings
from imagebuilder.sources import Disk, Progress, Recipe, obtain, parse


class ImageSource:
    """The source that the settings name. What it makes is below the state directory until `clear`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._work = settings.state_dir / "image"

    @property
    def name(self) -> str:
        """For people, without secrets. Raises ImageError."""
        return parse(self._settings.image_source).name

    def obtain(self, progress: Progress) -> Disk:
        """The disk. Raises ImageError."""
        self.clear()  # an earlier try's disk, or what a builder left that was killed, may take the room that is needed
        settings = self._settings
        return obtain(
            settings.image_source,
            self._work,
            arch=settings.image_arch,
            progress=progress,
            recipe=Recipe(
                Path(caa.__file__).parent, settings.payload, verity=settings.image_verity, fips=settings.boot_fips
            ),
            auth_file=settings.registry_auth_file,
        )

    def clear(self) -> None:
        """Remove what was made."""
        shutil.rmtree(self._work, ignore_errors=True)
