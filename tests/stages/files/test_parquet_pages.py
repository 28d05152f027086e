"""Single pages of a Parquet column, against the values that were written, and against damage in every other page."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import DamagedError
from stages.files.opened import planned_file
from stages.files.parquet_file import opened_table
from stages.files.parquet_pages import RowsAtRandom

NUM_ROWS = 300
FEW_ROWS_A_PAGE = {
    "data_page_size": 600,
    "write_batch_size": 4,
    "dictionary_pagesize_limit": 1500,
    "write_page_checksum": True,
}
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string()), ("width", pa.int32())])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.parquet"


def values() -> list[bytes | None]:
    rng = np.random.default_rng(0)
    return [None if row % 7 == 3 else rng.bytes(int(rng.integers(0, 200))) for row in range(NUM_ROWS)]


def opened(path: Path, fields: list[str]) -> RowsAtRandom:
    with opened_table(str(path)) as table:
        return RowsAtRandom(table, "image", fields)


def around(rows: RowsAtRandom, path: Path, row: int) -> tuple[int, list[Any]]:
    with planned_file(str(path)) as file:
        first, found = rows.around(file, row)
    return first, found.to_pylist()


@pytest.mark.parametrize(
    ("compression", "version", "use_dictionary"),
    [
        *product(["none", "snappy"], ["1.0", "2.0"], [True, False]),
        *product(["gzip", "zstd", "lz4", "brotli"], ["1.0"], [False]),
    ],
)
def test_every_row_is_found_with_some_neighbours(
    compression: str, version: str, use_dictionary: bool, path: Path
) -> None:
    options = {"compression": compression, "data_page_version": version, "use_dictionary": use_dictionary}
    column = pa.array(values(), pa.binary())
    pq.write_table(pa.table({"image": column}), path, row_group_size=130, **options, **FEW_ROWS_A_PAGE)
    rows = opened(path, [])
    assert rows.is_possible
    sizes = set()
    for row in range(NUM_ROWS):
        first, found = around(rows, path, row)
        assert first <= row < first + len(found)
        assert found == values()[first : first + len(found)]
        sizes.add(len(found))
    assert max(sizes) < 130


def test_fields_whose_pages_end_elsewhere_stay_together(path: Path) -> None:
    records = [
        None if row % 11 == 5 else {"bytes": value, "path": f"{row}.jpg", "width": row}
        for row, value in enumerate(values())
    ]
    pq.write_table(pa.table({"image": pa.array(records, PICTURE)}), path, row_group_size=130, **FEW_ROWS_A_PAGE)
    rows = opened(path, ["bytes", "path"])
    for row in range(NUM_ROWS):
        first, found = around(rows, path, row)
        assert first <= row < first + len(found)
        for number, record in enumerate(found, start=first):
            wanted = records[number] or {"bytes": None, "path": None}
            name = None if wanted["path"] is None else wanted["path"].encode()
            assert record == {"bytes": wanted["bytes"], "path": name}


def test_no_other_page_is_decoded_and_a_wrong_checksum_is_refused(path: Path) -> None:
    payloads = [bytes([row]) * 200 for row in range(60)]
    table = pa.table({"image": pa.array(payloads, pa.binary())})
    pq.write_table(table, path, compression="none", use_dictionary=False, **FEW_ROWS_A_PAGE)
    whole = path.read_bytes()
    # Its length, before the first payload: whoever decodes that page finds nonsense.
    path.write_bytes(whole.replace(b"\xc8\0\0\0" + payloads[0], b"\xff\xff\xff\x7f" + payloads[0]))
    rows = opened(path, [])
    first, found = around(rows, path, 59)
    assert found == payloads[first:]
    with pytest.raises(DamagedError, match="damaged"):
        around(rows, path, 0)
    path.write_bytes(whole.replace(payloads[59], payloads[59][:-1] + b"!"))
    with pytest.raises(DamagedError, match="damaged"):
        around(opened(path, []), path, 59)


def test_damaged_headers_of_pages_are_refused(path: Path) -> None:
    table = pa.table({"image": pa.array([bytes([row]) * 200 for row in range(20)], pa.binary())})
    pq.write_table(table, path, compression="none", use_dictionary=False, **FEW_ROWS_A_PAGE)
    whole = path.read_bytes()
    for damage in (b"\xff" * 12, b"\x00" * 12):
        path.write_bytes(whole[:4] + damage + whole[16:])
        with pytest.raises(DamagedError, match="damaged"):
            around(opened(path, []), path, 10)


@pytest.mark.parametrize("column", [pa.array([[b"a"]]), pa.array([7]), pa.array([b"a"], pa.binary(1))], ids=str)
def test_lists_and_what_is_not_bytes_are_left_to_others(column: pa.Array, path: Path) -> None:
    pq.write_table(pa.table({"image": column}), path)
    assert not opened(path, []).is_possible
