"""Cloud volumes of a pod: disks of the pod VM that become mounts of its containers.

The worker names them in an annotation of CreateContainer. Each disk is found, made a file system if it is blank, and
mounted below /run/cloud-volumes; the container's mount then is a bind of that. Encrypted ones are opened by the
confidential data hub, which gets their key from the key broker.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from caa.guest.disks import Disks
from caa.guest.log import log
from caa.guest.securemount import CDH_SOCKET, secure_mount
from caa.guest.volumenames import BASE, CLOUD_VOLUMES, TARGET_PATH
from caa.ttrpc.frames import Code, StatusError

FS_TYPES = ("ext4", "ext3", "xfs")
ENCRYPT_TYPES = ("luks", "luks2")

# A path that something else in the VM mounts (a CSI driver of its own) may take as long as the incumbent waits.
_MOUNTED_SECONDS = 180.0
_POLL_SECONDS = 0.1
# mkfs of a large disk writes its tables first; all else is quick. Beyond this the disk does not answer.
_TOOL_SECONDS = 600.0
# `blkid -p`: nothing that it knows is on the disk.
_BLKID_BLANK = 2

# Two containers of a pod may have the same volume, and be created at the same time.
_one_at_a_time = threading.Lock()


class Volume(NamedTuple):
    """One entry of the annotation. `mount_point` is the container's; `lun` the number of the disk in the VM."""

    name: str
    mount_point: str
    fs_type: str
    lun: int
    disk_id: str
    fs_group: int | None
    encrypted: bool
    key_id: str


def parse_volumes(annotation: str, destinations: Iterable[str]) -> list[Volume]:
    """The volumes by name. Raises StatusError INVALID_ARGUMENT naming volume, key, value and what is allowed.

    A container without one of its volumes must not start, so whatever is not understood is an error.
    """
    try:
        document = json.loads(annotation)
    except (ValueError, RecursionError):
        raise _wrong("is not JSON") from None
    if not isinstance(document, dict):
        raise _wrong("is not a JSON object")
    known = set(destinations)
    volumes = [_volume(name, document[name]) for name in sorted(document)]
    for volume in volumes:
        if volume.mount_point not in known:
            raise _wrong(f"{volume.name}: mount_point is {volume.mount_point!r}; allowed: a mount of the container")
    return volumes


def _volume(name: str, entry: Any) -> Volume:
    if name in ("", ".", "..") or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise _wrong(f"{name[:40]!r} is no name; allowed: letters, digits, dots, dashes")
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise _wrong(f"{name} is not an object of texts")
    lun = entry.get("lun", "")
    if not lun.isascii() or not lun.isdigit() or len(lun) > 3:
        raise _wrong(f"{name}: lun is {lun[:40]!r}; allowed: a number such as 0")
    fs_type = entry.get("fs_type") or FS_TYPES[0]
    if fs_type not in FS_TYPES:
        raise _wrong(f"{name}: fs_type is {fs_type[:40]!r}; allowed: {', '.join(FS_TYPES)}")
    fs_group = entry.get("fs_group", "")
    if fs_group and not (fs_group.isascii() and fs_group.isdigit() and len(fs_group) <= 10):
        raise _wrong(f"{name}: fs_group is {fs_group[:40]!r}; allowed: a group id")
    encrypt_type, key_id = entry.get("encrypt_type", ""), entry.get("key_id", "")
    if encrypt_type and encrypt_type.lower() not in ENCRYPT_TYPES:
        raise _wrong(f"{name}: encrypt_type is {encrypt_type[:40]!r}; allowed: {', '.join(ENCRYPT_TYPES)}")
    if encrypt_type and not key_id:
        raise _wrong(f"{name}: key_id is missing, and encrypt_type needs it")
    return Volume(
        name,
        entry.get("mount_point", ""),
        fs_type,
        int(lun),
        entry.get("disk_id", ""),
        int(fs_group) if fs_group else None,
        bool(encrypt_type),
        key_id,
    )


def _wrong(what: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"{CLOUD_VOLUMES}: {what}")


