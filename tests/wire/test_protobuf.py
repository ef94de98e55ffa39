"""The codec against the protobuf package: same bytes out, same values in, and nothing but DecodeError for rubbish."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import example, given
from hypothesis import strategies as st

from caa.ttrpc.frames import KeyValue, Request, Response, Status, peek_method
from caa.ttrpc.protobuf import (
    I32,
    LEN,
    VARINT,
    DecodeError,
    Message,
    decode_varint,
    encode_varint,
    field,
    read_fields,
    write_field,
    write_fields,
)


class Inner(Message):
    name: str = field(1)
    count: int = field(2)


class Everything(Message):
    text: str = field(1)
    data: bytes = field(2)
    number: int = field(3)
    flag: bool = field(4)
    inner: Inner | None = field(5)
    texts: list[str] = field(6)
    numbers: list[int] = field(7)
    inners: list[Inner] = field(8)
    pairs: dict[str, str] = field(9)
    flags: list[bool] = field(10)
    far: str = field(536870911)  # the highest number there is


class Far(Message):
    far: str = field(536870911)


Field = descriptor_pb2.FieldDescriptorProto


def _reference() -> dict[str, Any]:
    """The same messages, and ttrpc's own, made with the protobuf package."""
    file = descriptor_pb2.FileDescriptorProto(name="reference.proto", package="ref", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, bool, str]) -> Any:
        made = file.message_type.add(name=name)
        for field_name, number, kind, repeated, type_name in fields:
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            made.field.add(
                name=field_name,
                number=number,
                type=kind,
                label=label,
                type_name=type_name or None,
            )
        return made

    string, raw, i64, flag, sub = (
        Field.TYPE_STRING,
        Field.TYPE_BYTES,
        Field.TYPE_INT64,
        Field.TYPE_BOOL,
        Field.TYPE_MESSAGE,
    )
    message("Inner", ("name", 1, string, False, ""), ("count", 2, i64, False, ""))
    everything = message(
        "Everything",
        ("text", 1, string, False, ""),
        ("data", 2, raw, False, ""),
        ("number", 3, i64, False, ""),
        ("flag", 4, flag, False, ""),
        ("inner", 5, sub, False, ".ref.Inner"),
        ("texts", 6, string, True, ""),
        ("numbers", 7, i64, True, ""),
        ("inners", 8, sub, True, ".ref.Inner"),
        ("pairs", 9, sub, True, ".ref.Everything.PairsEntry"),
        ("flags", 10, flag, True, ""),
        ("far", 536870911, string, False, ""),
    )
    entry = everything.nested_type.add(name="PairsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=string, label=Field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=string, label=Field.LABEL_OPTIONAL)
    message("KeyValue", ("key", 1, string, False, ""), ("value", 2, string, False, ""))
    message(
        "Request",
        ("service", 1, string, False, ""),
        ("method", 2, string, False, ""),
        ("payload", 3, raw, False, ""),
        ("timeout_nano", 4, i64, False, ""),
        ("metadata", 5, sub, True, ".ref.KeyValue"),
    )
    message("Any", ("type_url", 1, string, False, ""), ("value", 2, raw, False, ""))
    message(
        "Status",
        ("code", 1, Field.TYPE_INT32, False, ""),
        ("message", 2, string, False, ""),
        ("details", 3, sub, True, ".ref.Any"),
    )
    message("Response", ("status", 1, sub, False, ".ref.Status"), ("payload", 2, raw, False, ""))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        made.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ref.{made.name}"))
        for made in file.message_type
    }


REFERENCE = _reference()

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
int64 = st.integers(-(1 << 63), (1 << 63) - 1)
inner = st.fixed_dictionaries({"name": text, "count": int64})
everything = st.fixed_dictionaries(
    {
        "text": text,
        "data": st.binary(max_size=300),
        "number": int64,
        "flag": st.booleans(),
        "inner": st.none() | inner,
        "texts": st.lists(text, max_size=4),
        "numbers": st.lists(int64, max_size=4),
        "inners": st.lists(inner, max_size=3),
        "pairs": st.dictionaries(text, text, max_size=4),
        "flags": st.lists(st.booleans(), max_size=4),
        "far": text,
    }
)


def ours_of(values: dict[str, Any]) -> Everything:
    nested = {
        "inner": None if values["inner"] is None else Inner(**values["inner"]),
        "inners": [Inner(**item) for item in values["inners"]],
    }
    return Everything(**(values | nested))


def theirs_of(values: dict[str, Any]) -> Any:
    return REFERENCE["Everything"](**{key: value for key, value in values.items() if value is not None})


@given(everything)
def test_the_protobuf_package_reads_what_we_write(values: dict[str, Any]) -> None:
    assert REFERENCE["Everything"].FromString(ours_of(values).encode()) == theirs_of(values)


