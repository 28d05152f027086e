"""Thrift's compact protocol, as far as Parquet's headers and footers need it.

**Source:** Thrift compact protocol encoding (thrift-compact-protocol.md of Apache Thrift).
"""

from typing import Any

Struct = dict[int, Any]
"""Field number -> value: a number, bytes, a list, or such a dict."""

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_MAX_DEPTH = 32


class Long(int):
    """A number that is written as 64 bits; others are written as 32."""


def read_struct(data: bytes, at: int, *, depth: int = 0) -> tuple[Struct, int]:
    """Returns the struct that starts at `at`, and the place behind it.

    Raises:
        IndexError: the data ends before it.
        ValueError: it is no struct of this protocol.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    fields: Struct = {}
    number = 0
    while kind := data[at] & 15:
        delta = data[at] >> 4
        at += 1
        if delta:
            number += delta
        else:
            number, at = _read_integer(data, at)
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], at = _read_value(data, at, kind, depth)
    return fields, at + 1


def write_struct(fields: Struct) -> bytes:
    """Returns the bytes of a struct whose values are `int`, `Long`, text, lists of one kind, and structs."""
    parts: list[bytes] = []
    last = 0
    for number, value in sorted(fields.items()):
        parts.append(bytes([(number - last) << 4 | _kind_of(value)]))
        parts.append(_written(value))
        last = number
    return b"".join(parts) + b"\x00"


def _read_value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE, _BYTE):
        return data[at], at + 1
    if kind in (_I16, _I32, _I64):
        return _read_integer(data, at)
    if kind == _DOUBLE:
        return _piece(data, at, 8), at + 8
    if kind == _BINARY:
        size, at = _read_varint(data, at)
        return _piece(data, at, size), at + size
    if kind in (_LIST, _SET):
        size, of = data[at] >> 4, data[at] & 15
        at += 1
        if size == 15:
            size, at = _read_varint(data, at)
        values = []
        for _ in range(size):
            value, at = _read_value(data, at, of, depth + 1)
            values.append(value)
        return values, at
    if kind == _STRUCT:
        return read_struct(data, at, depth=depth + 1)
    raise ValueError(f"no value of kind {kind} in Parquet")


def _piece(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise IndexError(at)
    return data[at : at + size]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("number of more than 64 bits")


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _kind_of(value: Any) -> int:
    if isinstance(value, Long):
        return _I64
    return {int: _I32, str: _BINARY, list: _LIST, dict: _STRUCT}[type(value)]


def _written(value: Any) -> bytes:
    if isinstance(value, int):
        return _varint(value << 1)
    if isinstance(value, str):
        return _varint(len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return write_struct(value)
    items = b"".join(_written(item) for item in value)
    if len(value) < 15:
        return bytes([len(value) << 4 | _kind_of(value[0])]) + items
    return bytes([0xF0 | _kind_of(value[0])]) + _varint(len(value)) + items


def _varint(value: int) -> bytes:
    assert value >= 0
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
