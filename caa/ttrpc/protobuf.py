"""Protocol buffers, as far as ttrpc needs them: a lossless field reader and writer, and small typed messages.

Why not the protobuf package: the pod VM runs on the standard library alone, and the relay must pass on
fields it has never heard of, byte for byte. The tests hold this codec against that package.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self

VARINT, I64, LEN, I32 = 0, 1, 2, 5
# A varint carries 7 bits a byte and at most 64 bits.
_MAX_VARINT_BYTES = 10
_U64 = (1 << 64) - 1


class DecodeError(ValueError):
    """The bytes are not a protobuf message, or not the one expected."""


def encode_varint(value: int) -> bytes:
    """Base-128 little-endian; negative numbers as 64-bit two's complement, as protobuf does."""
    value &= _U64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and the place behind it."""
    value = shift = 0
    for index in range(at, at + _MAX_VARINT_BYTES):
        if index >= len(data):
            raise DecodeError("message ends inside a number")
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _U64, index + 1
        shift += 7
    raise DecodeError("number longer than 64 bits")


def read_fields(data: bytes | memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Each field in order as (number, wire type, value): an int for VARINT, a view of the bytes for all others."""
    view = memoryview(data)
    at, end = 0, len(view)
    while at < end:
        tag, at = decode_varint(view, at)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise DecodeError("field number 0")
        if wire_type == VARINT:
            value, at = decode_varint(view, at)
            yield number, wire_type, value
            continue
        if wire_type == LEN:
            size, at = decode_varint(view, at)
        elif wire_type == I64:
            size = 8
        elif wire_type == I32:
            size = 4
        else:
            raise DecodeError(f"wire type {wire_type} in field {number}")
        if at + size > end:
            raise DecodeError(f"field {number} ends behind the message")
        yield number, wire_type, view[at : at + size]
        at += size


def write_field(number: int, wire_type: int, value: int | bytes | memoryview) -> bytes:
    """One field, the counterpart of `read_fields`."""
    tag = encode_varint(number << 3 | wire_type)
    if isinstance(value, int):
        return tag + encode_varint(value)
    if wire_type == LEN:
        return b"".join((tag, encode_varint(len(value)), value))
    return tag + bytes(value)


def write_fields(fields: Iterable[tuple[int, int, int | memoryview]]) -> bytes:
    """A whole message from its fields."""
    return b"".join(write_field(*field) for field in fields)


def field(number: int) -> Any:
    """Declares a field of a `Message` by its number; its type comes from the annotation."""
    return number


class _Spec(typing.NamedTuple):
    name: str
    number: int
    kind: type[Any]  # str, bytes, int, bool, or a Message
    shape: Literal["one", "list", "map"]


class Message:
    """A typed message. A subclass declares its fields: `id: str = field(1)`.

    Types: str, bytes, int, bool, another Message (None when absent), a list of these, or dict[str, str].
    Unknown fields are skipped when read.
    """

    def __init__(self, **values: Any) -> None:
        specs = _specs(type(self))
        for spec in specs.values():
            setattr(self, spec.name, values.pop(spec.name, None) or _default(spec))
        if values:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(values)}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Self:
        """Read a message; raises DecodeError naming the field that is wrong."""
        values: dict[str, Any] = {}
        for number, wire_type, raw in read_fields(data):
            spec = _specs(cls).get(number)
            if spec is None:
                continue
            if spec.shape == "map":
                key, value = _map_entry(spec, wire_type, raw)
                values.setdefault(spec.name, {})[key] = value
            elif spec.shape == "list" and wire_type == LEN and spec.kind in (int, bool):  # packed numbers
                values.setdefault(spec.name, []).extend(_packed(spec, raw))
            elif spec.shape == "list":
                values.setdefault(spec.name, []).append(_scalar(spec, wire_type, raw))
            else:
                values[spec.name] = _scalar(spec, wire_type, raw)
        return cls(**values)

    def encode(self) -> bytes:
        """The message as bytes; fields at their default are left out, as proto3 does."""
        out: list[bytes] = []
        for spec in _specs(type(self)).values():
            value = getattr(self, spec.name)
            if spec.shape == "map":
                for key, item in value.items():
                    entry = write_field(1, LEN, key.encode()) + write_field(2, LEN, item.encode())
                    out.append(write_field(spec.number, LEN, entry))
            elif spec.shape == "list":
                out.extend(_encode_one(spec, item) for item in value)
            elif value or isinstance(value, Message):
                out.append(_encode_one(spec, value))
        return b"".join(out)


_known_specs: dict[type[Message], dict[int, _Spec]] = {}


def _specs(cls: type[Message]) -> dict[int, _Spec]:
    specs = _known_specs.get(cls)
    if specs is not None:
        return specs
    specs = {}
    for name, hint in typing.get_type_hints(cls).items():
        args = typing.get_args(hint)
        origin = typing.get_origin(hint)
        kind = next(arg for arg in args if arg is not type(None)) if args else hint
        number = getattr(cls, name)
        specs[number] = _Spec(name, number, kind, "map" if origin is dict else "list" if origin is list else "one")
    _known_specs[cls] = specs  # only when complete: another thread may be reading
    return specs


def _default(spec: _Spec) -> Any:
    if spec.shape != "one":
        return {} if spec.shape == "map" else []
    return None if issubclass(spec.kind, Message) else spec.kind()


def _encode_one(spec: _Spec, value: Any) -> bytes:
    if isinstance(value, int):
        return write_field(spec.number, VARINT, int(value))
    data = value.encode() if isinstance(value, str | Message) else value
    return write_field(spec.number, LEN, data)


def _scalar(spec: _Spec, wire_type: int, raw: int | memoryview) -> Any:
    if spec.kind in (int, bool):
        if wire_type != VARINT or not isinstance(raw, int):
            raise DecodeError(f"field {spec.name} must be a number")
        return bool(raw) if spec.kind is bool else raw - (1 << 64) if raw >> 63 else raw
    if wire_type != LEN or isinstance(raw, int):
        raise DecodeError(f"field {spec.name} must be {spec.kind.__name__}")
    if spec.kind is bytes:
        return bytes(raw)
    if spec.kind is str:
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise DecodeError(f"field {spec.name} is not UTF-8") from error
    return spec.kind.decode(raw)


def _packed(spec: _Spec, raw: int | memoryview) -> Iterator[Any]:
    assert not isinstance(raw, int)
    at = 0
    while at < len(raw):
        value, at = decode_varint(raw, at)
        yield _scalar(spec, VARINT, value)


def _map_entry(spec: _Spec, wire_type: int, raw: int | memoryview) -> tuple[str, str]:
    if wire_type != LEN or isinstance(raw, int):
        raise DecodeError(f"field {spec.name} must be a map")
    entry = {1: "", 2: ""}
    for number, wire_type, value in read_fields(raw):
        if number in entry:
            entry[number] = _scalar(_Spec(spec.name, number, str, "one"), wire_type, value)
    return entry[1], entry[2]
