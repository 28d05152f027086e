"""Files of a cache replaced under a record that is sealed anew over them, so that every checksum is right."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from cache_schema import atomic
from cache_schema.cache import Cache, CachedArray
from cache_schema.features import feature_format
from cache_schema.json_file import Json, read_sealed, seal
from cache_schema.layout import shard_path
from cache_schema.shards import RowFormat


def reseal(path: Path, **changes: Json) -> None:
    """Replaces fields of the sealed JSON at `path`, and seals it again."""
    atomic.publish_json(path, seal({**read_sealed(path), **changes}))


def rewrite_features(array: CachedArray, part: int, change: Callable[[np.ndarray], None]) -> list[Path]:
    """Changes the features of one part; shard, chunk checksums and record agree with each other, not with the rows.

    Returns the files that were changed, as the other functions do.
    """
    rows = array.unchecked_features(part).read_part(part).copy()
    change(rows)
    shard = feature_format(array.cache.part_rows, rows.shape[1]).encode_shard(rows)
    path = shard_path(array.cache.layout.feature_array(array.modality, array.name), part)
    atomic.publish_bytes(path, shard.data)
    sha256 = hashlib.sha256(shard.data).hexdigest()
    return [path, _reseal_part(array, part, chunk_crc32c=list(shard.chunk_crc32c), shard=sha256)]


def exchange(array: CachedArray, kind: str, one: int = 0, other: int = 1) -> list[Path]:
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
    sealed = []
    for part, theirs in zip((one, other), reversed(records), strict=True):
        crcs = {"chunk_crc32c": list(theirs.chunk_crc32c)} if kind == "shard" else {}
        sealed.append(_reseal_part(array, part, **crcs, **{kind: theirs.files[kind]}))
    return [*paths, *sealed]


def shift_neighbours(cache: Cache, name: str, part: int) -> list[Path]:
    """Gives every row of one part the neighbours of the next one, and seals the record over that."""
    layout = cache.layout
    path = layout.neighbours_array(name, "ids")
    rows = slice(part * cache.part_rows, (part + 1) * cache.part_rows)
    ids = np.asarray(zarr.open_group(path.parent, mode="r")["ids"][rows])  # type: ignore[index]
    shard = RowFormat(cache.part_rows, ids.shape[1], "int64").encode_shard(np.roll(ids, -1, axis=0))
    atomic.publish_bytes(shard_path(path, part), shard.data)
    record = layout.neighbours_record(name, part)
    value = read_sealed(record)
    files = {**value["files"], "ids": hashlib.sha256(shard.data).hexdigest()}
    reseal(record, files=files, chunk_crc32c={**value["chunk_crc32c"], "ids": list(shard.chunk_crc32c)})
    return [shard_path(path, part), record]


def _reseal_part(array: CachedArray, part: int, *, chunk_crc32c: list[int] | None = None, **files: str) -> Path:
    path = array.cache.layout.record(array.modality, array.name, part)
    changed = {"files": {**read_sealed(path)["files"], **files}}
    reseal(path, **(changed if chunk_crc32c is None else {**changed, "chunk_crc32c": chunk_crc32c}))
    return path
