"""What runs in other processes of the benchmark of the feed: bare decoding beside it, and workers that sleep."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection

import numpy as np
from PIL import Image

from stages.images.crops import Crop
from stages.images.prepare import Prepared, TrainingPreparation
from stages.images.preprocess import CropShape, crop_pixels


def decode_bare(pictures: Sequence[tuple[bytes, Crop]], shape: CropShape, link: Connection) -> None:
    """Decodes and crops the pictures over and over, and answers each message with (pictures, processor seconds)."""
    for num_done, (payload, crop) in enumerate(cycle(pictures)):
        if link.poll():
            if link.recv() == "end":
                return
            link.send((num_done, time.process_time()))
        crop_pixels(Image.open(io.BytesIO(payload)).convert("RGB"), crop, shape)


@dataclass(frozen=True)
class Slept(TrainingPreparation):
    """Sleeps `seconds` and returns grey pixels."""

    seconds: float = 0.001

    def prepare(self, payload: bytes, wanted: tuple[Crop, bool]) -> Prepared:
        time.sleep(self.seconds)
        return Prepared(np.full(self.shape, 128, np.uint8))
