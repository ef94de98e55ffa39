"""The agent calls that the pod VM changes, or acts on, on their way to the agent.

Everything is done on the field level and lossless: a field we have never heard of passes byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from caa.guest.log import log
from caa.guest.volumenames import BASE, CLOUD_VOLUMES, TARGET_PATH
from caa.ttrpc.frames import Code, StatusError, peek_method
from caa.ttrpc.protobuf import LEN, DecodeError, read_fields, write_field, write_fields

if TYPE_CHECKING:
    from caa.guest.volumes import CloudVolumes

POD_NAMESPACE = Path("/run/netns/podns")
"""The network namespace that holds the pod's end of the tunnel."""

# Field numbers of the agent protocol: Request.payload, CreateSandboxRequest.dns, CreateContainerRequest.OCI, and
# inside it Spec.Mounts, Spec.Annotations, Spec.Linux and Linux.Namespaces; those of Mount.
_PAYLOAD, _DNS, _OCI, _MOUNTS, _ANNOTATIONS, _LINUX, _NAMESPACES = 3, 2, 6, 5, 7, 8, 6
_DESTINATION, _SOURCE, _TYPE = 1, 2, 3

Field = tuple[int, int, int | memoryview]


Work = Callable[[], bytes]
"""Does what takes its time and returns the envelope. Raises StatusError to answer the call with."""


def rewrite_request(
    data: bytes, pod_namespace: Path = POD_NAMESPACE, volumes: CloudVolumes | None = None
) -> bytes | Work:
    """The envelope of a call as the agent is to see it, or what makes it. What does not parse passes as it is: the
    agent will say so. `volumes` are made when a call needs them.
    """
    try:
        service, method = peek_method(data)
        if service != "grpc.AgentService":
            return data
        if method == "CreateSandbox":
            return _replace(data, _PAYLOAD, without_dns)
        if method == "CreateContainer":
            if any(_volume_annotations(data)):
                return lambda: _with_volumes(data, pod_namespace, volumes)
            return _joined(data, pod_namespace)
        if method == "DestroySandbox" and (volumes is not None or BASE.exists()):
            return lambda: _unmounted(data, volumes)
    except DecodeError as error:
        log(f"a call was passed on as it is, for it does not parse: {error}")
    return data


def _joined(data: bytes, pod_namespace: Path) -> bytes:
    for source in bind_sources(data):
        _make_bind_source(source)
    if pod_namespace.exists():
        return _replace(data, _PAYLOAD, lambda payload: with_network(payload, str(pod_namespace)))
    return data


def _with_volumes(data: bytes, pod_namespace: Path, volumes: CloudVolumes | None) -> bytes:
    # Few pods have volumes, and the import takes its time.
    from caa.guest.volumes import CloudVolumes, parse_volumes

    volumes = volumes or CloudVolumes()
    try:
        named, target_paths = _volume_annotations(data)
        mounts = [_mount_texts(mount) for mount in _path(data, (_PAYLOAD, _OCI, _MOUNTS))]
        if named:
            sources = volumes.mount(parse_volumes(named, (destination for destination, _ in mounts)))
            data = _replace(data, _PAYLOAD, lambda payload: with_sources(payload, sources))
            mounts = [_mount_texts(mount) for mount in _path(data, (_PAYLOAD, _OCI, _MOUNTS))]
        data = _joined(data, pod_namespace)
    except DecodeError as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"the call does not parse: {error}") from None
    waited_for = {path.strip() for path in target_paths.split(",")}
    volumes.wait_mounted(source for _, source in mounts if source and source in waited_for)
    return data


def _unmounted(data: bytes, volumes: CloudVolumes | None) -> bytes:
    from caa.guest.volumes import CloudVolumes

    (volumes or CloudVolumes()).unmount()
    return data


