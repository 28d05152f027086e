"""The features of the pictures of an evaluation set, with their labels and keys.

Shape letters: N pictures, D width of a feature.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import UsageError
from cache_schema.features import usable_unit_rows
from stages.evaluate.data import EvaluationSet
from stages.evaluate.models import ImageEncoder
from stages.images.pool import DecodePool
from stages.images.prepare import CropPreparation, Prepared
from stages.images.preprocess import normalise


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of the readable pictures of an evaluation set, in its order.

    Attributes:
        image_ND: float32, unit norm.
        labels_N: int64.
        keys: the keys of the readable pictures.
        unreadable: key -> status of the others.
    """

    image_ND: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    keys: tuple[str, ...]
    unreadable: dict[str, str]


def encode_set(
    images: ImageEncoder,
    data: EvaluationSet,
    *,
    batch_size: int,
    decode_workers: int,
    progress: Callable[[int], None],
) -> LabelledFeatures:
    """Returns the features of all readable pictures, each through the model's own evaluation preprocessing.

    Args:
        images: image side of a model.
        data: evaluation set.
        batch_size: pictures of a forward pass.
        decode_workers: processes that decode; 0 decodes here.
        progress: called with the number of pictures seen so far.

    Raises:
        DamagedError: a tar or a label is damaged.
        RefusedError: a feature is not finite.
    """
    features, labels, keys = [], [], []
    unreadable: dict[str, str] = {}
    seen: list[tuple[str, int]] = []

    def requests() -> Iterator[tuple[bytes, None]]:
        for picture in data.pictures():
            seen.append((picture.key, picture.label))
            yield picture.payload, None

    with DecodePool(decode_workers, CropPreparation(images.preprocess)) as pool:
        prepared = pool.map(requests())
        done = 0
        while some := list(islice(prepared, batch_size)):
            readable = [
                (seen[done + i], picture.pixels) for i, picture in enumerate(some) if picture.pixels is not None
            ]
            unreadable |= {
                seen[done + i][0]: _said(picture) for i, picture in enumerate(some) if picture.pixels is None
            }
            done += len(some)
            if readable:
                pixels_BHWC = np.stack([pixels for _, pixels in readable])
                encoded = images.encode_images(normalise(pixels_BHWC, images.preprocess))
                features.append(usable_unit_rows(encoded, f"a picture from {readable[0][0][0]!r} on"))
                keys += [key for (key, _), _ in readable]
                labels += [label for (_, label), _ in readable]
            progress(done)
    if not features:
        raise UsageError(f"{data.path} holds no readable picture ({len(unreadable):,} unreadable): check its tars")
    return LabelledFeatures(np.concatenate(features), np.array(labels), tuple(keys), unreadable)


def _said(picture: Prepared) -> str:
    return f"{picture.status}: {picture.reason}" if picture.reason else picture.status
