"""Measures what a step and a start cost at the paper's size, in everything but reading and decoding pictures.

    python -m benchmarks.step_cost [--images 40000000] [--texts 28400000] [--batch 12288] [--neighbours 16] [--work DIR]

Rows, views and neighbours are made at random in memory. Features are real shards of 16,384 x 768: a few different ones,
each linked under many names, so that there are as many files, maps and checks as in a cache of that size, while the
bytes stay in the page cache: disks are not measured. Sample tables are not measured either.

- `start_s`: to choose the rows of a run (with one more view, replayed), to digest them, and to draw the first epoch.
- `step_ms`: processor milliseconds of a step by what it does, the median over steps.
- `share_of_decode`: their sum over a sixteenth of what one core needs to decode and crop a batch of stored pictures of
  256 pixels, measured in the same run. Goal: at most 0.1.
- `resident_gb`: the most memory that the process held until then, the lists of rows it began with included; what is
  mapped of shards comes on top and can be dropped at any time.
"""

import argparse
import io
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from cache_schema.features import FeatureReader, feature_format, storable
from cache_schema.layout import shard_path
from cache_schema.shards import publish_array, publish_shard
from stages.distill.order import EpochSequence, digest_of_rows, text_generator, texts_of_step
from stages.distill.rows import RowSet, rows_in_all
from stages.images.crops import crops_of
from stages.images.preprocess import CropShape, crop_pixels

PART_ROWS = 16_384
DIM = 768
WINDOW_PARTS = 32
NUM_STEPS = 7
DIFFERENT_SHARDS = 4
DECODED = 64
WORKERS = 16
SHAPE = CropShape((224, 224), "bicubic")


def linked_features(folder: Path, num_rows: int) -> FeatureReader:
    """Returns the reader of an array of that length, whose shards are a few, linked under many names."""
    row_format = feature_format(PART_ROWS, DIM)
    publish_array(folder, row_format, num_rows)
    rng = np.random.default_rng(0)
    commits = {}
    for part in range(-(-num_rows // PART_ROWS)):
        if part < DIFFERENT_SHARDS:
            shard = row_format.encode_shard(storable(rng.standard_normal((PART_ROWS, DIM), np.float32))[0])
            publish_shard(folder, part, shard)
            commits[part] = shard.chunk_crc32c
            continue
        path = shard_path(folder, part)
        path.parent.mkdir(parents=True)
        os.link(shard_path(folder, part % DIFFERENT_SHARDS), path)
        commits[part] = commits[part % DIFFERENT_SHARDS]
    return FeatureReader(folder, row_format, num_rows=num_rows, commits=commits)


def decode_seconds() -> float:
    """Returns the processor seconds of one stored picture, decoded and cropped: the median of several."""
    rng = np.random.default_rng(2)
    payloads = []
    for _ in range(DECODED):
        coarse = Image.fromarray(rng.integers(0, 256, (32, 43, 3), np.uint8)).resize((341, 256))
        buffer = io.BytesIO()
        coarse.save(buffer, "JPEG", quality=90)
        payloads.append(buffer.getvalue())
    digests = [rng.bytes(16) for _ in payloads]
    crops = crops_of(0, [1] * DECODED, digests, widths=[341] * DECODED, heights=[256] * DECODED)
    spent = []
    for _ in range(3):
        for payload, crop in zip(payloads, crops, strict=True):
            start = time.process_time()
            crop_pixels(Image.open(io.BytesIO(payload)).convert("RGB"), crop, SHAPE)
            spent.append(time.process_time() - start)
    return statistics.median(spent)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000_000)
    parser.add_argument("--texts", type=int, default=28_400_000)
    parser.add_argument("--batch", type=int, default=12_288)
    parser.add_argument("--neighbours", type=int, default=16)
    parser.add_argument("--work", type=Path, default=None, help="where the linked shards lie for as long as it takes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        print(json.dumps(measure(Path(folder), arguments), indent=1))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Returns the figures; needs about 200 MB in `folder`."""
    batch = arguments.batch
    rng = np.random.default_rng(1)
    ok_of_view = np.flatnonzero(rng.random(arguments.images, np.float32) < 0.999)
    ok_images = np.flatnonzero(rng.random(arguments.images, np.float32) < 0.999)
    ok_texts = np.flatnonzero(rng.random(arguments.texts, np.float32) < 0.999)

    start_s: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        start_s[name] = round(time.process_time() - begun, 3)

    with timed("rows of all views"):
        rows = rows_in_all(ok_images, ok_of_view)
    del ok_images, ok_of_view
    sequence = EpochSequence(rows, batch, PART_ROWS, 0, WINDOW_PARTS if arguments.images > 64 * PART_ROWS else None)
    with timed("first epoch"):
        sequence.visits_of_step(0)
    with timed("digest of sentences"):
        digest = digest_of_rows(ok_texts)
    with timed("set of sentences"):
        texts = RowSet(ok_texts)
        texts.contains(np.zeros(1, np.int64))
    # Before features are mapped: the pages of a map count as resident and can be dropped at any time.
    most_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images_reader = linked_features(folder / "images", arguments.images)
    texts_reader = linked_features(folder / "texts", arguments.texts)
    # The checks of every shard, made once in a process, are no part of a step.
    for reader, num_rows in ((images_reader, arguments.images), (texts_reader, arguments.texts)):
        reader.gather(np.arange(0, num_rows, PART_ROWS))

    steps: list[dict[str, float]] = []
    for step in range(NUM_STEPS):
        neighbours = rng.integers(0, arguments.texts, (batch, arguments.neighbours))
        digests = [rng.bytes(16) for _ in range(batch)]
        marks = [time.process_time()]
        visits = sequence.visits_of_step(step)
        marks.append(time.process_time())
        crops_of(0, (visits.epochs + 1).tolist(), digests, widths=[341] * batch, heights=[256] * batch)
        marks.append(time.process_time())
        generator = text_generator(digest, seed=0, step=step)
        chosen = texts_of_step(visits.rows, neighbours, texts, generator, batch)
        marks.append(time.process_time())
        images_reader.gather_unit(visits.rows)
        marks.append(time.process_time())
        texts_reader.gather_unit(chosen)
        marks.append(time.process_time())
        names = ("rows", "crops", "sentences", "image features", "text features")
        steps.append(dict(zip(names, (np.diff(marks) * 1e3).tolist(), strict=True)))
    decode_s = decode_seconds()
    step_ms = {name: round(statistics.median(step[name] for step in steps), 2) for name in steps[0]}
    return {
        "images": arguments.images,
        "texts": arguments.texts,
        "batch": batch,
        "start_s": start_s,
        "start_total_s": round(sum(start_s.values()), 2),
        "step_ms": step_ms,
        "step_total_ms": round(sum(step_ms.values()), 1),
        "decode_ms_of_a_picture": round(decode_s * 1e3, 3),
        "share_of_decode": round(sum(step_ms.values()) / (decode_s * 1e3 * batch / WORKERS), 3),
        "resident_gb": round(most_kb / 1e6, 2),
    }


if __name__ == "__main__":
    _main()
