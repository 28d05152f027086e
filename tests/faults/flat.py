"""Program: a long extract of made sentences, its memory, open files and threads sampled from outside.

    python -m tests.faults.flat FOLDER --rows 1000000

Prints one JSON object: what was sampled in the first and the last tenth of the rows, and the slopes between them.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import mode
from typing import Any

from tests.corpora.processes import result_of, start
from tests.corpora.stub_teacher import STUB


def sample(pid: int, cache: Path) -> dict[str, int] | None:
    """Returns resident bytes, descriptors and threads of a process, and the parts that it has committed."""
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        return {
            "parts": len(list(cache.glob("text/arrays/*/records/*.json"))),
            "rss_bytes": int(status["VmRSS"].split()[0]) * 1024,
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": int(status["Threads"]),
            "partial_files": len(list(cache.rglob("*.partial"))),
        }
    except (OSError, KeyError):
        return None


def watch(args: list[str], cache: Path, seconds_between: float) -> list[dict[str, int]]:
    process = start(*args)
    samples: list[dict[str, int]] = []
    while process.poll() is None:
        seen = sample(process.pid, cache)
        # What counts is the steady state: between the first part and the last. A process that is ending has no files.
        if seen and seen["parts"] and seen["descriptors"]:
            samples.append(seen)
        time.sleep(seconds_between)
    assert process.stderr is not None
    assert process.returncode == 0, process.stderr.read()
    return samples


def summary_of(samples: list[dict[str, int]], rows_per_part: int) -> dict[str, Any]:
    last_part = max(seen["parts"] for seen in samples)
    tenth = max(1, last_part // 10)
    early = [seen for seen in samples if tenth < seen["parts"] <= 2 * tenth + 1]
    late = [seen for seen in samples if last_part - tenth <= seen["parts"] < last_part] or samples[-1:]
    working = [seen for seen in samples if seen["parts"] < last_part] or samples
    halves = working[: len(working) // 2], working[len(working) // 2 :]

    def largest(seen: list[dict[str, int]], what: str) -> int:
        return max(each[what] for each in seen)

    def most_often(seen: list[dict[str, int]], what: str) -> int:
        return mode(each[what] for each in seen)

    growth = largest(late, "rss_bytes") - largest(early, "rss_bytes")
    rows_between = (late[0]["parts"] - early[0]["parts"]) * rows_per_part
    return {
        "samples": len(samples),
        "rss_mb_early": largest(early, "rss_bytes") // 2**20,
        "rss_mb_late": largest(late, "rss_bytes") // 2**20,
        "rss_growth_mb_per_100k_rows": round(growth / 2**20 / max(rows_between, 1) * 100_000, 2),
        # The fewest of each half: a part's files are open while it is read or published, one that leaks is for ever.
        "descriptors": [min(each["descriptors"] for each in seen) for seen in halves],
        "threads": [most_often(seen, "threads") for seen in (early, late)],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--part-rows", type=int, default=16_384)
    parser.add_argument("--seconds-between", type=float, default=0.25)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    texts, cache = args.folder / "texts.txt", args.folder / "cache"
    with open(texts, "w") as file:
        file.writelines(f"sentence {number} says something of its own\n" for number in range(args.rows))
    command = ["extract", "--cache", str(cache), "--texts", str(texts), "--teacher", STUB, "--no-index", "--quiet"]
    command += ["--part-rows", str(args.part_rows), "--batch-size", "512", "--json"]
    samples = watch(command, cache, args.seconds_between)
    (array,) = result_of("extract", "--cache", str(cache), "--no-index")["arrays"].values()
    left = [path.name for path in cache.rglob("*") if path.name.endswith(".partial")]
    print(
        json.dumps({"rows": array["rows"], "ok": array["ok"], "left_over": left, **summary_of(samples, args.part_rows)})
    )


if __name__ == "__main__":
    main()
