"""What the pod VM changes in the agent's calls, held against an independent reading of the same bytes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.guest.copyfile import CopyFileRequest, copy_file
from caa.guest.relay import FrameEnds, FrameRewriter
from caa.guest.rewrite import Work, bind_sources, rewrite_request, with_network, without_dns
from caa.ttrpc.frames import HEADER, MAX_DATA, REQUEST, Request, StatusError, frame
from caa.ttrpc.protobuf import LEN, VARINT, Message, field, read_fields, write_field


class Namespace(Message):
    type: str = field(1)
    path: str = field(2)


class Linux(Message):
    cgroups_path: str = field(5)
    namespaces: list[Namespace] = field(6)


class Mount(Message):
    destination: str = field(1)
    source: str = field(2)
    type: str = field(3)
    options: list[str] = field(4)


class Spec(Message):
    version: str = field(1)
    mounts: list[Mount] = field(5)
    annotations: dict[str, str] = field(7)
    linux: Linux | None = field(8)


class Create(Message):
    container_id: str = field(1)
    oci: Spec | None = field(6)
    sandbox_pidns: bool = field(7)


class Sandbox(Message):
    hostname: str = field(1)
    dns: list[str] = field(2)
    sandbox_id: str = field(5)


UNKNOWN = write_field(1999, VARINT, 7) + write_field(2000, LEN, b"not known here")


def container(*mounts: Mount) -> Create:
    linux = Linux(cgroups_path="/c", namespaces=[Namespace(type="ipc"), Namespace(type="mount")])
    spec = Spec(version="1.1.0", mounts=list(mounts), annotations={"a": "b"}, linux=linux)
    return Create(container_id="c1", oci=spec, sandbox_pidns=True)


def no_work(work: Work, stream_id: int, flags: int) -> None:
    raise AssertionError("nothing here takes its time")


def rewritten(data: bytes, pod_namespace: Path = Path("/")) -> bytes:
    changed = rewrite_request(data, pod_namespace)
    assert isinstance(changed, bytes)
    return changed


def call(method: str, payload: bytes, service: str = "grpc.AgentService") -> bytes:
    return Request(service=service, method=method, payload=payload, timeout_nano=5).encode()


def test_a_container_gets_the_pods_network_namespace_and_nothing_else_changes() -> None:
    changed = with_network(container().encode() + UNKNOWN, "/run/netns/podns")
    expected = container()
    assert expected.oci is not None
    assert expected.oci.linux is not None
    expected.oci.linux.namespaces.append(Namespace(type="network", path="/run/netns/podns"))
    assert Create.decode(changed) == expected
    assert changed.endswith(UNKNOWN)


def test_a_container_without_linux_part_gets_one() -> None:
    changed = Create.decode(with_network(Create(container_id="c1").encode(), "/n"))
    assert changed.oci is not None
    assert changed.oci.linux is not None
    assert changed.oci.linux.namespaces == [Namespace(type="network", path="/n")]


def test_without_a_pod_network_a_container_passes_unchanged(tmp_path: Path) -> None:
    data = call("CreateContainer", container().encode())
    assert rewrite_request(data, tmp_path / "podns") is data


def test_the_workers_dns_never_reaches_the_agent() -> None:
    sandbox = Sandbox(hostname="h", dns=["nameserver 10.96.0.10", ""], sandbox_id="s")
    changed = without_dns(sandbox.encode() + UNKNOWN)
    assert Sandbox.decode(changed) == Sandbox(hostname="h", sandbox_id="s")
    assert changed.endswith(UNKNOWN)


def test_missing_sources_of_bind_mounts_are_made_and_others_are_not(tmp_path: Path) -> None:
    there = tmp_path / "file"
    there.write_text("kept")
    mounts = [
        Mount(source=str(tmp_path / "new/deep"), type="bind"),
        Mount(source=str(tmp_path / "by-option"), options=["ro", "rbind"]),
        Mount(source=str(there), type="bind"),
        Mount(source=str(tmp_path / "tmpfs"), type="tmpfs"),
        Mount(source="relative", type="bind"),
        Mount(source=str(there / "below a file"), type="bind"),
    ]
    data = call("CreateContainer", container(*mounts).encode())
    rewrite_request(data, tmp_path / "podns")
    assert len(list(bind_sources(data))) == 4
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "new", "deep", "by-option"}
    assert there.read_text() == "kept"


@given(st.binary(max_size=200), st.sampled_from(["CreateContainer", "CreateSandbox", "Other"]))
def test_a_payload_that_does_not_parse_passes_for_the_agent_to_refuse(payload: bytes, method: str) -> None:
    data = call(method, payload)
    changed = Request.decode(rewritten(data))
    assert (changed.method, changed.timeout_nano) == (method, 5)
    if method == "Other":
        assert rewrite_request(data, Path("/")) is data


@given(st.binary(max_size=300))
def test_no_bytes_of_a_request_crash_the_forwarder(data: bytes) -> None:
    assert isinstance(rewrite_request(data, Path("/")), bytes)


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 5), st.binary(max_size=60)), max_size=8),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_frames_pass_whole_however_they_are_cut(frames: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(frame(number, kind, data) for number, kind, data in frames)
    seen: list[bytes] = []

    def note(data: bytes) -> bytes:
        seen.append(data)
        return data

    rewriter, out, at = FrameRewriter(note, no_work), b"", 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        out += rewriter.feed(stream[at : at + size])
        at += size
    assert out == stream
    assert seen == [data for _, kind, data in frames if kind == REQUEST]


@given(st.lists(st.binary(max_size=30), max_size=6), st.lists(st.integers(1, 30), min_size=1))
def test_the_place_between_two_frames_is_known_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    frames = [frame(number, 2, body) for number, body in enumerate(bodies)]
    stream, ends = b"".join(frames), {sum(map(len, frames[:count])) for count in range(len(frames) + 1)}
    follower, at = FrameEnds(), 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        follower.feed(stream[at : at + size])
        at = min(at + size, len(stream))
        assert follower.inside_frame == (at not in ends)


def test_an_over_long_frame_passes_without_being_held_and_the_next_is_in_step() -> None:
    rewriter = FrameRewriter(lambda data: b"changed", no_work)
    header = HEADER.pack(MAX_DATA + 5, 1, REQUEST, 0)
    assert rewriter.feed(header + b"x" * 100) == header + b"x" * 100
    assert rewriter.feed(b"x" * (MAX_DATA - 95)) == b"x" * (MAX_DATA - 95)
    assert rewriter.feed(frame(3, REQUEST, b"old")) == frame(3, REQUEST, b"changed")


_parts = st.sampled_from(["..", "a", "link", "/", "", ".", "b\0", "etc"])


@given(st.lists(_parts, max_size=6), st.sampled_from([0o100644, 0o040755, 0o120777]), st.booleans())
def test_a_copied_file_never_lands_outside_the_shared_directory(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], mode: int, inside: bool
) -> None:
    base = tmp_path_factory.mktemp("copy")
    shared, outside = base / "shared", base / "outside"
    shared.mkdir()
    outside.mkdir()
    (shared / "link").symlink_to(outside)
    mode_before = outside.stat().st_mode
    path = (f"{shared}/" if inside else "") + "/".join(parts)
    request = CopyFileRequest(path=path, file_size=2, file_mode=mode, dir_mode=0o750, data=b"hi")
    with suppress(StatusError):
        copy_file(request, shared)
    assert outside.stat().st_mode == mode_before
    assert list(outside.iterdir()) == []
    assert sorted(item.name for item in base.iterdir()) == ["outside", "shared"]


def test_a_file_comes_in_pieces_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "containers/c1-resolv.conf"
    for offset, data in ((0, b"name"), (4, b"server")):
        request = CopyFileRequest(path=str(path), file_size=10, file_mode=0o100640, dir_mode=0o750, data=data)
        request.offset = offset
        copy_file(request, tmp_path)
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"nameserver", 0o640)


def test_every_field_of_a_rewritten_envelope_is_kept() -> None:
    data = call("CreateSandbox", Sandbox(dns=["x"]).encode()) + UNKNOWN
    kept = [(number, bytes(value)) for number, _, value in read_fields(rewritten(data)) if number == 2000]
    assert kept == [(2000, b"not known here")]
