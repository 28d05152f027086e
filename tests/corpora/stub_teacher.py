"""A tiny NumPy teacher for tests, and the specification that names it. Loads no file, never imports torch.

The feature of a row depends on that row alone, bit for bit, whatever the batch. Pictures: the mean colours of an 8 × 8
grid through a fixed random projection. Sentences: their BLAKE2b bytes through another.
"""

import hashlib
import os
import time
from typing import Any

import numpy as np

GRID = 8
STUB_ARRAY = "tests-corpora-stub-teacher-make"


def stub(**options: object) -> str:
    """Returns the specification of a stub teacher; see `make` for the options. It is 16 wide unless told otherwise."""
    asked = {"dim": 16, **options}
    return "python:tests.corpora.stub_teacher:make?" + "&".join(f"{name}={value}" for name, value in asked.items())


STUB = stub()


class StubTeacher:
    """What `make` returns."""

    def __init__(
        self,
        *,
        dim: int,
        size: int,
        seed: int,
        version: str,
        logit_scale: float,
        mean: float,
        std: float,
        interpolation: str,
        seconds_per_batch: float,
        calls: str,
        nan_text: str,
        zero_text: str,
        huge_text: str,
        raise_text: str,
        exit_text: str,
        nan_white: bool,
        context_length: int,
    ) -> None:
        self.identity: dict[str, Any] = {"name": "stub", "version": version, "files": {}, "dim": dim}
        self.dim = dim
        self.logit_scale = logit_scale
        self.preprocess = {
            "size": (size, size),
            "mean": (mean,) * 3,
            "std": (std,) * 3,
            "interpolation": interpolation,
            "resize_mode": "shortest",
        }
        self.context_length = context_length
        self.tokenizer = {"name": "words", "cleaning": "none"}
        self._seconds_per_batch = seconds_per_batch
        self._calls = calls
        self._markers = {"nan": nan_text, "zero": zero_text, "huge": huge_text, "raise": raise_text, "exit": exit_text}
        self._nan_white = nan_white
        self._of_images = np.random.default_rng([seed, 0]).standard_normal((3 * GRID * GRID, dim))
        self._of_texts = np.random.default_rng([seed, 1]).standard_normal((64, dim))

    def encode_images(self, pixels_BCHW: np.ndarray) -> np.ndarray:
        self._note_call("image", len(pixels_BCHW))
        pixels = pixels_BCHW.astype(np.float64)
        batch, channels, height, width = pixels.shape
        cells = pixels.reshape(batch, channels, GRID, height // GRID, GRID, width // GRID).mean(axis=(3, 5))
        # einsum adds in a fixed order; a BLAS product may change its order with the size of the batch.
        features = np.einsum("bi,id->bd", cells.reshape(batch, -1), self._of_images).astype(np.float32)
        if self._nan_white:
            features[pixels.reshape(batch, -1).min(axis=1) == pixels.max()] = np.nan
        return features

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        self._note_call("text", len(texts))
        rows = [np.frombuffer(hashlib.blake2b(text.encode()).digest(), np.uint8) / 127.5 - 1 for text in texts]
        features = np.einsum("bi,id->bd", np.array(rows).reshape(-1, 64), self._of_texts).astype(np.float32)
        for row, text in enumerate(texts):
            for what, marker in self._markers.items():
                if marker and marker in text:
                    features[row] = self._spoilt(what, features[row])
        return features

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(text.split()) + 2 for text in texts]

    def _spoilt(self, what: str, feature: np.ndarray) -> Any:
        if what == "raise":
            raise RuntimeError("the stub teacher was asked to fail")
        if what == "exit":
            os._exit(9)
        return {"nan": np.nan, "zero": 0.0, "huge": feature * np.float32(1e30)}[what]

    def _note_call(self, modality: str, num_rows: int) -> None:
        time.sleep(self._seconds_per_batch)
        if self._calls:
            with open(self._calls, "a") as file:
                file.write(f"{modality} {num_rows}\n")


def make(
    dim: int = 16,
    size: int = 32,
    seed: int = 0,
    version: str | int = "1",
    logit_scale: float = 100.0,
    mean: float = 0.5,
    std: float = 0.25,
    interpolation: str = "bicubic",
    seconds_per_batch: float = 0.0,
    calls: str = "",
    nan_text: str = "",
    zero_text: str = "",
    huge_text: str = "",
    raise_text: str = "",
    exit_text: str = "",
    nan_white: bool = False,
    context_length: int = 16,
) -> StubTeacher:
    """Returns a stub teacher.

    `seed` changes the features but not the identity: a wrong teacher that only probes can tell. `calls` names a file
    that gets a line for every batch. Sentences that contain `nan_text`, `zero_text` or `huge_text` get such a feature;
    one with `raise_text` raises, one with `exit_text` ends the process at once. With `nan_white`, an all-white picture
    gets NaN.
    """
    return StubTeacher(
        dim=dim,
        size=size,
        seed=seed,
        version=str(version),
        logit_scale=logit_scale,
        mean=mean,
        std=std,
        interpolation=interpolation,
        seconds_per_batch=seconds_per_batch,
        calls=calls,
        nan_text=nan_text,
        zero_text=zero_text,
        huge_text=huge_text,
        raise_text=raise_text,
        exit_text=exit_text,
        nan_white=nan_white,
        context_length=context_length,
    )
