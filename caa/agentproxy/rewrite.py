"""The one request that the worker changes: CreateContainer. Pure, and lossless for fields it does not know."""

from __future__ import annotations

from caa.agentproxy.volumes import SANDBOX_UID, PodVolumes
from caa.ttrpc.frames import HEADER, REQUEST, frame
from caa.ttrpc.protobuf import LEN, DecodeError, read_fields, write_field, write_fields

SERVICE, METHOD = "grpc.AgentService", "CreateContainer"

# The pod asked for GPUs, so the container gets all of the pod VM's, through the device list that the guest image
# writes at boot. Key and value are those the incumbent's guest images act on.
GPU_ANNOTATION = "io.katacontainers.config.hypervisor.default_gpus"
CDI_ANNOTATION, CDI_ALL_GPUS = "cdi.k8s.io/peer-pods", "nvidia.com/gpu=all"

# Field numbers of Kata's agent.proto and oci.proto.
_REQUEST_PAYLOAD, _CREATE_OCI, _SPEC_MOUNTS, _SPEC_ANNOTATIONS = 3, 6, 5, 7
_MAP_KEY, _MAP_VALUE = 1, 2
_MOUNT_DESTINATION, _MOUNT_SOURCE = 1, 2

Field = tuple[int, int, int | memoryview]


def create_container(request_frame: memoryview, volumes: PodVolumes) -> bytes | memoryview:
    """The frame to send instead of this one: the same object when there is nothing to change.

    A frame that cannot be read goes on as it is, for the agent to refuse.
    """
    try:
        changed = _change_inside(request_frame[HEADER.size :], (_REQUEST_PAYLOAD, _CREATE_OCI), volumes)
    except DecodeError:
        return request_frame
    if changed is None:
        return request_frame
    _, stream_id, _, flags = HEADER.unpack_from(request_frame)
    return frame(stream_id, REQUEST, changed, flags)


def _change_inside(message: memoryview, path: tuple[int, ...], volumes: PodVolumes) -> bytes | None:
    """The message with the Spec at `path` changed, or None for no change."""
    if not path:
        return _annotate(message, volumes)
    fields: list[Field] = list(read_fields(message))
    changed = False
    for index, (number, wire_type, value) in enumerate(fields):
        if number == path[0] and wire_type == LEN and not isinstance(value, int):
            inner = _change_inside(value, path[1:], volumes)
            if inner is not None:
                fields[index] = (number, wire_type, memoryview(inner))
                changed = True
    return write_fields(fields) if changed else None


def _annotate(spec: memoryview, volumes: PodVolumes) -> bytes | None:
    """The Spec with the annotations it is to have, or None when it has them."""
    annotations: dict[str, str] = {}
    mounts: list[tuple[str, str]] = []
    for number, wire_type, value in read_fields(spec):
        if wire_type != LEN or isinstance(value, int):
            continue
        if number == _SPEC_ANNOTATIONS:
            key, text = _texts(value, _MAP_KEY, _MAP_VALUE)
            annotations[key] = text
        elif number == _SPEC_MOUNTS:
            mounts.append(_texts(value, _MOUNT_SOURCE, _MOUNT_DESTINATION))
    wanted = volumes.annotations(annotations.get(SANDBOX_UID, ""), mounts)
    # Any value counts, also "0": so the guest images expect it.
    if annotations.get(GPU_ANNOTATION):
        wanted[CDI_ANNOTATION] = CDI_ALL_GPUS
    changed = {key for key, text in wanted.items() if annotations.get(key, "") != text}
    if not changed:
        return None
    kept = [field for field in read_fields(spec) if not _is_entry(field, changed)]
    added = [_entry(key, text) for key, text in wanted.items() if key in changed and text]
    return write_fields(kept) + b"".join(added)


def _is_entry(field: Field, keys: set[str]) -> bool:
    number, wire_type, value = field
    if number != _SPEC_ANNOTATIONS or wire_type != LEN or isinstance(value, int):
        return False
    return _texts(value, _MAP_KEY, _MAP_VALUE)[0] in keys


def _entry(key: str, text: str) -> bytes:
    entry = write_field(_MAP_KEY, LEN, key.encode()) + write_field(_MAP_VALUE, LEN, text.encode())
    return write_field(_SPEC_ANNOTATIONS, LEN, entry)


def _texts(message: memoryview, first: int, second: int) -> tuple[str, str]:
    found = {first: "", second: ""}
    for number, wire_type, value in read_fields(message):
        if number in found and wire_type == LEN and not isinstance(value, int):
            found[number] = str(value, "utf-8", "surrogateescape")
    return found[first], found[second]
