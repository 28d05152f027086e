"""Whoever reads a Parquet file through a Python stream reads it alone: a thread of Arrow would abort the exit."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import DamagedError, RefusedError
from stages.files.parquet_file import opened_table

_COUNTING = """
import json, os, sys
import pyarrow.parquet
from stages.feature_files.table import Table
from stages.sources.parquet import ParquetSource
threads = lambda: len(os.listdir("/proc/self/task"))
before, path = threads(), sys.argv[1]
source = ParquetSource(path, "image", {"column": "image"})
source.scan()
raw = next(source.read(0, 100))
source.read_one(raw.key, raw.offset_bytes, raw.size_bytes)
table = Table(path)
next(table.batches(["number", "image"]))
table.take(["number"], [3, 250])
print(json.dumps([before, threads()]))
"""


def write_table(path: Path) -> Path:
    pictures = [{"bytes": b"\xff\xd8\xff%03d" % row, "path": f"{row}.jpg"} for row in range(300)]
    pq.write_table(pa.table({"number": list(range(300)), "image": pictures}), path, row_group_size=100)
    return path


def test_it_is_the_table_that_was_written(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet")
    with opened_table(str(path)) as table:
        batches = [batch for _, batch in table.batches(["number", "image"], batch_rows=64)]
    written = pq.read_table(path)
    assert pa.Table.from_batches(batches).cast(written.schema).equals(written)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
def test_reading_features_and_sources_starts_no_thread_of_arrow(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet")
    done = subprocess.run([sys.executable, "-c", _COUNTING, str(path)], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    assert after == before


def test_an_encrypted_file_is_called_that(tmp_path: Path) -> None:
    whole = write_table(tmp_path / "a.parquet").read_bytes()
    for encrypted in (b"PARE" + whole[4:-4] + b"PARE", whole[:-4] + b"PARE"):
        (tmp_path / "b.parquet").write_bytes(encrypted)
        with (
            pytest.raises(RefusedError, match=r"b\.parquet is an encrypted Parquet file"),
            opened_table(str(tmp_path / "b.parquet")),
        ):
            pass


def test_a_footer_that_contradicts_its_row_groups_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet")
    whole = path.read_bytes()
    footer = whole[-8 - int.from_bytes(whole[-8:-4], "little") : -8]
    # The rows of the file, 300, are field 3 of the footer, behind its schema.
    told = bytes([0x16, *varint(600), 0x19])
    assert footer.count(told) == 1
    path.write_bytes(whole.replace(told, bytes([0x16, *varint(598), 0x19])))
    with (
        pytest.raises(DamagedError, match="has 299 rows by its footer and 300 in its row groups"),
        opened_table(str(path)),
    ):
        pass


def test_a_column_whose_name_has_a_dot_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    structs = pa.array([{"b": "inner"}])
    pq.write_table(pa.table([structs, ["outer"], ["c"]], names=["a", "a.b", "a.b.c"]), path)
    with opened_table(str(path)) as table:
        for column, value in (("a", {"b": "inner"}), ("a.b", "outer"), ("a.b.c", "c")):
            table.require(column, "column")
            ((_, batch),) = table.batches([column], batch_rows=9)
            assert batch.column(column).to_pylist() == [value]


def test_text_and_bytes_are_of_arrows_large_types_whatever_the_writer_had(tmp_path: Path) -> None:
    """Its plain types hold 2 GiB, which a row group of pictures may pass."""
    path = tmp_path / "a.parquet"
    picture = pa.array([{"bytes": b"a", "path": "b"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": picture, "text": pa.array(["a"]).dictionary_encode()}), path)
    with opened_table(str(path)) as table:
        ((_, batch),) = table.batches(["image", "text"], batch_rows=9)
        assert table.found() == "image: struct<bytes: binary, path: string>, text: string"
    assert batch.column("text").type == pa.large_string()
    assert batch.column("image").type == pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])


def varint(number: int) -> list[int]:
    return [number & 127 | 128, number >> 7]
