"""Settings of the whole process that decide what a teacher computes, held as they were when it was loaded.

Any library may set them at any time: the precision of matrix products, autocast, the default type. Whoever computes
features sets them back before every batch. What a teacher sets by itself at every batch is a part of it; what it, or a
library beneath it, sets at one batch and not at others would make some features others than the rest. No other model of
the process computes under what one sets. Settings that choose between kernels (threads, determinism) change no feature
by more than rounding, and are not among these.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import MismatchError
from cache_schema.layout import Modality
from stages.teachers.base import Teacher

Settings = dict[str, Any]
Accessors = tuple[Callable[[], Any], Callable[[Any], None]]
"""How one setting is read, and how it is set."""

_ATTEMPTS = 2


class HeldTeacher(Teacher):
    """A teacher that computes every batch under the settings under which it was loaded; made then, by `load_held`.

    It leaves the process the settings that it found. A batch at whose end they are others than at the end of the first
    one is encoded once more.

    Raises, when it encodes:
        MismatchError: the settings are others after that too; names one, and both values.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        for name in Teacher.__annotations__:
            if name != "known_precisions":
                setattr(self, name, getattr(teacher, name))
        self._loaded_with = read_settings()
        self._left_by_first: dict[Modality, Settings] = {}

    def encode_images(self, pixels_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._held("image", lambda: self._teacher.encode_images(pixels_BCHW))

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        return self._held("text", lambda: self._teacher.encode_texts(texts))

    def count_tokens(self, texts: list[str]) -> list[int] | None:
        with _settings_kept():
            return self._teacher.count_tokens(texts)

    def token_ids(self, texts: list[str]) -> NDArray[np.int64] | None:
        with _settings_kept():
            return self._teacher.token_ids(texts)

    def _held(self, modality: Modality, encode: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        for _ in range(_ATTEMPTS):
            # A teacher may import torch no earlier than at its first batch.
            self._loaded_with = self._loaded_with or read_settings()
            with _settings_kept():
                set_settings(self._loaded_with)
                features = encode()
                left = read_settings()
            expected = self._left_by_first.setdefault(modality, left)
            changed = [name for name in left if left[name] != expected.get(name, left[name])]
            if not changed:
                return features
        raise MismatchError(
            f"{changed[0]} became {left[changed[0]]} while {self.specification} encoded {modality}s, it was "
            f"{expected[changed[0]]} after its first batch: its features may be others than those before and are not "
            "used; find the library that sets it, or set it when the teacher is made, and run again"
        )


def load_held(load: Callable[[], Teacher]) -> HeldTeacher:
    """Returns the teacher that `load` loads, held to the settings that this leaves; the process gets its own back."""
    with _settings_kept():
        return HeldTeacher(load())


@contextmanager
def _settings_kept() -> Iterator[None]:
    before = read_settings()
    try:
        yield
    finally:
        set_settings(before)


def read_settings() -> Settings:
    """Returns the settings of torch in this process and thread that change features; none where nobody imported it."""
    return {name: read() for name, (read, _) in _accessors().items()}


def set_settings(settings: Mapping[str, Any]) -> None:
    """Sets what `read_settings` returned, where it is otherwise now."""
    for name, (read, write) in _accessors().items():
        if name in settings and read() != settings[name]:
            write(settings[name])


def _accessors() -> dict[str, Accessors]:
    torch = sys.modules.get("torch")
    # Not there either while another thread is at the import.
    if torch is None or not hasattr(torch, "compile"):
        return {}
    return {
        "torch's default type": (torch.get_default_dtype, torch.set_default_dtype),
        "torch's default device": (partial(_default_device, torch), partial(_set_default_device, torch)),
        "torch's precision of float32": (partial(_float32, torch), partial(_set_float32, torch)),
        "torch's precision of sums": (partial(_sums, torch), partial(_set_sums, torch)),
        "torch's autocast on the CPU": (partial(_autocast, torch, "cpu"), partial(_set_autocast, torch, "cpu")),
        "torch's autocast on GPUs": (partial(_autocast, torch, "cuda"), partial(_set_autocast, torch, "cuda")),
    }


def _default_device(torch: Any) -> str:
    return str(torch.get_default_device())


def _set_default_device(torch: Any, device: str) -> None:
    # Without one everything is on the CPU; naming that would put a hook before every operation.
    torch.set_default_device(None if device == "cpu" else device)


def _float32(torch: Any) -> tuple[str | bool | None, ...]:
    """Returns by what float32 products are computed, as torch's older functions tell it and as its newer ones do."""
    # Not by the properties of `torch.backends`: in 2.15 the one of mkldnn sets another backend's.
    newer = (torch._C._get_fp32_precision_getter(*operation) for operation in _OPERATIONS)
    return (_legacy(torch.get_float32_matmul_precision), _legacy(_cudnn_allows_tf32), *newer)


def _set_float32(torch: Any, values: tuple[str | bool | None, ...]) -> None:
    matmul, cudnn, *newer = values
    # The older ones first, for they set the newer ones too; torch 2.15 refuses to tell them where both disagree.
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if cudnn is not None:
        torch.backends.cudnn.allow_tf32 = cudnn
    for operation, value in zip(_OPERATIONS, newer, strict=True):
        torch._C._set_fp32_precision_setter(*operation, value)


_OPERATIONS = (
    *(("generic", "all"), ("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn")),
    *(("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn")),
)
"""Backends and operations that have a precision of their own. Source: torch 2.15, torch/backends/__init__.py."""


def _legacy(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return None


def _cudnn_allows_tf32() -> bool:
    return bool(sys.modules["torch"].backends.cudnn.allow_tf32)


def _sums(torch: Any) -> tuple[bool, ...]:
    return tuple(bool(getattr(torch.backends.cuda.matmul, name)) for name in _SUMS)


def _set_sums(torch: Any, values: tuple[bool, ...]) -> None:
    for name, value in zip(_SUMS, values, strict=True):
        setattr(torch.backends.cuda.matmul, name, value)


_SUMS = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)


def _autocast(torch: Any, device: str) -> tuple[bool, Any]:
    enabled = bool(torch.is_autocast_enabled(device))
    return enabled, torch.get_autocast_dtype(device) if enabled else None


def _set_autocast(torch: Any, device: str, value: tuple[bool, Any]) -> None:
    enabled, dtype = value
    torch.set_autocast_enabled(device, enabled)
    if dtype is not None:
        torch.set_autocast_dtype(device, dtype)
