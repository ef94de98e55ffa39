"""A directory as Kubernetes mounts a ConfigMap or Secret: changed whole, by one move of a link."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

_numbers = itertools.count(1)


class Mounted:
    """Keys and values in files. `write` replaces all of them at once."""

    def __init__(self, path: Path, values: Mapping[str, str]) -> None:
        self.path = path
        path.mkdir(parents=True)
        self._data = ""
        self.write(values)

    def write(self, values: Mapping[str, str], before_removal: Callable[[], None] = lambda: None) -> None:
        """In the order of the kubelet: new directory, link, names, and then the old directory goes."""
        name = f"..2026_01_31_{next(_numbers)}"
        (self.path / name).mkdir()
        for key, value in values.items():
            (self.path / name / key).write_text(value)
        (self.path / "..data_tmp").symlink_to(name)
        os.rename(self.path / "..data_tmp", self.path / "..data")
        old, self._data = self._data, name
        for key in values:
            with contextlib.suppress(FileExistsError):
                (self.path / key).symlink_to(f"..data/{key}")
        for link in self.path.iterdir():
            if not link.name.startswith("..") and link.name not in values:
                link.unlink()
        before_removal()
        if old:
            shutil.rmtree(self.path / old)
