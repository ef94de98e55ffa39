"""The CSI volumes of one pod among those of all pods of a node, in a real directory."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from caa.agentproxy.messages import CloudVolume
from caa.agentproxy.volumes import SANDBOX_UID, PodVolumes
from caa.directvolumes import pod_uid, read_volumes
from caa.errors import InvalidInputError
from caa.sizing import POD_NAME

UID, OTHER_UID = "2d1c1a5e-0000-4000-8000-000000000001", "2d1c1a5e-0000-4000-8000-000000000002"


def path_of(name: str, uid: str = UID) -> str:
    return f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{name}/mount"


def publish(directory: Path, path: str, info: object) -> Path:
    """What a CSI driver does for Kata."""
    place = directory / base64.urlsafe_b64encode(path.encode()).decode()
    place.mkdir(parents=True)
    text = info if isinstance(info, str) else json.dumps(info)
    (place / "mountInfo.json").write_text(text)
    return place


def test_only_the_volumes_of_the_pod_are_read_in_the_order_of_their_directories(tmp_path: Path) -> None:
    publish(tmp_path, path_of("pvc-b"), {"volume-type": "block", "device": "/dev/sdx", "fstype": "xfs", "options": []})
    metadata = {"cloud-volume-path": "vol-0aaa", "encrypt-type": "luks2", "kbs-key-id": "default/key/1"}
    publish(tmp_path, path_of("pvc-a"), {"device": "/dev/sdy", "metadata": metadata})
    publish(tmp_path, path_of("pvc-c"), {"device": "", "metadata": None})
    publish(tmp_path, path_of("pvc-a", OTHER_UID), {"device": "/dev/sdz"})
    publish(tmp_path, f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/x", {"device": "/dev/sdz"})
    publish(tmp_path, path_of("x") + f"/../../../../{OTHER_UID}", {"device": "/dev/sdz"})
    (tmp_path / "not base64!").mkdir()
    (tmp_path / base64.urlsafe_b64encode(path_of("pvc-empty").encode()).decode()).mkdir()
    volumes = read_volumes(UID, tmp_path)
    assert volumes == [
        CloudVolume(
            path=path_of("pvc-a"),
            disk_id="vol-0aaa",
            fs_type="ext4",
            encrypt_type="luks2",
            key_id="default/key/1",
        ),
        CloudVolume(path=path_of("pvc-b"), disk_id="/dev/sdx", fs_type="xfs"),
        CloudVolume(path=path_of("pvc-c"), fs_type="ext4"),
    ]
    PodVolumes(UID, volumes)  # the proxy takes what was read


def test_without_a_uid_no_volume_belongs_to_the_pod(tmp_path: Path) -> None:
    publish(tmp_path, path_of("pvc-a"), {"device": "/dev/sdx"})
    publish(tmp_path, path_of("pvc-a", ""), {"device": "/dev/sdx"})
    assert read_volumes("", tmp_path) == []
    assert read_volumes(UID[:-1], tmp_path) == []
    assert read_volumes(UID, tmp_path / "missing") == []


def test_the_order_is_that_of_the_directory_names_however_the_disk_lists_them(tmp_path: Path) -> None:
    names = [f"pvc-{number}" for number in (4, 1, 7, 0, 3, 9, 2, 8, 6, 5)]
    for name in names:
        publish(tmp_path, path_of(name), {"device": f"disk-of-{name}"})
    encoded = sorted(names, key=lambda name: base64.urlsafe_b64encode(path_of(name).encode()))
    assert [volume.disk_id for volume in read_volumes(UID, tmp_path)] == [f"disk-of-{name}" for name in encoded]


@pytest.mark.parametrize(
    ("annotations", "uid"),
    [
        ({}, ""),
        ({POD_NAME: "web-0"}, ""),
        ({POD_NAME: f"k8s_web-0_default_{UID}_0"}, UID),
        ({POD_NAME: f"k8s_web-0_default_{UID}"}, ""),
        ({POD_NAME: "k8s_web-0_default_a/b_0"}, ""),
        ({SANDBOX_UID: UID, POD_NAME: "k8s_web-0_default_other_0"}, UID),
    ],
)
def test_cri_o_tells_the_pods_uid_and_containerd_does_not(annotations: dict[str, str], uid: str) -> None:
    assert pod_uid(annotations) == uid


@pytest.mark.parametrize(
    ("info", "part"),
    [
        ("{", "is not JSON"),
        ([], "is not an object"),
        ({"metadata": []}, ""),
        ({"metadata": "x"}, "is not an object whose metadata is an object"),
        ({"device": 1}, "device is 1; allowed: text"),
        ({"device": "d", "fstype": "ntfs"}, "fstype is 'ntfs'; allowed: ext4, ext3, xfs"),
        ({"device": "d", "metadata": {"encrypt-type": "aes"}}, "encrypt-type is 'aes'; allowed: luks, luks2"),
        ({"device": "d", "metadata": {"encrypt-type": "luks"}}, "kbs-key-id is missing"),
    ],
)
def test_a_volume_that_cannot_work_is_refused_before_it_costs_a_vm(tmp_path: Path, info: Any, part: str) -> None:
    place = publish(tmp_path, path_of("pvc-a"), info)
    if not part:
        assert read_volumes(UID, tmp_path)[0].disk_id == ""
        return
    with pytest.raises(InvalidInputError) as caught:
        read_volumes(UID, tmp_path)
    assert part in str(caught.value)
    assert str(place / "mountInfo.json") in str(caught.value)
