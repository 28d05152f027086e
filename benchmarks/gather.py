"""Measures `FeatureReader.gather` of random rows against zarr-python's own selection of the same array.

    python benchmarks/gather.py [--rows 500000] [--dim 768]

Both read the same files of one cache, warm in the page cache, in one run. "First touch" opens the array anew and checks
the crc32c of every chunk it meets (zarr-python checks them at every read); "steady state" is every later batch.
Needs about twice rows × dim × 2 bytes of disk. The claim in the README is the steady-state ratio: at least 100.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from cache_schema.features import FeatureReader, feature_format, storable
from cache_schema.shards import publish_array, publish_shard

PART_ROWS = 16_384
BATCH_ROWS = 1_024


def make_array(folder: Path, num_rows: int, dim: int) -> Callable[[], FeatureReader]:
    """Writes random unit features and returns a function that opens a fresh reader of them."""
    row_format = feature_format(PART_ROWS, dim)
    publish_array(folder, row_format, num_rows)
    rng = np.random.default_rng(0)
    commits = {}
    for part in range(-(-num_rows // PART_ROWS)):
        rows = min(PART_ROWS, num_rows - part * PART_ROWS)
        shard = row_format.encode_shard(storable(rng.standard_normal((rows, dim), np.float32))[0])
        publish_shard(folder, part, shard)
        commits[part] = shard.chunk_crc32c
    return lambda: FeatureReader(folder, row_format, num_rows=num_rows, commits=commits)


def seconds(read: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray]) -> float:
    """Returns the median seconds of one batch."""
    spent = []
    for rows in batches:
        start = time.perf_counter()
        read(rows)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=768)
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    batches = [rng.integers(0, arguments.rows, BATCH_ROWS) for _ in range(20)]
    with tempfile.TemporaryDirectory() as folder:
        array = Path(folder) / "features.zarr" / "array"
        open_reader = make_array(array, arguments.rows, arguments.dim)
        plain = zarr.open_group(array.parent, mode="r")["array"]
        assert isinstance(plain, zarr.Array)
        reader = open_reader()
        for rows in batches[:2]:
            assert reader.gather(rows).tobytes() == np.asarray(plain.oindex[rows]).tobytes()
        with_zarr = seconds(lambda rows: np.asarray(plain.oindex[rows]), batches[:5])
        first_touch = seconds(lambda rows: open_reader().gather(rows), batches[:5])
        steady = seconds(reader.gather, batches)
    result = {
        "rows": arguments.rows,
        "dim": arguments.dim,
        "batch_rows": BATCH_ROWS,
        "zarr_ms": round(with_zarr * 1e3, 2),
        "first_touch_ms": round(first_touch * 1e3, 2),
        "steady_ms": round(steady * 1e3, 3),
        "first_touch_ratio": round(with_zarr / first_touch, 1),
        "steady_ratio": round(with_zarr / steady, 1),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
