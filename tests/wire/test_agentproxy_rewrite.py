"""The CreateContainer rewrite, held against the protobuf fields of Kata's agent protocol."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caa.agentproxy.rewrite import CDI_ALL_GPUS, CDI_ANNOTATION, GPU_ANNOTATION, create_container
from caa.ttrpc.frames import HEADER, REQUEST, KeyValue, Request, frame
from caa.ttrpc.protobuf import Message, field, write_field


class Spec(Message):
    """oci.Spec, in part."""

    version: str = field(1)
    hostname: str = field(4)
    annotations: dict[str, str] = field(7)


class CreateContainerRequest(Message):
    """agent.CreateContainerRequest, in part."""

    container_id: str = field(1)
    oci: Spec | None = field(6)
    sandbox_pidns: bool = field(7)


UNKNOWN = write_field(900, 2, b"a field of a later Kata") + write_field(901, 0, 7)


def request(annotations: dict[str, str], unknown: bytes = UNKNOWN) -> Request:
    spec = Spec(version="1.1.0", hostname="pod", annotations=annotations).encode() + unknown
    payload = write_field(1, 2, b"c1") + write_field(6, 2, spec) + write_field(7, 0, 1) + unknown
    return Request(
        service="grpc.AgentService",
        method="CreateContainer",
        payload=payload,
        timeout_nano=60_000_000_000,
        metadata=[KeyValue(key="containerd-namespace-ttrpc", value="k8s.io")],
    )


def rewritten(before: Request) -> Request:
    out = create_container(memoryview(frame(11, REQUEST, before.encode() + UNKNOWN, 1)))
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
    assert create_container(before) is before


@given(st.binary(max_size=60))
def test_what_cannot_be_read_goes_on_untouched(garbage: bytes) -> None:
    for body in (garbage, Request(service="grpc.AgentService", method="CreateContainer", payload=garbage).encode()):
        before = memoryview(frame(3, REQUEST, body))
        assert create_container(before) is before
