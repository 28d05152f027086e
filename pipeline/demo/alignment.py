"""The map that makes one teacher of an image encoder and a text encoder that have never met.

Ridge regression from standardised image features onto centred embeddings of the pictures' names.

Shape letters: N pictures, F width of an image encoder's pooled feature, D width of a text embedding.
"""

import io
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cache_schema.features import unit_rows

Floats = NDArray[np.float32]

RIDGE = 0.1
"""Weight of the penalty, per picture."""


@dataclass(frozen=True)
class Alignment:
    """A fitted map.

    Attributes:
        feature_mean_F: of the pooled image features.
        feature_std_F: likewise, above 0.
        weights_FD: from standardised image features to centred text embeddings.
        text_mean_D: mean embedding of the names; the text encoder's features are centred with it too.
    """

    feature_mean_F: Floats
    feature_std_F: Floats
    weights_FD: Floats
    text_mean_D: Floats

    def image_features(self, pooled_NF: Floats) -> Floats:
        """Returns image_ND, unit norm, in the text encoder's centred space."""
        return unit_rows((pooled_NF - self.feature_mean_F) / self.feature_std_F @ self.weights_FD)

    def text_features(self, embedded_ND: Floats) -> Floats:
        """Returns text_ND, unit norm, of embeddings as the text encoder gives them."""
        return unit_rows(embedded_ND - self.text_mean_D)

    def to_bytes(self) -> bytes:
        """Returns the npz form; `from_bytes` is its inverse."""
        buffer = io.BytesIO()
        np.savez(buffer, **dict(zip((field.name for field in fields(self)), astuple(self), strict=True)))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Alignment":
        """Returns what `to_bytes` gave."""
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})


def fit_alignment(pooled_NF: Floats, names_ND: Floats, *, ridge: float = RIDGE) -> Alignment:
    """Returns the map that takes image features closest to the embeddings of the same pictures' names.

    Args:
        pooled_NF: image features.
        names_ND: embeddings of the names, row by row of the same pictures.
        ridge: weight of the penalty, per picture.
    """
    pooled, names = pooled_NF.astype(np.float64), names_ND.astype(np.float64)
    mean, std, text_mean = pooled.mean(axis=0), pooled.std(axis=0) + 1e-6, names.mean(axis=0)
    standard = (pooled - mean) / std
    covariance = standard.T @ standard / len(standard)
    target = standard.T @ (names - text_mean) / len(standard)
    weights = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), target)
    return Alignment(*(value.astype(np.float32) for value in (mean, std, weights, text_mean)))


def cross_fitted_features(pooled_NF: Floats, names_ND: Floats, *, num_folds: int, seed: int) -> Floats:
    """Returns image_ND, unit norm, each row by a map that was fitted without its picture."""
    fold_of = np.random.default_rng([seed, num_folds]).permutation(len(pooled_NF)) % num_folds
    image_ND = np.empty((len(pooled_NF), names_ND.shape[1]), np.float32)
    for fold in range(num_folds):
        rest = fold_of != fold
        image_ND[~rest] = fit_alignment(pooled_NF[rest], names_ND[rest]).image_features(pooled_NF[~rest])
    return image_ND
