"""Held-out pictures with the sentences that the teacher and a student find for them.

Shape letters: G pictures shown, K classes, T sentences of the cache, D width of a feature.
"""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_schema.cache import Cache
from stages.evaluate.data import EvaluationSet, LabelledPicture, open_evaluation_set
from stages.evaluate.models import EvaluatedModel, load_model
from stages.images.decode import Limits, decode_image
from stages.images.preprocess import normalise, prepare_pixels
from stages.teachers.class_vectors import class_vectors


@dataclass(frozen=True)
class Answer:
    """The answer of one model to a picture: the label of its best class, and its best sentence with the cosine."""

    label: int
    sentence: str
    cosine: float


@dataclass(frozen=True)
class Shown:
    """A picture of the gallery: its JPEG as a data URI, its label, and one answer per model."""

    picture: str
    label: int
    answers: tuple[Answer, ...]


def make_gallery(models: list[str], data: Path, cache: Path, *, per_class: int, seed: int) -> list[Shown]:
    """Returns up to `per_class` pictures of every class, drawn by `seed` alone, with every model's answers.

    Args:
        models: runs or teacher specifications, as `pipeline evaluate` takes them.
        data: evaluation set.
        cache: whose sentences are searched, by their cached features.
        per_class: pictures of a class, at most.
        seed: the seed of the draw.
    """
    held_out = open_evaluation_set(data)
    pictures = list(_drawn(held_out, per_class, seed))
    opened = Cache.open(cache)
    texts = opened.array("text")
    text_rows = texts.ok_rows()
    text_TD = texts.features.gather_unit(text_rows)
    answers = []
    for name in models:
        model = load_model(name, device="cpu")
        image_GD = _encode(model, pictures)
        labels_G = (image_GD @ class_vectors(model.texts, held_out.prompts(), batch_size=64).T).argmax(axis=1)
        cosine_GT = image_GD @ text_TD.T
        best_G = cosine_GT.argmax(axis=1)
        sentences = opened.texts(text_rows[best_G])
        cosines = cosine_GT.max(axis=1)
        answers.append([Answer(int(a), b, float(c)) for a, b, c in zip(labels_G, sentences, cosines, strict=True)])
    return [
        Shown(_data_uri(picture.payload), picture.label, given)
        for picture, *given_list in zip(pictures, *answers, strict=True)
        for given in [tuple(given_list)]
    ]


def _drawn(held_out: EvaluationSet, per_class: int, seed: int) -> Iterator[LabelledPicture]:
    pictures = list(held_out.pictures())
    labels = np.array([picture.label for picture in pictures])
    rng = np.random.default_rng([seed, per_class])
    for label in range(len(held_out.class_names)):
        places = rng.permutation(np.flatnonzero(labels == label))[:per_class]
        yield from (pictures[place] for place in places)


def _encode(model: EvaluatedModel, pictures: list[LabelledPicture]) -> NDArray[np.float32]:
    """Returns image_GD, unit norm."""
    preprocess = model.images.preprocess
    pixels = []
    for picture in pictures:
        decoded = decode_image(picture.payload, Limits())
        assert decoded.image is not None, (picture.key, decoded.status)
        pixels.append(prepare_pixels(decoded.image, preprocess))
    image_GD = model.images.encode_images(normalise(np.stack(pixels), preprocess))
    return image_GD / np.linalg.norm(image_GD, axis=1, keepdims=True)


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
