"""Whoever reads a Parquet file through a Python stream reads it alone: a thread of Arrow would abort the exit."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
