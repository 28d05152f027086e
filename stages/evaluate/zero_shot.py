"""Zero-shot classification: class vectors from prompts, features of pictures, and the measures made of both.

Shape letters: N pictures, K classes, D width of a feature.

**Source:** CLIP's prompt ensembling, as in the ELEVATER toolkit: fill all templates, encode, normalise, average,
normalise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import RefusedError, UsageError
from cache_schema.features import unit_rows
from stages.decode_pool import DecodePool
from stages.evaluate.dataset import EvaluationSet
from stages.evaluate.models import ImageEncoder
from stages.prepare import Prepared, PreparePlan
from stages.preprocess import normalise
from stages.teachers import Teacher


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of the readable pictures of an evaluation set, in its order.

    Attributes:
        image_ND: float32, unit norm.
        labels_N: int64.
        keys: of the readable pictures.
        unreadable: key -> status of the others.
    """

    image_ND: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    keys: tuple[str, ...]
    unreadable: dict[str, str]


def class_vectors(texts: Teacher, data: EvaluationSet, *, batch_size: int) -> NDArray[np.float32]:
    """Returns class_KD, float32, unit norm: one vector per class, the mean of its prompts' unit features."""
    vectors = []
    for label in range(len(data.class_names)):
        prompts = data.prompts_of(label)
        encoded = [
            texts.encode_texts(prompts[first : first + batch_size]) for first in range(0, len(prompts), batch_size)
        ]
        mean = _finite_unit(np.concatenate(encoded), f"a prompt of class {data.class_names[label]!r}").mean(axis=0)
        vectors.append(mean)
    return _finite_unit(np.stack(vectors), "a class vector")


def count_cut_prompts(texts: Teacher, data: EvaluationSet) -> int:
    """Returns how many prompts are longer than the text tower reads; 0 where that is unknown."""
    prompts = [prompt for label in range(len(data.class_names)) for prompt in data.prompts_of(label)]
    counts = texts.count_tokens(prompts)
    if counts is None or texts.context_length is None:
        return 0
    return sum(count > texts.context_length for count in counts)


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

    def jobs() -> Iterator[tuple[bytes, None]]:
        for picture in data.pictures():
            seen.append((picture.key, picture.label))
            yield picture.payload, None

    with DecodePool(decode_workers, PreparePlan(images.preprocess)) as pool:
        prepared = pool.map(jobs())
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
                features.append(_finite_unit(encoded, f"a picture from {readable[0][0][0]!r} on"))
                keys += [key for (key, _), _ in readable]
                labels += [label for (_, label), _ in readable]
            progress(done)
    if not features:
        raise UsageError(f"{data.path} holds no readable picture ({len(unreadable):,} unreadable): check its tars")
    return LabelledFeatures(np.concatenate(features), np.array(labels), tuple(keys), unreadable)


def top1_of(scores_NK: NDArray[np.floating], labels_N: NDArray[np.int64]) -> float:
    """Returns the share of pictures whose best score is that of their class."""
    return float((scores_NK.argmax(axis=1) == labels_N).mean())


def mean_per_class_recall(scores_NK: NDArray[np.floating], labels_N: NDArray[np.int64]) -> float:
    """Returns the mean over classes of the share of their pictures that are recognised.

    Classes without a picture take no part, neither in the mean nor as an answer.
    """
    present = np.unique(labels_N)
    best_N = present[scores_NK[:, present].argmax(axis=1)]
    return float(np.mean([(best_N[labels_N == label] == label).mean() for label in present]))


def _said(picture: Prepared) -> str:
    return f"{picture.status}: {picture.reason}" if picture.reason else picture.status


def _finite_unit(features: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    norms = np.linalg.norm(features, axis=1)
    if not (np.isfinite(norms).all() and norms.all()):
        raise RefusedError(
            f"the model gives no usable feature for {what}: its weights, precision or device are at fault"
        )
    return unit_rows(features)
