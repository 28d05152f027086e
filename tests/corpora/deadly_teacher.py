"""A stub teacher that ends its process, as foreign code does that goes wrong, when it sees certain inputs."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.corpora.stub_teacher import StubTeacher
from tests.corpora.stub_teacher import make as make_stub


def deadly(**options: object) -> str:
    """Returns the specification of a deadly teacher, 16 wide; see `make` for the options."""
    asked = "&".join(f"{name}={value}" for name, value in {"dim": 16, **options}.items())
    return f"python:tests.corpora.deadly_teacher:make?{asked}"


_open = Image.open


class DeadlyTeacher:
    """A stub teacher, and what it dies of."""

    def __init__(self, stub: StubTeacher, text: str, black: bool, how: str, spared: str, batches: bool) -> None:
        self._stub = stub
        self._text, self._black, self._how, self._batches = text, black, how, batches
        self._spared = Path(spared) if spared else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    def encode_images(self, pixels_BCHW: np.ndarray) -> np.ndarray:
        # The deadly pictures are nearly black; blanks are black throughout.
        darkest_B = pixels_BCHW.reshape(len(pixels_BCHW), -1)
        if self._black and ((darkest_B.max(axis=1) < -1.8) & (darkest_B.min(axis=1) < darkest_B.max(axis=1))).any():
            self._die()
        return self._stub.encode_images(pixels_BCHW)

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        if self._text and any(self._text in text for text in texts):
            self._die()
        return self._stub.encode_texts(texts)

    def count_tokens(self, texts: list[str]) -> list[int]:
        # Of every batch of a part, and of no probes.
        if self._batches:
            self._die()
        return self._stub.count_tokens(texts)

    def _die(self) -> None:
        if self._spared is not None:
            if self._spared.exists():
                return
            self._spared.touch()
        if self._how == "sys.exit":
            sys.exit(0)
        if self._how.isdigit():
            os._exit(int(self._how))
        # To this thread: it must not go on while another one takes the signal.
        signal.raise_signal(getattr(signal, self._how))


def _open_deadly(*args: Any, **options: Any) -> Any:
    image = _open(*args, **options)
    if image.width == 41:
        signal.raise_signal(signal.SIGSEGV)
    return image


def make(
    text: str = "",
    black: bool = False,
    how: str | int = "SIGSEGV",
    spared: str = "",
    batches: bool = False,
    decoder: bool = False,
    dim: int = 16,
    seconds_per_batch: float = 0.0,
) -> DeadlyTeacher:
    """Returns a teacher with the identity and the features of the stub.

    It dies of sentences with `text`, of nearly black pictures when `black`, of every batch of sentences when
    `batches`: of the signal or with the exit code `how`, or by `sys.exit`. With `spared`, a file, it does so once. With
    `decoder`, Pillow dies of pictures 41 wide where this teacher is loaded.
    """
    if decoder:
        Image.open = _open_deadly
    stub = make_stub(dim=dim, seconds_per_batch=seconds_per_batch)
    return DeadlyTeacher(stub, text, black, str(how), spared, batches)
