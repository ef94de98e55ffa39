"""The CSI volumes of a pod that are disks of the cloud, as their CSI driver left them for Kata on this node.

For each volume that is to be attached to the pod VM, not mounted here, the driver writes
<directory>/<base64url of the path that the kubelet publishes it at>/mountInfo.json. The directory holds the volumes
of all pods of the node, so only the pod's UID in that path says whose each is.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from caa.agentproxy.messages import CloudVolume
from caa.agentproxy.volumes import SANDBOX_UID, is_volume_of
from caa.errors import InvalidInputError
from caa.sandbox import CRIO_NAME
from caa.sizing import POD_NAME

log = logging.getLogger(__name__)

DIRECTORY = Path("/run/kata-containers/shared/direct-volumes")
# What guests make and mount.
FS_TYPES = ("ext4", "ext3", "xfs")
ENCRYPT_TYPES = ("luks", "luks2")
# A mountInfo.json has some hundred bytes.
_MAX_BYTES = 64 << 10


def pod_uid(annotations: Mapping[str, str]) -> str:
    """The pod's UID, if CreateVM's annotations tell it: those of CRI-O do, those of containerd do not ("")."""
    match = CRIO_NAME.fullmatch(annotations.get(POD_NAME, ""))
    return annotations.get(SANDBOX_UID, "") or (match["uid"] if match else "")


def read_volumes(uid: str, directory: Path = DIRECTORY) -> list[CloudVolume]:
    """The volumes of the pod `uid`, by directory name: the order in which the disks are to be attached.

    A volume without a disk id has `disk_id` "": nothing is to be attached for it. Raises InvalidInputError naming
    file and key for a volume of this pod that cannot work; without a UID there is no telling, so there are none.
    """
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except FileNotFoundError:
        return []
    volumes = []
    for name in names:
        path = _decoded(name)
        if path is not None and is_volume_of(uid, path):
            file = directory / name / "mountInfo.json"
            volume = _volume(path, file)
            if volume is None:
                log.warning("a volume without %s was passed over: %s", file.name, path)
            else:
                volumes.append(volume)
    return volumes


def _decoded(name: str) -> str | None:
    try:
        path = base64.b64decode(name, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return path if path.startswith("/") else None


def _volume(path: str, file: Path) -> CloudVolume | None:
    try:
        with file.open("rb") as opened:
            info = json.loads(opened.read(_MAX_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidInputError("mountInfo.json", f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InvalidInputError("mountInfo.json", f"{file} is not JSON") from None
    if not isinstance(info, dict) or not isinstance(info.get("metadata") or {}, dict):
        raise InvalidInputError("mountInfo.json", f"{file} is not an object whose metadata is an object")
    metadata = info.get("metadata") or {}
    volume = CloudVolume(
        path=path,
        disk_id=_text(file, metadata, "cloud-volume-path") or _text(file, info, "device"),
        fs_type=_text(file, info, "fstype") or FS_TYPES[0],
        encrypt_type=_text(file, metadata, "encrypt-type"),
        key_id=_text(file, metadata, "kbs-key-id"),
    )
    if not volume.disk_id:
        log.warning("a volume without disk is not attached: %s", path)
        return volume
    _check(file, "fstype", volume.fs_type, FS_TYPES)
    if volume.encrypt_type:
        _check(file, "encrypt-type", volume.encrypt_type.lower(), ENCRYPT_TYPES)
        if not volume.key_id:
            raise InvalidInputError("kbs-key-id", f"{file}: kbs-key-id is missing, and encrypt-type needs it")
    return volume


def _text(file: Path, values: dict[str, object], key: str) -> str:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidInputError(key, f"{file}: {key} is {value!r:.40}; allowed: text")
    return value or ""


def _check(file: Path, key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInputError(key, f"{file}: {key} is {value!r:.40}; allowed: {', '.join(allowed)}")
