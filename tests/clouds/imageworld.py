"""The builder of pod VM images in this process, on a clock that only waiting moves, and what may go wrong around it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from caa.images import setup
from caa.images.image import ImageState
from caa.images.imaging import ImageFailedError, Imaging
from caa.images.work import DEADLINES
from caa.settings import load

PATIENCE_S = 60.0


class Time:
    """A clock that waiting moves."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.passed)

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += max(seconds, 0.001)
        time.sleep(0.01)  # emulated clouds have a clock of their own


@dataclass
class World:
    """One cloud, and the builder for it. `left` is what of images is there, beyond what was before the test."""

    imaging: Imaging
    time: Time
    state: Path
    left: Callable[[], object]

    def fails(self, *words: str) -> None:
        """The build is given up, says this, and left nothing in the cloud nor on this machine."""
        with pytest.raises(ImageFailedError) as caught:
            self.imaging.ensure()
        assert all(word in str(caught.value) for word in words), caught.value
        image = self.imaging.store.open(self.imaging.cluster, self.imaging.account)
        assert image is not None
        assert (image.state, dict(image.resources)) == (ImageState.FAILED, {})
        assert not self.left()
        self.is_clear()

    def works(self) -> None:
        """Somebody mended it, and asks for another try."""
        assert self.imaging.retry()
        assert self.imaging.ensure().state is ImageState.READY
        self.is_clear()

    def is_clear(self) -> None:
        """No file but the ledger's."""
        files = [path for path in self.state.rglob("*") if not path.name.startswith("ledger")]
        assert not files


@contextmanager
def world(
    monkeypatch: pytest.MonkeyPatch, state: Path, disk: Path, environ: dict[str, str], left: Callable[[], object]
) -> Iterator[World]:
    """`state` is the builder's directory, with its ledger in it."""
    own = {"CAA_STATE_DIR": str(state), "CAA_CLUSTER_ID": "prod", "NODE_NAME": "worker-1"}
    given = {**own, "PODS_DIR": "/run/caa-test/pods", "PODVM_IMAGE_URI": str(disk), **environ}
    for key, value in given.items():  # SDKs read it themselves
        monkeypatch.setenv(key, value)
    settings, clock = load(given), Time()
    with setup.publisher(settings, given) as publisher, setup.opened(settings) as store:
        made = setup.make(settings, given, publisher, store)
        yield World(replace(made, time=clock), clock, state, left)


@contextmanager
def small_disk(place: Path, mib: int) -> Iterator[Path]:
    """A file system of this size."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def grow(place: Path, mib: int) -> None:
    """Somebody made room."""
    subprocess.run(["mount", "-o", f"remount,size={mib}m", place], check=True)


def unchecked_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """There seems to be room enough, as it does when another program takes it a moment later."""
    monkeypatch.setattr("imagebuilder.formats.shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 40))


# A tool and its children, one in a session of its own, that do not listen to SIGTERM.
_HANGING = """#!/bin/sh
case "$*" in *"{words}"*) ;; *) exec /usr/bin/qemu-img "$@" ;; esac
trap '' TERM
sleep 1000 &
echo $! >>{pids}
setsid sh -c 'echo $$ >>{pids}; exec sleep 1000' &
echo $$ >>{pids}.new && cat {pids}.new >>{pids} && mv {pids}.new {pids}.hangs
while :; do sleep 1; done
"""


@contextmanager
def hanging_qemu_img(monkeypatch: pytest.MonkeyPatch, directory: Path, words: str, made: World) -> Iterator[None]:
    """qemu-img hangs when it is called with these words; the clock then goes on to the end of the phase.

    Nothing of it may run afterwards.
    """
    directory.mkdir()
    pids, tool = directory / "pids", directory / "qemu-img"
    tool.write_text(_HANGING.format(words=words, pids=pids))
    tool.chmod(0o755)
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    monkeypatch.setattr("imagebuilder.tools._SYSTEM_PATH", f"{directory}:{path}")
    monkeypatch.setattr("imagebuilder.tools._ENDING_SECONDS", 0.3)
    monkeypatch.setattr("caa.images.work.RENEW_SECONDS", 0.1)
    ended = threading.Event()

    def watch() -> None:
        mark = directory / "pids.hangs"
        while not ended.wait(0.05):
            if mark.exists():
                mark.unlink()
                made.time.passed += max(DEADLINES.values()) + 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
        started = [int(line) for line in pids.read_text().split()]
        assert started
        deadline = time.monotonic() + PATIENCE_S
        while left := [pid for pid in started if _runs(pid)]:  # who is killed is not gone at once
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
    finally:
        ended.set()
        watcher.join()


def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool is the right one again."""
    monkeypatch.setattr("imagebuilder.tools._SYSTEM_PATH", "/usr/sbin:/usr/bin:/sbin:/bin")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
