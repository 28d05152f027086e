"""Measures the feed of distill alone, from stored pictures to a step's memory, against bare decoding and cropping.

    python -m benchmarks.feed [--pictures FOLDER_OR_TAR] [--rounds 3] [--workers 1 2] [--simulated-workers 16]

- `share_by_processor`: pictures per processor second of the feed and its workers, over those of a process that does
  nothing but decode and crop the same stored JPEGs with Pillow, at the same time: so whatever else the machine does
  meets both. Goal: at least 0.9. The feed does all that a step needs: rows in their order, locations, crops, features,
  sentences, checksums.
- `share_of_bare`: pictures per second of the feed for each of its workers, over those of that process alone. It needs a
  quiet machine with a core for every worker and one more.
- `simulated`: so many workers sleep where they would decode, about as long as it takes: what one feeding process can
  carry. Here `share_of_bare` is over the pictures per second of a process that sleeps likewise.
- `feed_us`, `worker_us`, `bare_us`: processor microseconds of one picture, in the feeding process, in its workers, and
  bare.

Ratios are taken within a round, and the median of the rounds is shown. The start of the processes and the first batches
are left out.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image

from benchmarks.commands import median, print_table
from benchmarks.feed_processes import Slept, decode_bare
from benchmarks.memory import write_texts
from benchmarks.pictures import payloads_of, write_folder
from benchmarks.teachers import STUB
from stages.distill import streamed_pictures
from stages.distill.ahead import UploadedBatch, batches_ahead
from stages.distill.config import DistillConfig, ResolvedMethod
from stages.distill.feed import Feed
from stages.distill.resolve import open_feed
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.images.crops import Crop, crop_of
from stages.images.preprocess import CropShape, crop_pixels

STORED_SIDE = 256
SHAPE = CropShape((224, 224), "bicubic")
BATCHES_LEFT_OUT = 3
COLUMNS = (
    "workers",
    "goal",
    "share_by_processor",
    "share_of_bare",
    "pictures_per_s",
    "feed_us",
    "worker_us",
    "bare_us",
)


def make_cache(folder: Path, payloads: list[bytes], num_texts: int) -> Path:
    """Returns a cache of the pictures, which it stores, and of sentences, filled by a stub teacher."""
    config = ExtractConfig(
        cache=folder / "cache",
        images=(str(write_folder(folder / "pictures", payloads)),),
        texts=(str(write_texts(folder / "texts.txt", num_texts)),),
        teacher=STUB,
        store_pixels=STORED_SIDE,
        decode_workers=2,
        index=False,
    )
    with open_job(config) as job:
        with job.make_worker() as worker:
            for task in job.tasks:
                worker(task)
        job.finish()
    return config.cache


class Benchmark:
    """What is measured over one cache.

    Args:
        cache: with stored pixels.
        batch_size: pictures of a step.
        num_batches: steps that count.
    """

    def __init__(self, cache: Path, batch_size: int, num_batches: int) -> None:
        self._num_batches = num_batches
        self._batch_size = batch_size
        shared = {"batch_size": batch_size, "text_batch_size": batch_size}
        config = DistillConfig(cache=cache, out=cache.parent / "run", picture_memory_bytes=0, **shared)
        self._feed: Feed = replace(open_feed(config), largest=SHAPE.size)
        self._method = ResolvedMethod(
            cache=cache,
            student="none",
            steps=1,
            norm_batch_size=batch_size,
            logit_scale=100.0,
            text_array=self._feed.texts.name,
            **shared,
        )
        self._bare = list(self._payloads_and_crops())

    def round(self, num_workers: int, slept_seconds: float | None = None) -> dict[str, float]:
        """Returns what one round gives with so many workers, which sleep where that is asked."""
        alone = _seconds_of_sleeping(slept_seconds) if slept_seconds else self._bare_seconds()
        with _preparation(slept_seconds), _beside(None if slept_seconds else self._bare) as beside:
            pictures_per_s, feed_s, worker_s, bare_s = self._fed(num_workers, beside)
        if not slept_seconds:
            # On both sides of the feed, for the clock of a busy machine drifts.
            alone = (alone + self._bare_seconds()) / 2
        figures = {
            "share_of_bare": pictures_per_s / num_workers * alone,
            "pictures_per_s": pictures_per_s,
            "bare_per_s": 1 / alone,
            "feed_us": feed_s * 1e6,
            "worker_us": worker_s * 1e6,
        }
        if bare_s:
            figures |= {"share_by_processor": bare_s / (feed_s + worker_s), "bare_us": bare_s * 1e6}
        return figures

    def _fed(self, num_workers: int, beside: Callable[[], tuple[int, float]]) -> tuple[float, float, float, float]:
        """Returns pictures per second, and processor seconds of a picture: of the feed, its workers and bare."""
        with self._feed.open_pictures([SHAPE], num_workers=num_workers, progress=_silent) as pictures:
            maker = self._feed.batch_maker(pictures, self._method)
            with closing(batches_ahead(maker, range(1 << 30), torch.device("cpu"))) as batches:
                # More than are begun ahead: what was made before the clock starts is forgotten.
                _forget(batches, BATCHES_LEFT_OUT + pictures.num_begun // self._batch_size)
                num_bare, bare_s = beside()
                feed_s, workers_s, start = time.process_time(), _seconds_of_workers(), time.perf_counter()
                _forget(batches, self._num_batches)
                seconds = time.perf_counter() - start
                feed_s, workers_s = time.process_time() - feed_s, _seconds_of_workers() - workers_s
                num_bare, bare_s = (now - then for now, then in zip(beside(), (num_bare, bare_s), strict=True))
        num = self._num_batches * self._batch_size
        return num / seconds, feed_s / num, workers_s / num, bare_s / max(1, num_bare)

    def _payloads_and_crops(self) -> Iterator[tuple[bytes, Crop]]:
        assert self._feed.small is not None
        rows = self._feed.sequence.visits_of_step(0).rows
        for row, at in zip(rows.tolist(), self._feed.cache.locations(rows), strict=True):
            yield self._feed.small.payload(row, at), crop_of(0, 1, at.digest, width=at.width, height=at.height)

    def _bare_seconds(self) -> float:
        """Returns the seconds of decoding and cropping one picture in this process, while nothing else of ours runs."""
        start = time.perf_counter()
        for payload, crop in self._bare:
            crop_pixels(Image.open(io.BytesIO(payload)).convert("RGB"), crop, SHAPE)
        return (time.perf_counter() - start) / len(self._bare)


def _forget(batches: Iterator[UploadedBatch], num_batches: int) -> None:
    for _ in islice(batches, num_batches):
        pass


def _seconds_of_sleeping(seconds: float) -> float:
    preparation, crop, num = Slept((SHAPE,), seconds=seconds), Crop(0, 0, 1, 1), 200
    start = time.perf_counter()
    for _ in range(num):
        preparation.prepare(b"", (crop, False))
    return (time.perf_counter() - start) / num


@contextmanager
def _beside(pictures: Sequence[tuple[bytes, Crop]] | None) -> Iterator[Callable[[], tuple[int, float]]]:
    """Context in which a process decodes the pictures; asks it for (pictures, processor seconds) so far."""
    if pictures is None:
        yield lambda: (0, 0.0)
        return
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=decode_bare, args=(pictures, SHAPE, theirs), daemon=True)
    process.start()

    def asked() -> tuple[int, float]:
        ours.send("how far")
        num_done, seconds = ours.recv()
        return num_done, seconds

    try:
        asked()
        yield asked
    finally:
        ours.send("end")
        process.join()


@contextmanager
def _preparation(slept_seconds: float | None) -> Iterator[None]:
    """Context in which workers sleep for so long in place of decoding, if that is asked."""
    before = streamed_pictures.TrainingPreparation
    try:
        if slept_seconds:
            streamed_pictures.TrainingPreparation = partial(Slept, seconds=slept_seconds)  # type: ignore[misc,assignment]
        yield
    finally:
        streamed_pictures.TrainingPreparation = before  # type: ignore[misc]


def _seconds_of_workers() -> float:
    """Returns the processor seconds of the decode processes that live."""
    total = 0.0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            if b"pool_child" in command:
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _silent(*_: object) -> None:
    """Stands for a progress that nobody looks at."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder or tar of JPEG pictures; else the demo's drawings")
    parser.add_argument("--rows", type=int, default=1024, help="pictures of the cache")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=24, help="batches of a round that count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--simulated-workers", type=int, nargs="*", default=[16])
    parser.add_argument("--simulated-seconds", type=float, default=0.0012, help="of one picture")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = make_cache(Path(temporary), payloads_of(asked.pictures, asked.rows), asked.batch_size)
        benchmark = Benchmark(cache, asked.batch_size, asked.batches)
        wanted = {f"{num}": (num, None) for num in asked.workers}
        wanted |= {f"simulated {num}": (num, asked.simulated_seconds) for num in asked.simulated_workers}
        rounds = [
            {name: benchmark.round(num, seconds) for name, (num, seconds) in wanted.items()}
            for _ in range(asked.rounds)
        ]
    result: dict[str, object] = {"batch_size": asked.batch_size, "load": os.getloadavg()[0], "cores": os.cpu_count()}
    rows = []
    for name in wanted:
        figures = {figure: median([one[name][figure] for one in rounds]) for figure in rounds[0][name]}
        result[name] = figures | {"rounds": [round(one[name]["share_of_bare"], 3) for one in rounds]}
        rows.append({"workers": name, "goal": ">= 0.9", **figures})
    print_table(rows, COLUMNS)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
