"""Measures the cost of `pipeline extract` beyond the teacher: its steady-state time against bare decode and forward.

    python -m benchmarks.extract_overhead [--pictures FOLDER_OR_TAR] [--rows 256] [--rounds 3]

In every round, in one process and with the same loaded teacher, on the same pictures:

- bare: read and decode every picture with Pillow alone, one after the other; then the forward pass over the prepared
  batches. Nothing is checked, hashed or written. `ratio_to_bare` is extract against the sum of both (the goal: at most
  1.05), `ratio_to_forward` against the forward pass alone (the goal on a GPU).
- overlapped: the same decode pool as extract's and the same batches, nothing else.
- extract: the whole worker, committing to a real cache. A small and a large cache are made, and the difference is
  counted, so that whatever is paid once per process or part (starting decode processes, filling the pipeline) is not.

`start_up_s` is the wall time of a fresh `pipeline extract` process over one batch: interpreter, teacher, probes, plan.
All ratios are medians over the rounds.
"""

import argparse
import io
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.commands import median, print_table, run_pipeline
from benchmarks.pictures import payloads_of, write_folder
from benchmarks.teachers import STUB, composed, open_clip_random
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.images.pool import DecodePool
from stages.images.prepare import CropPreparation
from stages.images.preprocess import Preprocess, normalise
from stages.teachers import Teacher
from stages.teachers.described import loaded_teacher

PART_ROWS = 16_384
COLUMNS = ("teacher", "bare_decode_s", "bare_forward_s", "extract_s", "ratio_to_bare", "ratio_to_forward", "start_up_s")


def bare_prepare(path: Path, preprocess: Preprocess) -> np.ndarray:
    """Returns the pixels of a picture by Pillow alone: upright RGB, shorter side to the model's size, centre cut."""
    height, width = preprocess.size
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    scale = max(height / image.height, width / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def bare(teacher: Teacher, paths: list[Path], batch_size: int) -> tuple[float, float]:
    """Returns the seconds of decoding all pictures and of the forward pass over them."""
    start = time.perf_counter()
    pixels = [bare_prepare(path, teacher.preprocess) for path in paths]
    decoded = time.perf_counter()
    for first in range(0, len(pixels), batch_size):
        teacher.encode_images(normalise(np.stack(pixels[first : first + batch_size]), teacher.preprocess))
    return decoded - start, time.perf_counter() - decoded


def overlapped(teacher: Teacher, paths: list[Path], batch_size: int, decode_workers: int) -> float:
    """Returns the seconds of decoding in processes while the teacher computes, started before the clock is."""
    with DecodePool(decode_workers, CropPreparation(teacher.preprocess)) as pool:
        for _ in pool.map([(paths[0].read_bytes(), None)] * decode_workers):
            pass
        start = time.perf_counter()
        batch: list[np.ndarray] = []
        for prepared in pool.map(_jobs(paths)):
            assert prepared.pixels is not None, prepared
            batch.append(prepared.pixels)
            if len(batch) == batch_size:
                teacher.encode_images(normalise(np.stack(batch), teacher.preprocess))
                batch = []
        return time.perf_counter() - start


def _jobs(paths: list[Path]) -> Iterator[tuple[bytes, None]]:
    for path in paths:
        yield path.read_bytes(), None


def extract(config: ExtractConfig) -> tuple[float, dict[str, float]]:
    """Returns the seconds that a worker takes for the only part of a new cache, and its stages' seconds."""
    shutil.rmtree(config.cache, ignore_errors=True)
    with open_job(config) as job:
        (task,) = job.tasks
        with job.make_worker() as worker:
            start = time.perf_counter()
            report = worker(task)
            seconds = time.perf_counter() - start
    assert report.num_bad == 0, report
    return seconds, dict(report.seconds)


def measure(specification: str, small: Path, large: Path, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of one teacher."""
    config = partial(
        ExtractConfig,
        teacher=specification,
        batch_size=asked.batch_size,
        part_rows=PART_ROWS,
        device=asked.device,
        precision=asked.precision,
        decode_workers=asked.decode_workers,
        index=False,
    )
    teacher = loaded_teacher(specification, asked.device, asked.precision)
    paths = sorted(large.iterdir())[: asked.rows]
    bare(teacher, paths[: asked.batch_size], asked.batch_size)
    rounds: list[dict[str, float]] = []
    stages: dict[str, float] = {}
    for _ in range(asked.rounds):
        decode, forward = bare(teacher, paths, asked.batch_size)
        beside = overlapped(teacher, paths, asked.batch_size, asked.decode_workers)
        less, _ = extract(config(cache=folder / "small", images=(str(small),)))
        more, stages = extract(config(cache=folder / "large", images=(str(large),)))
        spent = more - less
        rounds.append(
            {
                "bare_decode_s": decode,
                "bare_forward_s": forward,
                "overlapped_s": beside,
                "extract_s": spent,
                "ratio_to_bare": spent / (decode + forward),
                "ratio_to_overlapped": spent / beside,
                "ratio_to_forward": spent / forward,
            }
        )
    options = ("--batch-size", asked.batch_size, "--device", asked.device, "--precision", asked.precision, "--no-index")
    start_up = run_pipeline(
        *("extract", "--images", small, "--teacher", specification, "--cache", folder / "fresh"), *options
    )
    return {
        **{name: median([one[name] for one in rounds]) for name in rounds[0]},
        "ratios_to_bare": [round(one["ratio_to_bare"], 3) for one in rounds],
        "stage_seconds": {name: round(value, 3) for name, value in stages.items()},
        "start_up_s": round(start_up.seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pictures", type=Path, help="folder or tar of JPEG pictures; the demo's drawings if not given"
    )
    parser.add_argument(
        "--teachers", nargs="+", choices=("composed", "open_clip", "stub"), default=["composed", "open_clip"]
    )
    parser.add_argument("--rows", type=int, default=256, help="pictures counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--decode-workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    asked = parser.parse_args()
    asked.rows -= asked.rows % asked.batch_size
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        payloads = payloads_of(asked.pictures, asked.rows + asked.batch_size)
        large = write_folder(folder / "pictures", payloads)
        small = write_folder(folder / "few", payloads[: asked.batch_size])
        make = {"composed": composed, "open_clip": open_clip_random, "stub": lambda _: STUB}
        result: dict[str, Any] = {"rows": asked.rows, "batch_size": asked.batch_size, "device": asked.device}
        for name in asked.teachers:
            specification = make[name](folder / f"teacher-{name}")
            work = folder / f"caches-{name}"
            work.mkdir()
            result[name] = measure(specification, small, large, work, asked)
    print_table([{"teacher": name, **result[name]} for name in asked.teachers], COLUMNS)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
