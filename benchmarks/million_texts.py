"""Measures `pipeline extract` of a million sentences with a teacher that costs next to nothing.

    python -m benchmarks.million_texts [--rows 1000000]

The teacher is the NumPy one of the tests. `bare_s` is that teacher over the same lines in the same batches, features
made unit and float16, nothing checked, hashed or written; `overhead_us_per_row` is what extract adds to it per row:
reading, cleaning, digests, row hashes, sample tables, shards and records. A cache of one part is made too and its
seconds taken off, so that start-up does not count.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.commands import Ran, print_table, run_pipeline
from benchmarks.memory import write_texts
from benchmarks.teachers import STUB
from cache_schema.features import storable
from stages.teachers.described import loaded_teacher

COLUMNS = ("rows", "rows_per_s", "extract_s", "bare_s", "overhead_us_per_row")


def bare_seconds(texts: Path, batch_size: int) -> float:
    """Returns the seconds of the teacher alone over the lines of `texts`."""
    teacher = loaded_teacher(STUB, "cpu", "float32")
    start = time.perf_counter()
    with texts.open() as file:
        lines = [line.rstrip("\n") for line in file]
    for first in range(0, len(lines), batch_size):
        storable(teacher.encode_texts(lines[first : first + batch_size]))
    return time.perf_counter() - start


def extract(folder: Path, texts: Path, asked: argparse.Namespace) -> Ran:
    """Returns how extract ran over `texts`, into a new cache."""
    options = ("--part-rows", asked.part_rows, "--batch-size", asked.batch_size, "--no-index")
    return run_pipeline("extract", "--texts", texts, "--teacher", STUB, "--cache", folder / texts.stem, *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--part-rows", type=int, default=16_384)
    parser.add_argument("--batch-size", type=int, default=1024)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = write_texts(folder / "texts.txt", asked.rows)
        one_part = write_texts(folder / "part.txt", asked.part_rows)
        less, more = (extract(folder, source, asked) for source in (one_part, texts))
        bare = bare_seconds(texts, asked.batch_size) * (1 - asked.part_rows / asked.rows)
    num_rows = asked.rows - asked.part_rows
    spent = more.result["seconds"] - less.result["seconds"]
    result = {
        "rows": asked.rows,
        "rows_per_s": round(num_rows / spent),
        "extract_s": round(spent, 2),
        "bare_s": round(bare, 2),
        "overhead_us_per_row": round((spent - bare) / num_rows * 1e6, 2),
        "start_up_s": round(less.seconds, 2),
        "stage_seconds": more.result["stage_seconds"],
    }
    print_table([result], COLUMNS)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