class CloudVolumes:
    """Mounts and unmounts. All arguments are for tests; the pod VM uses the defaults.

    What is mounted is read from the kernel each time, so a forwarder that was started again knows it, too.
    """

    def __init__(
        self,
        base: Path = BASE,
        disks: Disks | None = None,
        cdh_socket: Path = CDH_SOCKET,
        mounts: Path = Path("/proc/self/mounts"),
        mounted_seconds: float = _MOUNTED_SECONDS,
    ) -> None:
        self._base = base
        self._disks = disks or Disks()
        self._cdh_socket = cdh_socket
        self._mounts = mounts
        self._mounted_seconds = mounted_seconds

    def mount(self, volumes: Iterable[Volume]) -> dict[str, str]:
        """Mount them; returns the source of each mount point of the container. Raises StatusError naming the volume."""
        sources = {}
        for volume in volumes:
            place = self._base / volume.name
            try:
                with _one_at_a_time:
                    self._mount_once(volume, place)
            except StatusError as error:
                raise StatusError(error.code, f"cloud volume {volume.name}: {error}") from None
            except OSError as error:
                raise StatusError(Code.INTERNAL, f"cloud volume {volume.name}: {error.strerror}") from None
            sources[volume.mount_point] = str(place)
        return sources

    def wait_mounted(self, paths: Iterable[str]) -> None:
        """Wait until something is mounted on each. Raises StatusError DEADLINE_EXCEEDED naming the path."""
        deadline = time.monotonic() + self._mounted_seconds
        for path in paths:
            while path not in self._mounted():
                if time.monotonic() >= deadline:
                    text = f"{TARGET_PATH}: nothing was mounted on {path!r} within {self._mounted_seconds:.0f} s"
                    raise StatusError(Code.DEADLINE_EXCEEDED, text)
                time.sleep(_POLL_SECONDS)

    def unmount(self) -> None:
        """Unmount all there are, the last mounted first. What fails is logged: the VM goes away after this."""
        for place, device in reversed(self._mounted().items()):
            if Path(place).parent != self._base:
                continue
            done = _run("umount", place)
            if done.returncode == 0 and device.startswith("/dev/mapper/"):
                done = _run("cryptsetup", "close", device.removeprefix("/dev/mapper/"))
            log(f"unmounted {place}" if done.returncode == 0 else f"cannot unmount {place}: {_said(done)}")

    def _mounted(self) -> dict[str, str]:
        """Mount point -> device, in the order of mounting."""
        lines = (line.split(" ") for line in self._mounts.read_text("utf-8", "surrogateescape").splitlines())
        return {_unescape(fields[1]): fields[0] for fields in lines if len(fields) > 1}

    def _mount_once(self, volume: Volume, place: Path) -> None:
        if str(place) not in self._mounted():
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._mount(volume, place)
            log(f"cloud volume {volume.name}: disk {volume.lun} is mounted on {place}")
        if volume.fs_group is not None:
            os.chown(place, -1, volume.fs_group)
            place.chmod(0o2775)

    def _mount(self, volume: Volume, place: Path) -> None:
        device = self._disks.find(volume.lun, volume.disk_id)
        if volume.encrypted:
            mapper = f"caa-{volume.name}"
            secure_mount(self._cdh_socket, device, place, volume.fs_type, volume.key_id, mapper)
            return
        first = _run("mount", "-t", volume.fs_type, str(device), str(place))
        if first.returncode == 0:
            return
        probe = _run("blkid", "-p", str(device))
        if probe.returncode == _BLKID_BLANK:
            _must(_run(f"mkfs.{volume.fs_type}", str(device)))
            _must(_run("mount", "-t", volume.fs_type, str(device), str(place)))
        elif probe.returncode == 0 and probe.stdout.strip():
            # Something is on it, so it is never formatted; perhaps it is another file system that can be mounted.
            _must(_run("mount", str(device), str(place)))
        else:
            raise StatusError(Code.INTERNAL, f"cannot tell whether {device} is blank: {_said(probe)}")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, errors="replace")
    except FileNotFoundError:
        raise StatusError(Code.INTERNAL, f"the image has no {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise StatusError(Code.INTERNAL, f"{command[0]} did not end within {_TOOL_SECONDS:.0f} s") from None


def _must(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode != 0:
        raise StatusError(Code.INTERNAL, _said(done))


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.args[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[:300]}"


def _unescape(field: str) -> str:
    """The kernel writes white space and backslashes of a path as octal."""
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escaped, plain)
    return field
