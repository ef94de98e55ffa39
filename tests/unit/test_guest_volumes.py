"""The annotation that names cloud volumes, and which block device each is, in a made-up /sys and /dev."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.agentproxy.messages import CloudVolume
from caa.agentproxy.volumes import CLOUD_VOLUMES, PodVolumes
from caa.guest import volumenames
from caa.guest.disks import Disks
from caa.guest.volumes import Volume, parse_volumes
from caa.ttrpc.frames import Code, StatusError

GOOD = {
    "mount_point": "/data",
    "fs_type": "xfs",
    "lun": "1",
    "disk_id": "vol-0a",
    "encrypt_type": "LUKS",
    "key_id": "a/b/c",
}


def parse(document: object, *destinations: str) -> list[Volume]:
    text = document if isinstance(document, str) else json.dumps(document)
    return parse_volumes(text, destinations or ("/data",))


def test_a_stock_workers_annotation_is_read_in_order_of_the_names() -> None:
    document = {"vol-1": GOOD | {"fs_group": "1000"}, "vol-0": {"mount_point": "/data", "lun": "0"}}
    assert parse(document) == [
        Volume("vol-0", "/data", "ext4", 0, "", None, False, ""),
        Volume("vol-1", "/data", "xfs", 1, "vol-0a", 1000, True, "a/b/c"),
    ]


def test_what_our_worker_says_is_what_our_guest_reads() -> None:
    uid = "u-1"
    path = f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/pvc/mount"
    volume = CloudVolume(path=path, disk_id="vol-0a", fs_type="xfs", encrypt_type="luks", key_id="k")
    said = PodVolumes(uid, [volume]).annotations(uid, [(path, "/data")])
    assert parse(said[CLOUD_VOLUMES]) == [Volume("vol-0", "/data", "xfs", 0, "vol-0a", None, True, "k")]
    assert set(said) == {volumenames.CLOUD_VOLUMES, volumenames.TARGET_PATH}


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ("{", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ([], "is not a JSON object"),
        ({"a": 1}, "a is not an object of texts"),
        ({"a": {"lun": 1}}, "a is not an object of texts"),
        *[({name: GOOD}, "is no name") for name in ("..", ".", "", "a/b", "/x", "a\0", "a b", "é")],
        *[({"a": GOOD | {"lun": lun}}, f"a: lun is {lun!r}; allowed") for lun in ("", "-1", "x", "1.0", "²", "1000")],
        ({"a": GOOD | {"fs_type": "vfat"}}, "a: fs_type is 'vfat'; allowed: ext4, ext3, xfs"),
        ({"a": GOOD | {"fs_group": "root"}}, "a: fs_group is 'root'; allowed"),
        ({"a": GOOD | {"encrypt_type": "aes"}}, "a: encrypt_type is 'aes'; allowed: luks, luks2"),
        ({"a": GOOD | {"key_id": ""}}, "a: key_id is missing"),
        ({"a": GOOD | {"mount_point": "/other"}}, "a: mount_point is '/other'; allowed: a mount of the container"),
        ({"a": {"lun": "0"}}, "a: mount_point is ''"),
    ],
)
def test_a_volume_that_is_not_understood_stops_the_container(document: Any, part: str) -> None:
    with pytest.raises(StatusError) as caught:
        parse(document)
    assert part in str(caught.value)
    assert str(caught.value).startswith(CLOUD_VOLUMES)
    assert caught.value.code == Code.INVALID_ARGUMENT


_texts = st.one_of(st.sampled_from(["", "0", "7", "/data", "ext4", "xfs", "luks", "..", "/etc"]), st.text(max_size=5))
_entry = st.dictionaries(st.sampled_from([*GOOD, "fs_group", "other"]), _texts, max_size=7)
_json = st.one_of(st.dictionaries(_texts, _entry, max_size=3).map(json.dumps), st.text(max_size=30))


@given(_json)
def test_whatever_is_accepted_stays_below_the_directory_of_volumes(text: str) -> None:
    try:
        volumes = parse(text)
    except StatusError:
        return
    for volume in volumes:
        assert (volumenames.BASE / volume.name).parent == volumenames.BASE
        assert volume.mount_point == "/data"
        assert 0 <= volume.lun < 1000


class Machine:
    """A made-up /sys/block and /dev."""

    def __init__(self, directory: Path) -> None:
        self.devices, self.blocks = directory / "dev", directory / "block"
        self.mounts = directory / "mounts"
        self.devices.mkdir()
        self.blocks.mkdir()
        self.mounts.write_text("")

    def add(self, name: str, scsi: str = "", serial: str = "", partitions: int = 0) -> None:
        device = self.blocks.parent / "devices" / (scsi or name)
        device.mkdir(parents=True)
        if serial:
            (device / "serial").write_text(serial.ljust(20) + "\n")
        (self.blocks / name).mkdir()
        (self.blocks / name / "device").symlink_to(device)
        for number in range(partitions):
            (self.blocks / name / f"{name}{number + 1}").mkdir()
            (self.blocks / name / f"{name}{number + 1}" / "partition").touch()
        (self.devices / name).touch()

    def find(self, lun: int, disk_id: str = "") -> str:
        return Disks(self.devices, self.blocks, self.mounts, patience=0).find(lun, disk_id).name


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_ebs_volume_is_found_by_its_id_and_never_by_a_number(machine: Machine) -> None:
    machine.add("nvme0n1", serial="vol0aaaa")
    machine.add("nvme1n1", serial="vol0aaa")
    assert machine.find(0, "vol-0aaa") == "nvme1n1"
    machine.add("vda")
    machine.add("vdb")
    with pytest.raises(StatusError, match=r"no data disk 0 \(disk_id 'vol-0aa'\)") as caught:
        machine.find(0, "vol-0aa")
    assert caught.value.code == Code.NOT_FOUND
    assert "there are nvme0n1, nvme1n1, vda, vdb" in str(caught.value)


def test_virtio_disks_follow_the_systems_one_in_order(machine: Machine) -> None:
    for name in ("vda", "vdb", "vdc"):
        machine.add(name)
    assert [machine.find(number) for number in (0, 1)] == ["vdb", "vdc"]
    for number in (2, 25, 999):
        with pytest.raises(StatusError, match=f"no data disk {number}"):
            machine.find(number)


@pytest.mark.parametrize("link", ["data/by-lun/3", "scsi1/lun3"])
def test_azure_disks_are_found_by_their_links(machine: Machine, link: str) -> None:
    machine.add("sda", "0:0:0:3")
    machine.add("sdc", "1:0:0:3")
    place = machine.devices / "disk/azure" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(machine.devices / "sdc")
    assert machine.find(3) == "sdc"


def test_scsi_disks_are_found_by_lun_but_never_the_systems(machine: Machine) -> None:
    machine.add("sda", "0:0:0:0", partitions=2)
    with pytest.raises(StatusError, match="no data disk 0"):
        machine.find(0)
    machine.add("sdb", "0:0:1:0")
    assert machine.find(0) == "sdb"
    machine.add("sdd", "2:0:0:0")
    assert machine.find(0) == "sdd"
    machine.mounts.write_text("/dev/sdd1 / ext4 rw 0 0\n")
    assert machine.find(0) == "sdb"
    with pytest.raises(StatusError, match="no data disk 1"):
        machine.find(1)
