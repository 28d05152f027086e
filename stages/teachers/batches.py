"""Batches of one shape: short ones are padded, so that no feature depends on how many rows are left of a part."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.images.preprocess import Preprocess, normalise


def padded_pixels(
    pictures_HWC: Sequence[NDArray[np.uint8]], batch_size: int, preprocess: Preprocess
) -> NDArray[np.float32]:
    """Returns the normalised pixels_BCHW of one to `batch_size` prepared pictures, black ones behind them."""
    padding = [np.zeros_like(pictures_HWC[0])] * (batch_size - len(pictures_HWC))
    return normalise(np.stack([*pictures_HWC, *padding]), preprocess)


def padded_texts(texts: Sequence[str], batch_size: int) -> list[str]:
    """Returns up to `batch_size` sentences, empty ones behind them."""
    return [*texts, *[""] * (batch_size - len(texts))]