@given(everything)
def test_we_read_what_the_protobuf_package_writes(values: dict[str, Any]) -> None:
    assert Everything.decode(theirs_of(values).SerializeToString()) == ours_of(values)


@given(everything)
def test_our_bytes_are_those_of_the_protobuf_package(values: dict[str, Any]) -> None:
    values = values | {"numbers": [], "flags": []}  # which it packs; we write them singly, readers take both
    values["pairs"] = dict(list(values["pairs"].items())[:1])  # the order of a map's entries is nobody's promise
    assert ours_of(values).encode() == theirs_of(values).SerializeToString(deterministic=True)


@given(text, text, st.binary(max_size=300), int64, st.lists(st.tuples(text, text), max_size=4))
def test_a_request_envelope_has_the_bytes_every_ttrpc_peer_expects(
    service: str, method: str, payload: bytes, nano: int, pairs: list[tuple[str, str]]
) -> None:
    ours = Request(
        service=service,
        method=method,
        payload=payload,
        timeout_nano=nano,
        metadata=[KeyValue(key=key, value=value) for key, value in pairs],
    )
    theirs = REFERENCE["Request"](
        service=service,
        method=method,
        payload=payload,
        timeout_nano=nano,
        metadata=[REFERENCE["KeyValue"](key=key, value=value) for key, value in pairs],
    )
    assert ours.encode() == theirs.SerializeToString()
    assert Request.decode(theirs.SerializeToString()) == ours
    assert peek_method(ours.encode()) == (service, method)


@given(st.none() | st.tuples(st.integers(-(1 << 31), (1 << 31) - 1), text), st.binary(max_size=300))
def test_a_response_envelope_has_the_bytes_every_ttrpc_peer_expects(
    status: tuple[int, str] | None, payload: bytes
) -> None:
    ours, theirs = Response(payload=payload), REFERENCE["Response"](payload=payload)
    if status is not None:
        ours.status = Status(code=status[0], message=status[1])
        theirs.status.SetInParent()
        theirs.status.code, theirs.status.message = status
    assert ours.encode() == theirs.SerializeToString()
    assert Response.decode(theirs.SerializeToString()) == ours


def test_details_of_a_status_are_kept_as_they_came() -> None:
    detail = REFERENCE["Any"](type_url="type.example/a", value=b"\x00\x01")
    theirs = REFERENCE["Status"](code=2, message="no", details=[detail])
    ours = Status.decode(theirs.SerializeToString())
    assert ours.details == [detail.SerializeToString()]
    assert ours.encode() == theirs.SerializeToString()


@given(everything)
def test_fields_not_declared_are_skipped_by_messages_and_kept_by_the_field_reader(values: dict[str, Any]) -> None:
    data = theirs_of(values).SerializeToString()
    assert Far.decode(data) == Far(far=values["far"])
    assert write_fields(read_fields(data)) == data


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=5))
def test_a_varint_reads_back_and_tells_its_end(value: int, behind: bytes) -> None:
    data = encode_varint(value)
    assert decode_varint(data + behind, 0) == (value, len(data))


@given(st.binary(max_size=200))
@example(b"\xff" * 11)  # a number without end
@example(b"\x00\x00")  # field number 0
@example(b"\x0b")  # a group, which no proto3 message has
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")  # 2**64 - 1 bytes announced
@example(b"\x4d\x00\x00\x00\x00")  # a map entry as 32-bit number
@example(b"\x3a\x01\xff")  # a packed list that ends inside a number
def test_rubbish_raises_a_decode_error_or_nothing(data: bytes) -> None:
    for kind in (Everything, Request, Response):
        with contextlib.suppress(DecodeError):
            kind.decode(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (write_field(1, VARINT, 7), "text"),
        (write_field(1, LEN, b"\xff"), "text"),
        (write_field(3, LEN, b"7"), "number"),
        (write_field(5, VARINT, 7), "inner"),
        (write_field(9, VARINT, 7), "pairs"),
        (write_field(9, I32, b"\x0a\x02ab"), "pairs"),
        (write_field(9, LEN, write_field(1, VARINT, 7)), "pairs"),
    ],
)
def test_a_decode_error_names_the_field(data: bytes, name: str) -> None:
    with pytest.raises(DecodeError, match=name):
        Everything.decode(data)


def test_a_field_that_does_not_exist_cannot_be_set() -> None:
    with pytest.raises(TypeError, match="nmae"):
        Inner(nmae="x")


def test_threads_that_use_a_message_type_first_at_once_all_see_its_fields() -> None:
    for _ in range(50):
        kind = type("Fresh", (Inner,), {"__annotations__": {}, "__module__": __name__})
        barrier = threading.Barrier(4)
        seen: list[bytes] = []

        def use(kind: type[Inner] = kind, barrier: threading.Barrier = barrier, seen: list[bytes] = seen) -> None:
            barrier.wait()
            seen.append(kind(name="a", count=1).encode())

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [Inner(name="a", count=1).encode()] * 4
