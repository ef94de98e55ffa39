"""The ISO labelled `cidata`: finding it among the disks and mounting it where the user data is read from.

Done here rather than by a mount unit, for udev would name it by its label only seconds later on a slow machine.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from caa.guest.log import log

LABEL = b"cidata"
# A disk that is not there after this long was not given to this VM.
PATIENCE_SECONDS = 20.0
_POLL_SECONDS = 0.05
# ISO 9660: the primary volume descriptor is in sector 16 (of 2048 bytes), the 32 bytes of its volume id at 40.
_VOLUME_ID_AT, _VOLUME_ID_SIZE = 16 * 2048 + 40, 32


def mount_seed(
    mount_point: Path,
    patience: float = PATIENCE_SECONDS,
    names: Path = Path("/sys/class/block"),
    devices: Path = Path("/dev"),
) -> bool:
    """Mount the ISO on `mount_point`, unless user data is there already; whether there is any."""
    deadline = time.monotonic() + patience
    while not (mount_point / "user-data").exists():
        device = find_seed(names, devices)
        if device is not None:
            return _mount(device, mount_point)
        if time.monotonic() >= deadline:
            log(f"no disk labelled {LABEL.decode()} after {patience:.0f} s")
            return False
        time.sleep(_POLL_SECONDS)
    return True


def find_seed(names: Path, devices: Path) -> Path | None:
    """The device that holds the ISO, if it is there."""
    for name in sorted(path.name for path in names.iterdir()):
        if name.startswith(("loop", "ram", "dm-")):  # never given from outside
            continue
        try:
            descriptor = os.open(devices / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # an empty reader, or a device on its way in or out
            continue
        try:
            if os.pread(descriptor, _VOLUME_ID_SIZE, _VOLUME_ID_AT).rstrip(b" \0").lower() == LABEL:
                return devices / name
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return None


def _mount(device: Path, mount_point: Path) -> bool:
    mount_point.mkdir(parents=True, exist_ok=True)
    options = "ro,nosuid,nodev,noexec"
    done = subprocess.run(
        ["mount", "-t", "iso9660", "-o", options, device, mount_point], capture_output=True, text=True
    )
    if done.returncode != 0:
        log(f"cannot mount {device} on {mount_point}: {done.stderr.strip()}")
    return done.returncode == 0
