"""Writes tensors in the format of safetensors as a stream, without a second copy and without stopping other threads.

The library's own `save` holds the interpreter's lock while it copies all tensors (2.7 s for a gigabyte), and its
`save_file` renames a file itself, whose errors and rights are not those of `cache_schema.atomic`. Reading is the
library's.

**Source:** the format's description, https://github.com/huggingface/safetensors#format.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cache_schema import atomic

_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the format, in the order of a file: the widest come first, so that every tensor is aligned."""
_PLACES = {dtype: place for place, dtype in enumerate(_DTYPES)}
_HEADER_ALIGNMENT = 8


class Written(NamedTuple):
    """What identifies a file: its SHA-256 and its size in bytes."""

    sha256: str
    size_bytes: int


def publish_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, fence: atomic.Fence | None = None) -> Written:
    """Publishes `tensors`, on the CPU and contiguous, as the file `path`; returns what identifies it.

    The bytes are those of `safetensors.torch.save`. Errors as `atomic.publish_bytes`.
    """
    in_order = sorted(tensors.items(), key=lambda item: (_PLACES[item[1].dtype], item[0]))
    hashed, size_bytes = hashlib.sha256(), 0

    def write(file: BinaryIO) -> None:
        nonlocal size_bytes
        chunks: Iterator[bytes | memoryview] = chain([_header(in_order)], (_bytes_of(tensor) for _, tensor in in_order))
        for chunk in chunks:
            hashed.update(chunk)
            file.write(chunk)
            size_bytes += len(chunk)

    atomic.publish_stream(path, write, fence=fence)
    return Written(hashed.hexdigest(), size_bytes)


def _header(tensors: Sequence[tuple[str, torch.Tensor]]) -> bytes:
    described, end = {}, 0
    for name, tensor in tensors:
        start, end = end, end + tensor.nbytes
        described[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    array: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return array.data
