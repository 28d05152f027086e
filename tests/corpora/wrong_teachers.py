"""Teachers that go wrong in ways that 16 probes in one batch cannot see, and the specifications that name them."""

from collections.abc import Callable

import numpy as np

from tests.corpora.stub_teacher import StubTeacher
from tests.corpora.stub_teacher import make as make_stub

NUM_PROBES = 16
Wrong = Callable[["WrongTeacher", str, np.ndarray], np.ndarray]


def wrong(fault: str, **options: object) -> str:
    """Returns the specification of a teacher that is the stub teacher but for a `fault`; see `make`."""
    asked = "&".join(f"{name}={value}" for name, value in {"fault": fault, **options}.items())
    return f"python:tests.corpora.wrong_teachers:make?{asked}"


class WrongTeacher:
    """What `make` returns: the stub teacher, its features spoilt."""

    def __init__(self, right: StubTeacher, spoil: Wrong, after: int, modality: str) -> None:
        self._right, self._spoil, self._after, self._modality = right, spoil, after, modality
        self.num_batches = 0
        for name in ("identity", "dim", "logit_scale", "preprocess", "context_length", "tokenizer"):
            setattr(self, name, getattr(right, name))

    def encode_images(self, pixels_BCHW: np.ndarray) -> np.ndarray:
        return self._spoilt("image", self._right.encode_images(pixels_BCHW))

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        features = self._spoilt("text", self._right.encode_texts(texts))
        if self._spoil is longest_sentence:
            features[:, 0] += max(map(len, texts)) / 100
        return features

    def _spoilt(self, modality: str, features_BD: np.ndarray) -> np.ndarray:
        if modality != self._modality:
            return features_BD
        self.num_batches += 1
        return self._spoil(self, modality, features_BD) if self.num_batches > self._after else features_BD


def mean_of_batch(_teacher: WrongTeacher, _modality: str, features_BD: np.ndarray) -> np.ndarray:
    """Subtracts the mean of the batch, as a batch norm in training mode does."""
    return features_BD - features_BD.mean(axis=0)


def neighbour(_teacher: WrongTeacher, _modality: str, features_BD: np.ndarray) -> np.ndarray:
    """Mixes every row with the one before it."""
    return features_BD + 0.1 * np.roll(features_BD, 1, axis=0)


def shifted(_teacher: WrongTeacher, _modality: str, features_BD: np.ndarray) -> np.ndarray:
    """Shifts rows unless they are as many as there are probes."""
    return features_BD if len(features_BD) == NUM_PROBES else np.roll(features_BD, 1, axis=0)


def constant(_teacher: WrongTeacher, _modality: str, features_BD: np.ndarray) -> np.ndarray:
    """Gives every input the same feature."""
    return np.ones_like(features_BD)


def nearly_constant(_teacher: WrongTeacher, _modality: str, features_BD: np.ndarray) -> np.ndarray:
    """Gives inputs features that float16 does not tell apart."""
    return 1 + 1e-6 * features_BD


def longest_sentence(_teacher: WrongTeacher, _modality: str, features_BD: np.ndarray) -> np.ndarray:
    """Lets the longest sentence of a batch, to which the others are padded, change all (see `encode_texts`)."""
    return features_BD


def drift(teacher: WrongTeacher, _modality: str, features_BD: np.ndarray) -> np.ndarray:
    """Adds more from batch to batch."""
    return features_BD + np.float32(0.05 * (teacher.num_batches - teacher._after))


FAULTS: dict[str, Wrong] = {
    one.__name__: one for one in (mean_of_batch, neighbour, shifted, constant, nearly_constant, longest_sentence, drift)
}


def make(fault: str, after: int = 0, modality: str = "text", seed: int = 0) -> WrongTeacher:
    """Returns a stub teacher, 16 wide, that has `fault` for `modality` after so many batches of it."""
    return WrongTeacher(make_stub(seed=seed), FAULTS[fault], after, modality)
