"""The cloud volumes of a pod in its containers: which mount is which disk of the pod VM. Pure.

The list comes from the control plane when the sandbox is opened, in the order in which the disks were attached, so a
disk's number here is the one it has in the VM. It is never read again later: a volume published meanwhile is not
attached, and one of another pod must never be named.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from caa.agentproxy.messages import CloudVolume

# The annotations that the guest's forwarder acts on. Nobody but the worker may set them: they name disks of the VM.
CLOUD_VOLUMES = "io.confidentialcontainers.org.cloud_volumes"
TARGET_PATH = "io.confidentialcontainers.org.peerpodvolumes.target_path"
# Set by containerd in every container, from the sandbox's configuration.
SANDBOX_UID = "io.kubernetes.cri.sandbox-uid"

_CSI = "/volumes/kubernetes.io~csi/"


def is_volume_of(pod_uid: str, path: str) -> bool:
    """Whether the kubelet publishes a CSI volume of this very pod at `path`."""
    _, _, inside = path.partition("/pods/")
    return (
        path.startswith("/")
        and inside.startswith(f"{pod_uid}{_CSI}")
        and not {"..", ".", ""}.intersection(path.split("/")[1:])
    )


class PodVolumes:
    """The volumes of one pod. Raises ValueError naming the argument that is wrong."""

    def __init__(self, pod_uid: str, volumes: Sequence[CloudVolume]) -> None:
        if volumes and (not pod_uid or "/" in pod_uid):
            raise ValueError(f"pod_uid is {pod_uid!r}; allowed with volumes: the UID of the pod")
        self._pod_uid = pod_uid
        self._by_source: dict[str, tuple[int, CloudVolume]] = {}
        disks = 0
        for volume in volumes:
            if not is_volume_of(pod_uid, volume.path):
                raise ValueError(f"volumes has {volume.path!r}; allowed: paths with /pods/{pod_uid}{_CSI}")
            if volume.path in self._by_source:
                raise ValueError(f"volumes has {volume.path!r} twice")
            # Without a disk it is one that the VM's own CSI driver mounts, and has no number.
            self._by_source[volume.path] = (disks, volume)
            disks += bool(volume.disk_id)

    def annotations(self, sandbox_uid: str, mounts: Sequence[tuple[str, str]]) -> dict[str, str]:
        """What a container with these mounts, (source, destination) each, is to have; both keys "" for nothing.

        `sandbox_uid` is what the container says of its pod, if it does: a stranger gets nothing.
        """
        found = {CLOUD_VOLUMES: "", TARGET_PATH: ""}
        if sandbox_uid not in ("", self._pod_uid):
            return found
        sources: list[str] = []
        disks: dict[str, dict[str, str]] = {}
        for source, destination in mounts:
            if source not in self._by_source:
                continue
            number, volume = self._by_source[source]
            if source not in sources:
                sources.append(source)
            if volume.disk_id and destination:
                disks[_name(number, disks)] = _entry(number, volume, destination)
        found[TARGET_PATH] = ",".join(sources)
        if disks:
            found[CLOUD_VOLUMES] = json.dumps(disks, separators=(",", ":"))
        return found


def _name(number: int, taken: dict[str, dict[str, str]]) -> str:
    """`vol-<number>`. A second mount of one volume has a name of its own, or the guest would leave it empty."""
    name, again = f"vol-{number}", 0
    while name in taken:
        again += 1
        name = f"vol-{number}-{again}"
    return name


def _entry(number: int, volume: CloudVolume, destination: str) -> dict[str, str]:
    entry = {
        "mount_point": destination,
        "fs_type": volume.fs_type or "ext4",
        "lun": str(number),
        "disk_id": volume.disk_id,
        "encrypt_type": volume.encrypt_type,
        "key_id": volume.key_id,
    }
    optional = ("encrypt_type", "key_id")
    return {key: value for key, value in entry.items() if value or key not in optional}
