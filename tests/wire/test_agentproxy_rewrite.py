"""The CreateContainer rewrite, held against the protobuf fields of Kata's agent protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.agentproxy.messages import CloudVolume
from caa.agentproxy.rewrite import CDI_ALL_GPUS, CDI_ANNOTATION, GPU_ANNOTATION, create_container
from caa.agentproxy.volumes import CLOUD_VOLUMES, SANDBOX_UID, TARGET_PATH, PodVolumes
from caa.ttrpc.frames import HEADER, REQUEST, KeyValue, Request, frame
from caa.ttrpc.protobuf import Message, field, write_field


class Mount(Message):
    """oci.Mount."""

    destination: str = field(1)
    source: str = field(2)
    type: str = field(3)


class Spec(Message):
    """oci.Spec, in part."""

    version: str = field(1)
    hostname: str = field(4)
    mounts: list[Mount] = field(5)
    annotations: dict[str, str] = field(7)


class CreateContainerRequest(Message):
    """agent.CreateContainerRequest, in part."""

    container_id: str = field(1)
    oci: Spec | None = field(6)
    sandbox_pidns: bool = field(7)


UNKNOWN = write_field(900, 2, b"a field of a later Kata") + write_field(901, 0, 7)


NONE = PodVolumes("", [])
UID, OTHER_UID = "2d1c1a5e-0000-4000-8000-000000000001", "2d1c1a5e-0000-4000-8000-000000000002"


def request(annotations: dict[str, str], unknown: bytes = UNKNOWN, mounts: Sequence[tuple[str, str]] = ()) -> Request:
    spec = Spec(version="1.1.0", hostname="pod", annotations=annotations).encode() + unknown
    spec += Spec(mounts=[Mount(source=source, destination=destination) for source, destination in mounts]).encode()
    payload = write_field(1, 2, b"c1") + write_field(6, 2, spec) + write_field(7, 0, 1) + unknown
    return Request(
        service="grpc.AgentService",
        method="CreateContainer",
        payload=payload,
        timeout_nano=60_000_000_000,
        metadata=[KeyValue(key="containerd-namespace-ttrpc", value="k8s.io")],
    )


def rewritten(before: Request, volumes: PodVolumes = NONE) -> Request:
    out = create_container(memoryview(frame(11, REQUEST, before.encode() + UNKNOWN, 1)), volumes)
    length, stream_id, frame_type, flags = HEADER.unpack_from(out)
    assert (length, stream_id, frame_type, flags) == (len(out) - HEADER.size, 11, REQUEST, 1)
    assert bytes(out).endswith(UNKNOWN)
    return Request.decode(memoryview(out)[HEADER.size :])


def test_a_container_of_a_gpu_pod_gets_the_device_annotation_and_keeps_all_else() -> None:
    before = request({"a": "b", GPU_ANNOTATION: "2"})
    after = rewritten(before)
    expected = Request.decode(before.encode())
    spec = Spec(version="1.1.0", hostname="pod", annotations={"a": "b", GPU_ANNOTATION: "2"}).encode() + UNKNOWN
    entry = write_field(1, 2, CDI_ANNOTATION.encode()) + write_field(2, 2, CDI_ALL_GPUS.encode())
    spec += write_field(7, 2, entry)
    expected.payload = write_field(1, 2, b"c1") + write_field(6, 2, spec) + write_field(7, 0, 1) + UNKNOWN
    assert after == expected


def test_zero_gpus_count_as_set_as_guest_images_expect() -> None:
    after = CreateContainerRequest.decode(rewritten(request({GPU_ANNOTATION: "0"})).payload)
    assert after.oci is not None
    assert after.oci.annotations[CDI_ANNOTATION] == CDI_ALL_GPUS


def test_another_value_of_the_device_annotation_is_overruled() -> None:
    after = CreateContainerRequest.decode(rewritten(request({CDI_ANNOTATION: "other", GPU_ANNOTATION: "1"})).payload)
    assert after.oci is not None
    assert after.oci.annotations[CDI_ANNOTATION] == CDI_ALL_GPUS


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5)), st.sampled_from([None, ""]))
def test_without_gpus_the_frame_stays_the_same_object(annotations: dict[str, str], gpus: str | None) -> None:
    if gpus is not None:
        annotations = {**annotations, GPU_ANNOTATION: gpus}
    before = memoryview(frame(11, REQUEST, request(annotations).encode()))
    assert create_container(before, NONE) is before


@given(st.binary(max_size=60))
def test_what_cannot_be_read_goes_on_untouched(garbage: bytes) -> None:
    for body in (garbage, Request(service="grpc.AgentService", method="CreateContainer", payload=garbage).encode()):
        before = memoryview(frame(3, REQUEST, body))
        assert create_container(before, NONE) is before


def path_of(name: str, uid: str = UID) -> str:
    return f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{name}/mount"


def volume(name: str, disk_id: str = "", **more: str) -> CloudVolume:
    return CloudVolume(path=path_of(name), disk_id=disk_id, **more)


VOLUMES = PodVolumes(
    UID,
    [
        volume("pvc-a", "vol-0aaa", fs_type="xfs"),
        volume("pvc-legacy"),
        volume("pvc-b", "vol-0bbb", encrypt_type="luks2", key_id="default/key/1"),
    ],
)


def annotations_of(
    mounts: Sequence[tuple[str, str]], given_annotations: dict[str, str], volumes: PodVolumes = VOLUMES
) -> dict[str, str]:
    before = memoryview(frame(11, REQUEST, request(given_annotations, mounts=mounts).encode()))
    after = Request.decode(memoryview(create_container(before, volumes))[HEADER.size :])
    spec = CreateContainerRequest.decode(after.payload).oci
    assert spec is not None
    assert [(mount.source, mount.destination) for mount in spec.mounts] == list(mounts)
    return spec.annotations


def test_a_mount_of_a_cloud_volume_is_named_with_the_number_its_disk_has_in_the_vm() -> None:
    mounts = [
        ("/var/lib/kubelet/pods/x/etc-hosts", "/etc/hosts"),
        (path_of("pvc-b"), "/secret"),
        (path_of("pvc-a"), "/data"),
    ]
    found = annotations_of(mounts, {SANDBOX_UID: UID, "a": "b"})
    assert set(found) == {SANDBOX_UID, "a", CLOUD_VOLUMES, TARGET_PATH}
    assert found[TARGET_PATH] == f"{path_of('pvc-b')},{path_of('pvc-a')}"
    assert found[CLOUD_VOLUMES] == (
        '{"vol-1":{"mount_point":"/secret","fs_type":"ext4","lun":"1","disk_id":"vol-0bbb","encrypt_type":"luks2",'
        '"key_id":"default/key/1"},"vol-0":{"mount_point":"/data","fs_type":"xfs","lun":"0","disk_id":"vol-0aaa"}}'
    )


def test_a_volume_without_a_disk_is_only_waited_for() -> None:
    found = annotations_of([(path_of("pvc-legacy"), "/data")], {})
    assert found == {TARGET_PATH: path_of("pvc-legacy")}


def test_a_volume_mounted_twice_is_named_for_each_mount() -> None:
    mounts = [(path_of("pvc-a"), "/one"), (path_of("pvc-a"), "/two")]
    found = annotations_of(mounts, {})
    volumes = json.loads(found[CLOUD_VOLUMES])
    assert {name: one["mount_point"] for name, one in volumes.items()} == {"vol-0": "/one", "vol-0-1": "/two"}
    assert {one["lun"] for one in volumes.values()} == {"0"}
    assert found[TARGET_PATH] == path_of("pvc-a")


@pytest.mark.parametrize("volumes", [VOLUMES, NONE])
def test_what_a_pod_says_of_its_volumes_itself_never_reaches_the_guest(volumes: PodVolumes) -> None:
    forged = {CLOUD_VOLUMES: '{"vol-0":{"mount_point":"/data","lun":"0"}}', TARGET_PATH: "/x", "a": "b"}
    assert annotations_of([("/x", "/data")], forged, volumes) == {"a": "b"}


def test_a_container_of_another_pod_gets_none_of_the_volumes() -> None:
    assert annotations_of([(path_of("pvc-a"), "/data")], {SANDBOX_UID: OTHER_UID}) == {SANDBOX_UID: OTHER_UID}


_sources = st.one_of(
    st.sampled_from([path_of("pvc-a"), path_of("pvc-b"), path_of("pvc-legacy")]),
    st.sampled_from([path_of("pvc-a", OTHER_UID), path_of("pvc-a") + "/", path_of("pvc-a") + "/../../pvc-b", ""]),
    st.text(max_size=9),
)
_destinations = st.sampled_from(["/data", "/data2", "/secret"])


@given(
    st.lists(st.tuples(_sources, _destinations), max_size=5),
    st.sampled_from(["", UID, OTHER_UID, UID.upper(), UID[:-1]]),
)
def test_only_volumes_of_the_pod_itself_are_ever_named(mounts: list[tuple[str, str]], uid: str) -> None:
    found = annotations_of(mounts, {SANDBOX_UID: uid} if uid else {})
    named = [one["mount_point"] for one in json.loads(found.get(CLOUD_VOLUMES, "{}")).values()]
    ours = {path_of("pvc-a"), path_of("pvc-b")} if uid in ("", UID) else set()
    assert sorted(named) == sorted(destination for source, destination in mounts if source in ours)
    assert OTHER_UID not in found.get(TARGET_PATH, "")


@pytest.mark.parametrize(
    ("uid", "path"),
    [
        (UID, path_of("pvc-a", OTHER_UID)),
        (UID, path_of("..")),
        (UID, path_of("pvc-a") + "/../../../../" + OTHER_UID),
        (UID, "relative/" + path_of("pvc-a", OTHER_UID)),
        (
            OTHER_UID,
            f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/pods/{OTHER_UID}/volumes/kubernetes.io~csi/x",
        ),
        (UID, f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/x"),
        ("", path_of("pvc-a")),
        ("a/b", path_of("pvc-a")),
        (UID, ""),
    ],
)
def test_a_list_that_names_anything_else_is_refused(uid: str, path: str) -> None:
    with pytest.raises(ValueError, match="allowed"):
        PodVolumes(uid, [CloudVolume(path=path, disk_id="d")])
    with pytest.raises(ValueError, match="twice"):
        PodVolumes(UID, [volume("pvc-a", "d"), volume("pvc-a", "e")])
