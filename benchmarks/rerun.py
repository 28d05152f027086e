"""Measures a rerun of `pipeline extract` with nothing to do, in a cache of 10,000 committed parts.

    python -m benchmarks.rerun [--parts 10000] [--rounds 5]

The cache is made by extract itself from short sentences and the NumPy teacher of the tests, few rows to a part. The
time is the wall time of the whole process, interpreter included; `bare_start_s` is that of `pipeline --version`. A
rerun reads and checks every record and the row hashes of every part, for the digest that it prints; the claim is that
this takes less than 3 seconds (`rerun_s`). `first_rerun_s` is the first one.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.commands import median, print_table, run, run_pipeline
from benchmarks.memory import write_texts
from benchmarks.teachers import STUB

COLUMNS = ("parts", "rows", "rerun_s", "first_rerun_s", "inspect_s", "bare_start_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--part-rows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = write_texts(folder / "texts.txt", asked.parts * asked.part_rows)
        extract = ("extract", "--texts", texts, "--cache", folder / "cache")
        made = run_pipeline(*extract, "--teacher", STUB, "--part-rows", asked.part_rows)
        assert made.result["num_parts"] == asked.parts, made.result
        reruns = [run_pipeline(*extract) for _ in range(asked.rounds)]
        assert all(rerun.result["num_parts"] == 0 for rerun in reruns)
        assert reruns[-1].result["arrays"] == made.result["arrays"]
        inspected = run_pipeline("inspect", folder / "cache")
        bare = [run([sys.executable, "-m", "pipeline", "--version"], parse=False) for _ in range(asked.rounds)]
    result = {
        "parts": asked.parts,
        "rows": asked.parts * asked.part_rows,
        "make_s": round(made.seconds, 1),
        "rerun_s": median([rerun.seconds for rerun in reruns]),
        "first_rerun_s": round(reruns[0].seconds, 3),
        "inspect_s": round(inspected.seconds, 3),
        "bare_start_s": median([one.seconds for one in bare]),
    }
    print_table([result], COLUMNS)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
