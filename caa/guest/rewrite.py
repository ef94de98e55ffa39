"""The two agent calls the pod VM changes on their way to the agent. Pure but for `make_bind_sources`.

Everything is done on the field level and lossless: a field we have never heard of passes byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from caa.guest.log import log
from caa.ttrpc.frames import peek_method
from caa.ttrpc.protobuf import LEN, DecodeError, read_fields, write_field, write_fields

POD_NAMESPACE = Path("/run/netns/podns")
"""The network namespace that holds the pod's end of the tunnel."""

# Field numbers of the agent protocol: Request.payload, CreateSandboxRequest.dns, CreateContainerRequest.OCI, and
# inside it Spec.Mounts, Spec.Linux and Linux.Namespaces.
_PAYLOAD, _DNS, _OCI, _MOUNTS, _LINUX, _NAMESPACES = 3, 2, 6, 5, 8, 6

Field = tuple[int, int, int | memoryview]


def rewrite_request(data: bytes, pod_namespace: Path = POD_NAMESPACE) -> bytes:
    """The envelope of a call as the agent is to see it. What does not parse passes as it is: the agent will say so."""
    try:
        service, method = peek_method(data)
        if service != "grpc.AgentService":
            return data
        if method == "CreateSandbox":
            return _replace(data, _PAYLOAD, without_dns)
        if method == "CreateContainer":
            for source in bind_sources(data):
                _make_bind_source(source)
            if pod_namespace.exists():
                return _replace(data, _PAYLOAD, lambda payload: with_network(payload, str(pod_namespace)))
    except DecodeError as error:
        log(f"a call was passed on as it is, for it does not parse: {error}")
    return data


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
