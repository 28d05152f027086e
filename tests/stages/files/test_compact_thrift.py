"""Thrift's compact protocol, against the footers that pyarrow writes and reads."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.files.compact_thrift import Long, read_struct, write_struct


def footer_of(table: pa.Table, **options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    data = buffer.getvalue()
    return data[-8 - int.from_bytes(data[-8:-4], "little") : -8]


def test_a_footer_of_pyarrow_is_read_as_what_it_says() -> None:
    columns = {f"column {number}": list(range(300)) for number in range(20)}
    footer = footer_of(pa.table(columns), row_group_size=100)
    fields, end = read_struct(footer, 0)
    assert end == len(footer)
    assert fields[3] == 300
    assert [element[4].decode() for element in fields[2]] == ["schema", *columns]
    assert [(group[3], len(group[1])) for group in fields[4]] == [(100, 20)] * 3


def test_a_footer_that_ends_early_says_so() -> None:
    footer = footer_of(pa.table({"a": ["x"]}))
    for size in range(len(footer)):
        with pytest.raises(IndexError):
            read_struct(footer[:size], 0)
    with pytest.raises(ValueError, match="deeply"):
        read_struct(b"\x1c" * 100, 0)
    with pytest.raises(ValueError, match="64 bits"):
        read_struct(b"\x15" + b"\xff" * 12, 0)


LEAVES = st.integers(0, 2**31 - 1) | st.integers(0, 2**62).map(Long) | st.text(max_size=200)
NUMBERS = st.integers(1, 15)
STRUCTS = st.dictionaries(NUMBERS, LEAVES | st.lists(st.text(max_size=3), min_size=1, max_size=20), max_size=5)


@given(st.dictionaries(NUMBERS, LEAVES | st.lists(STRUCTS, min_size=1, max_size=20) | STRUCTS, max_size=8))
def test_what_is_written_is_read_again(fields: dict) -> None:
    written = write_struct(fields)
    assert read_struct(written, 0) == (as_read(fields), len(written))


def as_read(value: object) -> object:
    if isinstance(value, dict):
        return {number: as_read(one) for number, one in value.items()}
    if isinstance(value, list):
        return [as_read(one) for one in value]
    return value.encode() if isinstance(value, str) else value
