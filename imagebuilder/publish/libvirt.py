"""libvirt: the disk as a qcow2 volume of the pool. Only ever makes and deletes that volume; the pool is not ours.

Volumes have no tags, so what is ours is what was written down before it was made, and what has a name of ours. The
first image gets the name that pod VMs boot from already, later ones a name of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from imagebuilder.formats import from_raw
from imagebuilder.publish.base import Content, ImageName, Work
from imagebuilder.publish.patience import patiently
from providers.base import InvalidRequestError
from providers.libvirt.images import (
    delete_base_volume,
    is_base_of_another,
    upload_base_volume,
    volume_state,
)
from providers.libvirt.settings import LibvirtKeys, shown_uri


class LibvirtPublisher:
    """One pool. `named`: somebody chose LIBVIRT_VOL_NAME, so the image has that name and no other."""

    key = "LIBVIRT_VOL_NAME"
    latest_key = "LIBVIRT_IMAGE_ID"

    def __init__(self, keys: LibvirtKeys, *, named: bool) -> None:
        self._keys = keys
        self._named = named

    @property
    def account(self) -> str:
        """The pool; a name that somebody chose makes an account of its own, for no other image replaces it."""
        pool = f"libvirt/{shown_uri(self._keys.uri)}/{self._keys.pool}"
        return f"{pool}/{self._keys.vol_name}" if self._named else pool

    def configured(self) -> str:
        """LIBVIRT_VOL_NAME, if it is there."""
        return self._keys.vol_name if self.exists(self._keys.vol_name) else ""

    def check(self) -> None:
        """Nothing is needed beyond what pod VMs need."""

    def publish(self, disk: Content, name: ImageName, work: Work) -> str:
        """See Publisher."""
        volume = work.resources.get("volume", "")
        if not volume:
            taken = patiently(work, lambda: volume_state(self._keys, self._keys.vol_name)) == "whole"
            volume = _own(name) if taken else self._keys.vol_name
            work.note("volume", volume)
        if patiently(work, lambda: volume_state(self._keys, volume)) != "whole":
            self._upload(disk, volume, work)
        return volume

    def _upload(self, disk: Content, volume: str, work: Work) -> None:
        work.phase("convert", disk.size)
        image = disk.path.with_name(f"{disk.path.name}.qcow2")
        try:
            from_raw(disk.path, "qcow2", image, lambda _phase, done, _total: work.progress(done))
            work.phase("upload", image.stat().st_size)
            try:
                patiently(
                    work,
                    lambda: upload_base_volume(
                        self._keys, image, volume, progress=lambda sent, _total: work.progress(sent)
                    ),
                )
            except InvalidRequestError as error:
                if error.reason != "ImageExists":  # it became whole by a call whose answer was lost
                    raise
        finally:
            image.unlink(missing_ok=True)

    def exists(self, image_id: str) -> bool:
        """See Publisher."""
        return volume_state(self._keys, image_id) == "whole"

    def in_use(self, image_id: str) -> bool:
        """Whether the disk of a pod VM stands on it, of whichever node."""
        return is_base_of_another(self._keys, image_id)

    def delete(self, name: ImageName, resources: Mapping[str, str]) -> None:
        """See Publisher."""
        for volume in {resources.get("volume", _own(name)), _own(name)}:
            delete_base_volume(self._keys, volume)

    def close(self) -> None:
        """Nothing is kept open."""


def _own(name: ImageName) -> str:
    return f"{name}.qcow2"
