"""A teacher beneath which a library sets something for the whole process, and the specification that names it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.corpora.stub_teacher import make as make_stub

FLIPS: dict[str, Callable[[], Any]] = {
    "default type": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "precision of all backends": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "precision of one backend": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
    "autocast on GPUs": lambda: torch.set_autocast_enabled("cuda", True),
    "TF32 in convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "TF32 in products": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "sums in float16": lambda: setattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", True),
}
LAYER = torch.nn.Linear(8, 16)


class FlippingTeacher:
    """A teacher that computes by torch in what types there are, after a flip at some batches; without one, at none."""

    def __init__(self, flip: Callable[[], Any] | None = None, at: Callable[[int], bool] = bool) -> None:
        self._flip, self._at, self.num_batches = flip, at, 0
        self.right = make_stub()
        for name in ("identity", "dim", "logit_scale", "preprocess", "context_length", "tokenizer"):
            setattr(self, name, getattr(self.right, name))

    def encode_images(self, pixels_BCHW: np.ndarray) -> np.ndarray:
        return self.right.encode_images(pixels_BCHW)

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        self.num_batches += 1
        if self._flip is not None and self._at(self.num_batches):
            self._flip()
        with torch.inference_mode():
            words = torch.tensor([[len(text) / (1 + i) for i in range(8)] for text in texts], device="cpu")
            return LAYER(words.float()).float().numpy() if words.dtype == torch.float32 else np.ones((len(texts), 16))


def flips_at_load(flip: str) -> str:
    """Returns the specification of a teacher with which the flip called so comes, once, when it is loaded."""
    return f"python:tests.corpora.flipping_teacher:make?flip={flip}"


def make(flip: str) -> FlippingTeacher:
    FLIPS[flip]()
    return FlippingTeacher()
