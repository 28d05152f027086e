"""A matrix of floats in a .npy file: its header is judged before anything is read, and rows are read one by one."""

import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cache_schema.errors import DamagedError, RefusedError
from stages.feature_files.base import MAX_DIM
from stages.files.opened import SourceFile, read_range

_MAX_HEADER_BYTES = 10_000
# What NumPy raises for damaged headers, which it reads as Python literals.
_HEADER_ERRORS = (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError, tokenize.TokenError)
_FLOATS = ("<f2", "<f4", "<f8")
_AGAIN = "load it where it was made and save it again as np.ascontiguousarray(features, '<f4')"


@dataclass(frozen=True)
class Matrix:
    """Shape and place of the values in a .npy file."""

    num_rows: int
    dim: int
    dtype: np.dtype
    data_offset: int

    def rows(self, uri: str, file: SourceFile, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Yields the rows with these numbers, in the order asked; neighbours in the file are read together."""
        row_bytes = self.dim * self.dtype.itemsize
        for first, count in _runs(numbers):
            data = read_range(uri, file, self.data_offset + first * row_bytes, count * row_bytes)
            yield from np.frombuffer(data, self.dtype).reshape(count, self.dim)


def matrix_of(uri: str, file: SourceFile) -> Matrix:
    """Returns what the header of a .npy file says, once it is believed.

    Raises:
        DamagedError: it is no .npy file, or has not the bytes that its header needs.
        RefusedError: it holds objects, or is no C-ordered matrix of little-endian floats.
    """
    head = io.BytesIO(file.read_at(0, _MAX_HEADER_BYTES + 16))
    try:
        version = np.lib.format.read_magic(head)
        if version not in ((1, 0), (2, 0)):
            raise RefusedError(f"{uri} is a .npy file of version {version}, not 1.0 or 2.0: {_AGAIN}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(head, max_header_size=_MAX_HEADER_BYTES)
    except RefusedError:
        raise
    except _HEADER_ERRORS as error:
        raise DamagedError(f"{uri} has no readable .npy header: it is cut or another format; fetch it again") from error
    if dtype.hasobject:
        raise RefusedError(f"{uri} holds Python objects, which only unpickling could read: {_AGAIN}")
    if dtype.str not in _FLOATS:
        raise RefusedError(f"{uri} holds {dtype.str}, not little-endian float16, float32 or float64: {_AGAIN}")
    if len(shape) != 2 or not 1 <= shape[1] <= MAX_DIM:
        raise RefusedError(f"{uri} has shape {shape}, not (rows, width) with a width of 1 to {MAX_DIM:,}: {_AGAIN}")
    if fortran_order:
        raise RefusedError(f"{uri} is stored column by column (Fortran order), so that no row can be read: {_AGAIN}")
    needed = head.tell() + shape[0] * shape[1] * dtype.itemsize
    if file.size_bytes != needed:
        raise DamagedError(
            f"{uri} has {file.size_bytes:,} bytes, its header ({shape[0]:,} rows of {shape[1]:,} {dtype.name}) needs "
            f"{needed:,}: it is cut or damaged; fetch it again"
        )
    return Matrix(shape[0], shape[1], dtype, head.tell())


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields (first, count) of the runs of consecutive numbers."""
    first, count = 0, 0
    for number in numbers:
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
