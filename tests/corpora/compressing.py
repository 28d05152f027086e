"""Compresses the small files of tests."""

import gzip
from pathlib import Path

import pyarrow as pa


def compressed(data: bytes, extension: str) -> bytes:
    """Returns `data` as a `.gz` or `.zst` file holds it."""
    return gzip.compress(data, mtime=0) if extension == ".gz" else pa.Codec("zstd").compress(data, asbytes=True)


def write_compressed(path: Path, data: bytes) -> Path:
    """Writes `data` at `path`, compressed as its name says, and returns it."""
    path.write_bytes(compressed(data, path.suffix) if path.suffix in (".gz", ".zst") else data)
    return path
