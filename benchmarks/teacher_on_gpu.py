"""Measures the share of a GPU's bf16 matrix peak that a teacher gets, from prepared tensors and from stored pixels.

    python -m benchmarks.teacher_on_gpu [--architecture ViT-L-14] [--batch-size 256] [--seconds 20]

Needs torch and open_clip and one CUDA device, and nothing of Ray. In one run, on one device:

- `peak_tflops`: the best of large square bf16 matrix products, measured here and not taken from a data sheet.
- `prepared_per_s`: images per second of the image tower over tensors that are on the device already. 162 GFLOP per
  image for ViT-L/14 at 224 pixels; `share_of_peak` is the goal of at least 0.60.
- `stored_per_s`: the way of extract itself: the teacher's `encode_images` over JPEG pixels as `--store-pixels 256`
  keeps them, decoded by the pool while the device computes. `share_of_prepared` is the goal of at least 0.95.

The weights are random: the speed does not depend on them.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

GFLOP_PER_IMAGE = {"ViT-L-14": 162.0, "ViT-B-32": 8.8}
MATRIX_SIZES = (8192, 12288, 16384)
COLUMNS = ("device", "peak_tflops", "prepared_per_s", "share_of_peak", "stored_per_s", "share_of_prepared")


def timed(compute: Callable[[], object], seconds: float) -> float:
    """Returns the seconds of one `compute` on the device, the mean of as many as fit `seconds`, after three more."""
    import torch

    for _ in range(3):
        compute()
    torch.cuda.synchronize()
    start, num_done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(5):
            compute()
        torch.cuda.synchronize()
        num_done += 5
    return (time.perf_counter() - start) / num_done


def peak_tflops(seconds: float) -> float:
    """Returns the best rate of bf16 matrix products of several sizes."""
    import torch

    best = 0.0
    for size in MATRIX_SIZES:
        left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(left)
        best = max(best, 2 * size**3 / timed(lambda: torch.mm(left, right, out=out), seconds) / 1e12)  # noqa: B023
    return best


def prepared_per_s(model: Any, batch_size: int, size: int, seconds: float) -> float:
    """Returns images per second of the image tower over one batch that stays on the device."""
    import torch

    pixels = torch.randn(batch_size, 3, size, size, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        return batch_size / timed(lambda: model.encode_image(pixels), seconds)


def stored_per_s(
    specification: str, batch_size: int, num_workers: int, seconds: float, *, device: str, precision: str
) -> float:
    """Returns images per second from JPEG bytes to unit features in memory, through the decode pool and the teacher."""
    from cache_schema.features import storable
    from stages.images.pool import DecodePool
    from stages.images.prepare import CropPreparation
    from stages.images.preprocess import normalise
    from stages.teachers.described import loaded_teacher

    teacher = loaded_teacher(specification, device, precision)
    jobs = ((payload, None) for payload in cycle(list(stored_pictures())))
    num_done, start = 0, 0.0
    with DecodePool(num_workers, CropPreparation(teacher.preprocess), max_in_flight=4 * batch_size) as pool:
        prepared = pool.map(jobs)
        while not start or time.perf_counter() - start < seconds:
            batch = [one.pixels for one in islice(prepared, batch_size)]
            storable(teacher.encode_images(normalise(np.stack(batch), teacher.preprocess)))
            num_done += batch_size
            if not start and num_done >= 4 * batch_size:
                # The pool runs at full depth from here on.
                num_done, start = 0, time.perf_counter()
        return num_done / (time.perf_counter() - start)


def stored_pictures() -> Iterator[bytes]:
    """Yields JPEG pictures of 256 × 256 pixels that are about as hard to decode as photographs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for _ in range(64):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).resize((256, 256))
        noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (256, 256, 3))
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="ViT-L-14", choices=sorted(GFLOP_PER_IMAGE))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--decode-workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    asked = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: there is no CUDA device here, and this measures one: run it on a machine that has one")
    import open_clip

    from benchmarks.commands import print_table
    from benchmarks.teachers import open_clip_random

    peak = peak_tflops(min(asked.seconds, 5.0))
    model = open_clip.create_model(asked.architecture, precision="bf16", device="cuda").eval().requires_grad_(False)
    prepared = prepared_per_s(model, asked.batch_size, model.visual.image_size[0], asked.seconds)
    del model
    with tempfile.TemporaryDirectory() as folder:
        specification = open_clip_random(Path(folder) / "teacher", asked.architecture)
        how = {"device": "cuda", "precision": "bfloat16"}
        stored = stored_per_s(specification, asked.batch_size, asked.decode_workers, asked.seconds, **how)
    gflop = GFLOP_PER_IMAGE[asked.architecture]
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "architecture": asked.architecture,
        "batch_size": asked.batch_size,
        "decode_workers": asked.decode_workers,
        "peak_tflops": round(peak, 1),
        "prepared_per_s": round(prepared, 1),
        "share_of_peak": round(prepared * gflop / 1e3 / peak, 3),
        "stored_per_s": round(stored, 1),
        "share_of_prepared": round(stored / prepared, 3),
    }
    print_table([result], COLUMNS)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
