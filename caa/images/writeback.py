"""Writing the id of the image that was built here to where the configuration names images.

Where it is a directory that somebody on this machine keeps, files are written. Where Kubernetes mounts a ConfigMap, the
directory is a copy that nobody may write, and the object itself is patched by whoever registers for that
(`ConfigMapPatch`). The ledger has the id in any case, and is used while the key is empty.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from caa.images.imaging import OnlyLedger, WriteBack, WriteBackError
from caa.sources import CONFIG_DIR


class ConfigMapPatch(Protocol):
    """A ConfigMap at the Kubernetes API. What `write_back` is given for a mounted one."""

    def read(self) -> tuple[Mapping[str, str], str]:
        """Its data, and its resourceVersion. Raises WriteBackError."""
        ...

    def patch(self, data: Mapping[str, str], annotations: Mapping[str, str | None], resource_version: str) -> bool:
        """Change these keys and annotations (None: remove it), if the object is still at that version.

        Whether it was; if not (409), nothing was changed. Raises WriteBackError.
        """
        ...


# A conflict means that somebody wrote meanwhile; that so many do in a row is no accident.
_TRIES = 10


def may_write(found: str, ours: str) -> bool:
    """Whether a key with the value `found` is ours to write: empty, or holding an image that we put there."""
    return found.strip() in ("", ours)


class ConfigMapWriteBack:
    """A ConfigMap, guarded by its resourceVersion. The newest id is kept in an annotation, too."""

    def __init__(self, patch: ConfigMapPatch, key: str, latest_key: str) -> None:
        self._patch = patch
        self._key = key
        self._latest_key = latest_key

    def written(self, image_id: str) -> None:
        """See WriteBack."""
        for _ in range(_TRIES):
            data, version = self._patch.read()
            found, ours = data.get(self._key, ""), data.get(self._latest_key, "")
            if found == image_id == ours or not may_write(found, ours):
                return
            changes = {self._key: image_id, self._latest_key: image_id}
            if self._patch.patch(changes, {self._latest_key: image_id or None}, version):
                return
        raise WriteBackError(f"the ConfigMap was changed {_TRIES} times while {self._key} was to be written")


class DirectoryWriteBack:
    """A directory with a file for each key, each replaced as a whole."""

    def __init__(self, directory: Path, key: str, latest_key: str) -> None:
        self._directory = directory
        self._key = key
        self._latest_key = latest_key

    def written(self, image_id: str) -> None:
        """See WriteBack."""
        found, ours = self._read(self._key), self._read(self._latest_key)
        if found == image_id == ours or not may_write(found, ours):
            return
        # What is ours first: a value that only stands under the key would be taken for a user's.
        self._write(self._latest_key, image_id)
        self._write(self._key, image_id)

    def _read(self, name: str) -> str:
        try:
            return (self._directory / name).read_text().strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise WriteBackError(f"{self._directory / name} cannot be read: {error}") from error

    def _write(self, name: str, value: str) -> None:
        target = self._directory / name
        new = self._directory / f"..{name}.new"  # two dots: no key, so nobody reads it
        try:
            mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
            with open(new, "w", opener=lambda path, flags: os.open(path, flags, mode)) as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            new.replace(target)
        except OSError as error:
            raise WriteBackError(f"{target} cannot be written: {error.strerror or error}") from error
        finally:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)


def write_back(environ: Mapping[str, str], key: str, latest_key: str, patch: ConfigMapPatch | None = None) -> WriteBack:
    """Where the id goes: the ConfigMap if it can be patched, a directory that can be written, or the ledger alone."""
    if patch is not None:
        return ConfigMapWriteBack(patch, key, latest_key)
    given = environ.get(CONFIG_DIR, "").strip()
    if given and not os.path.lexists(Path(given) / "..data") and os.access(given, os.W_OK):
        return DirectoryWriteBack(Path(given), key, latest_key)
    return OnlyLedger()
