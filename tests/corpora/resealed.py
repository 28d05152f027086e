"""Files of a cache replaced under a record that is sealed anew over them, so that every checksum is right."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cache_schema import atomic
from cache_schema.cache import CachedArray
from cache_schema.features import feature_format
from cache_schema.json_file import Json, read_sealed, seal
from cache_schema.layout import shard_path


def reseal(path: Path, **changes: Json) -> None:
    """Replaces fields of the sealed JSON at `path`, and seals it again."""
    atomic.publish_json(path, seal({**read_sealed(path), **changes}))


def rewrite_features(array: CachedArray, part: int, change: Callable[[np.ndarray], None]) -> None:
    """Changes the features of one part; shard, chunk checksums and record agree with each other, not with the rows."""
    rows = array.unchecked_features(part).read_part(part).copy()
    change(rows)
    shard = feature_format(array.cache.part_rows, rows.shape[1]).encode_shard(rows)
    atomic.publish_bytes(shard_path(array.cache.layout.feature_array(array.modality, array.name), part), shard.data)
    _reseal_part(array, part, chunk_crc32c=list(shard.chunk_crc32c), shard=hashlib.sha256(shard.data).hexdigest())


def exchange(array: CachedArray, kind: str, one: int = 0, other: int = 1) -> None:
    """Exchanges the files `kind` ("shard", "samples" or "rows") of two parts, and seals both records over them."""
    layout, modality, name = array.cache.layout, array.modality, array.name
    places: dict[str, Callable[[int], Path]] = {
        "shard": lambda part: shard_path(layout.feature_array(modality, name), part),
        "samples": lambda part: layout.samples(modality, part),
        "rows": lambda part: layout.row_hashes(modality, name, part),
    }
    paths = places[kind](one), places[kind](other)
    contents = [path.read_bytes() for path in paths]
    records = [array.record(part) for part in (one, other)]
    for path, data in zip(paths, reversed(contents), strict=True):
        atomic.publish_bytes(path, data)
    for part, theirs in zip((one, other), reversed(records), strict=True):
        crcs = {"chunk_crc32c": list(theirs.chunk_crc32c)} if kind == "shard" else {}
        _reseal_part(array, part, **crcs, **{kind: theirs.files[kind]})


def _reseal_part(array: CachedArray, part: int, *, chunk_crc32c: list[int] | None = None, **files: str) -> None:
    path = array.cache.layout.record(array.modality, array.name, part)
    changed = {"files": {**read_sealed(path)["files"], **files}}
    reseal(path, **(changed if chunk_crc32c is None else {**changed, "chunk_crc32c": chunk_crc32c}))
