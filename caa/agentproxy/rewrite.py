"""The one request that the worker changes: CreateContainer. Pure, and lossless for fields it does not know."""

from __future__ import annotations

from caa.ttrpc.frames import HEADER, REQUEST, frame
from caa.ttrpc.protobuf import LEN, DecodeError, read_fields, write_field, write_fields

SERVICE, METHOD = "grpc.AgentService", "CreateContainer"

# The pod asked for GPUs, so the container gets all of the pod VM's, through the device list that the guest image
# writes at boot. Key and value are those the incumbent's guest images act on.
GPU_ANNOTATION = "io.katacontainers.config.hypervisor.default_gpus"
CDI_ANNOTATION, CDI_ALL_GPUS = "cdi.k8s.io/peer-pods", "nvidia.com/gpu=all"

# Field numbers of Kata's agent.proto and oci.proto.
_REQUEST_PAYLOAD, _CREATE_OCI, _SPEC_ANNOTATIONS = 3, 6, 7
_MAP_KEY, _MAP_VALUE = 1, 2

Field = tuple[int, int, int | memoryview]


def create_container(request_frame: memoryview) -> bytes | memoryview:
    """The frame to send instead of this one: the same object when there is nothing to change.

    A frame that cannot be read goes on as it is, for the agent to refuse.
    """
    try:
        changed = _change_inside(request_frame[HEADER.size :], (_REQUEST_PAYLOAD, _CREATE_OCI))
    except DecodeError:
        return request_frame
    if changed is None:
        return request_frame
    _, stream_id, _, flags = HEADER.unpack_from(request_frame)
    return frame(stream_id, REQUEST, changed, flags)


def _change_inside(message: memoryview, path: tuple[int, ...]) -> bytes | None:
    """The message with the Spec at `path` changed, or None for no change."""
    if not path:
        return _add_cdi_annotation(message)
    fields: list[Field] = list(read_fields(message))
    changed = False
    for index, (number, wire_type, value) in enumerate(fields):
        if number == path[0] and wire_type == LEN and not isinstance(value, int):
            inner = _change_inside(value, path[1:])
            if inner is not None:
                fields[index] = (number, wire_type, memoryview(inner))
                changed = True
    return write_fields(fields) if changed else None


def _add_cdi_annotation(spec: memoryview) -> bytes | None:
    annotations: dict[bytes, bytes] = {}
    for number, wire_type, value in read_fields(spec):
        if number == _SPEC_ANNOTATIONS and wire_type == LEN and not isinstance(value, int):
            key, text = _map_entry(value)
            annotations[key] = text
    wanted = CDI_ALL_GPUS.encode()
    # Any value counts, also "0": so the guest images expect it.
    if not annotations.get(GPU_ANNOTATION.encode()) or annotations.get(CDI_ANNOTATION.encode()) == wanted:
        return None
    entry = write_field(_MAP_KEY, LEN, CDI_ANNOTATION.encode()) + write_field(_MAP_VALUE, LEN, wanted)
    # Of two entries with one key the last counts.
    return bytes(spec) + write_field(_SPEC_ANNOTATIONS, LEN, entry)


def _map_entry(entry: memoryview) -> tuple[bytes, bytes]:
    found = {_MAP_KEY: b"", _MAP_VALUE: b""}
    for number, wire_type, value in read_fields(entry):
        if number in found and wire_type == LEN and not isinstance(value, int):
            found[number] = bytes(value)
    return found[_MAP_KEY], found[_MAP_VALUE]