def with_sources(payload: bytes | memoryview, sources: Mapping[str, str]) -> bytes:
    """CreateContainerRequest whose mounts at the destinations in `sources` are binds of the paths there."""

    def mount_changed(mount: memoryview) -> bytes:
        source = sources.get(_mount_texts(mount)[0])
        if source is None:
            return bytes(mount)
        kept = write_fields(field for field in read_fields(mount) if field[0] not in (_SOURCE, _TYPE))
        return kept + write_field(_SOURCE, LEN, source.encode()) + write_field(_TYPE, LEN, b"bind")

    def oci_changed(oci: memoryview) -> bytes:
        fields: list[Field] = []
        for number, wire_type, value in read_fields(oci):
            if number == _MOUNTS and wire_type == LEN and not isinstance(value, int):
                value = memoryview(mount_changed(value))
            fields.append((number, wire_type, value))
        return write_fields(fields)

    return _replace(payload, _OCI, oci_changed)


def _mount_texts(mount: memoryview) -> tuple[str, str]:
    """Destination and source."""
    texts = _texts(mount)
    return texts.get(_DESTINATION, ""), texts.get(_SOURCE, "")


def _volume_annotations(data: bytes) -> tuple[str, str]:
    """What the worker says of cloud volumes, and of paths to wait for."""
    entries = (_texts(entry) for entry in _path(data, (_PAYLOAD, _OCI, _ANNOTATIONS)))
    annotations = {entry.get(1, ""): entry.get(2, "") for entry in entries}
    return annotations.get(CLOUD_VOLUMES, ""), annotations.get(TARGET_PATH, "")


def _texts(message: memoryview) -> dict[int, str]:
    return {
        number: str(value, "utf-8", "surrogateescape")
        for number, wire_type, value in read_fields(message)
        if wire_type == LEN and not isinstance(value, int)
    }


def without_dns(payload: bytes | memoryview) -> bytes:
    """CreateSandboxRequest without the worker's resolv.conf, so that the VM keeps the one its own network gave it."""
    return write_fields(field for field in read_fields(payload) if field[0] != _DNS)


def with_network(payload: bytes | memoryview, path: str) -> bytes:
    """CreateContainerRequest whose container joins the network namespace at `path`."""
    namespace = write_field(1, LEN, b"network") + write_field(2, LEN, path.encode())
    added = write_field(_NAMESPACES, LEN, namespace)
    return _replace(payload, _OCI, lambda oci: _replace(oci, _LINUX, lambda linux: bytes(linux) + added))


def bind_sources(request: bytes | memoryview) -> Iterator[str]:
    """The absolute sources of all bind mounts in a CreateContainer call."""
    for mount in _path(request, (_PAYLOAD, _OCI, _MOUNTS)):
        texts: dict[int, list[str]] = {2: [], 3: [], 4: []}  # source, type, options
        for number, wire_type, value in read_fields(mount):
            if number in texts and wire_type == LEN and not isinstance(value, int):
                texts[number].append(str(value, "utf-8", "surrogateescape"))
        is_bind = "bind" in texts[3] or not {"bind", "rbind"}.isdisjoint(texts[4])
        if is_bind and texts[2] and texts[2][-1].startswith("/"):
            yield texts[2][-1]


def _make_bind_source(source: str) -> None:
    path = Path(source)
    try:
        if not path.exists():
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            log(f"made {source}, the source of a bind mount")
    except (OSError, ValueError) as error:  # the agent's own error will name the mount
        log(f"cannot make {source}, the source of a bind mount: {error}")


def _path(data: bytes | memoryview, numbers: tuple[int, ...]) -> Iterator[memoryview]:
    for number, wire_type, value in read_fields(data):
        if number == numbers[0] and wire_type == LEN and not isinstance(value, int):
            if len(numbers) == 1:
                yield value
            else:
                yield from _path(value, numbers[1:])


def _replace(data: bytes | memoryview, number: int, change: Callable[[memoryview], bytes]) -> bytes:
    """`data` with its last field `number` changed; where there is none, an empty one is."""
    fields: list[Field] = list(read_fields(data))
    places = [index for index, field in enumerate(fields) if field[0] == number and field[1] == LEN]
    old = fields[places[-1]][2] if places else memoryview(b"")
    assert isinstance(old, memoryview)
    new: Field = (number, LEN, memoryview(change(old)))
    if places:
        fields[places[-1]] = new
    else:
        fields.append(new)
    return write_fields(fields)
