"""Mined neighbours on disk: for every row of one array the k nearest rows of another, bound to both.

`ids` (int64) and `scores` (float16, cosine) are Zarr arrays of shape (rows, k), one shard per part of the array mined
from, in `neighbours.zarr`. A row without a feature has no neighbours: its ids are -1 on disk and an error to ask for.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cache_schema import atomic, shards
from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import DamagedError, MismatchError, PipelineError, UnfinishedError, UsageError, unknown_name
from cache_schema.json_file import Json, fingerprint_of, read_sealed, seal
from cache_schema.layout import Modality, check_name, shard_path
from cache_schema.recipe import differences
from cache_schema.records import committed_parts

_DTYPES = {"ids": "int64", "scores": "float16"}


@dataclass(frozen=True)
class ArrayBinding:
    """The features of one array, as they were when something was derived from them."""

    modality: Modality
    array: str
    fingerprint: str
    digest: str

    @staticmethod
    def of(array: CachedArray) -> "ArrayBinding":
        """Returns the binding to `array` as it is now."""
        return ArrayBinding(array.modality, array.name, array.recipe.fingerprint, array.digest())


@dataclass(frozen=True)
class NeighboursRecipe:
    """What neighbours were mined from, to, and how.

    Attributes:
        from_: the array whose rows have neighbours.
        to: the array that the neighbours are rows of.
        k: neighbours per row, best first.
        index: JSON that describes the search: kind, parameters, SHA-256 of the index file.
    """

    from_: ArrayBinding
    to: ArrayBinding
    k: int
    index: dict[str, Json]

    def to_json(self) -> dict[str, Json]:
        """Returns the JSON form kept in recipe.json."""
        return {"from": asdict(self.from_), "to": asdict(self.to), "k": self.k, "index": self.index}

    @property
    def fingerprint(self) -> str:
        """Returns the SHA-256 of the JSON form; every record carries it."""
        return fingerprint_of(self.to_json())


def _recipe_at(path: Path) -> NeighboursRecipe:
    value = read_sealed(path)
    try:
        ends = ArrayBinding(**value["from"]), ArrayBinding(**value["to"])
        return NeighboursRecipe(*ends, int(value["k"]), value["index"])
    except (KeyError, TypeError) as error:
        raise DamagedError(
            f"{path} is not a recipe of neighbours ({error}): mine them again under a new name"
        ) from error


class NeighboursWriter:
    """Writes neighbours part by part; a part is there when its record is.

    Args:
        cache: that both arrays belong to.
        name: of the neighbours.
        recipe: what is being mined. Creating the writer publishes it.
        fence: of the cache's lock.

    Raises:
        UsageError: `name` cannot name anything in a cache.
        MismatchError: neighbours of that name exist with another recipe; shows the fields.
    """

    def __init__(self, cache: Cache, name: str, recipe: NeighboursRecipe, *, fence: atomic.Fence | None = None) -> None:
        self._folder = cache.layout.neighbours(check_name(name, "set of neighbours"))
        self._recipe = recipe
        self._fence = fence
        self._formats = _formats(cache.part_rows, recipe.k)
        path = self._folder / "recipe.json"
        if path.exists():
            other = differences(recipe.to_json(), _recipe_at(path).to_json())
            if other:
                shown = "; ".join(f"{field}: {mine!r} now, {theirs!r} then" for field, mine, theirs in other)
                raise MismatchError(
                    f"neighbours {name!r} of {cache.path} were mined otherwise ({shown}): use another name"
                )
        atomic.make_folder(self._folder / "records")
        num_rows = cache.plan(recipe.from_.modality).row_end
        for array, row_format in self._formats.items():
            shards.publish_array(self._folder / "neighbours.zarr" / array, row_format, num_rows, fence=fence)
        if not path.exists():
            atomic.publish_json(path, seal(recipe.to_json()), fence=fence)

    def committed(self) -> frozenset[int]:
        """Returns the numbers of the parts that need not be mined again.

        Raises:
            DamagedError: a record is damaged, or belongs to other neighbours.
        """
        return frozenset(_records_in(self._folder, self._recipe))

    def commit(self, part: int, ids: np.ndarray, scores: np.ndarray) -> None:
        """Commits one part: `ids` and `scores` of shape (planned rows of the part, k), -1 and NaN for bad rows."""
        files, chunk_crc32c = {}, {}
        for array, rows in (("ids", ids), ("scores", scores)):
            shard = self._formats[array].encode_shard(rows.astype(_DTYPES[array]))
            shards.publish_shard(self._folder / "neighbours.zarr" / array, part, shard, fence=self._fence)
            files[array] = hashlib.sha256(shard.data).hexdigest()
            chunk_crc32c[array] = list(shard.chunk_crc32c)
        record = {
            "part": part,
            "recipe": self._recipe.fingerprint,
            "num_rows": len(ids),
            "files": files,
            "chunk_crc32c": chunk_crc32c,
        }
        atomic.publish_json(self._folder / "records" / f"{part:05d}.json", seal(record), fence=self._fence)


class NeighboursReader:
    """The neighbours called `name` of an open cache.

    Raises:
        UsageError: there are none of that name.
        MismatchError: one of the two arrays has changed since.
        UnfinishedError: some parts were not mined.
    """

    def __init__(self, cache: Cache, name: str) -> None:
        self._cache = cache
        self._folder = cache.layout.neighbours(name)
        names = [path.name for path in cache.layout.all_neighbours.glob("*") if (path / "recipe.json").exists()]
        if name not in names:
            raise unknown_name(f"neighbours of cache {cache.path}", name, names)
        self.recipe = _recipe_at(self._folder / "recipe.json")
        self._from = cache.array(self.recipe.from_.modality, self.recipe.from_.array)
        self._to = cache.array(self.recipe.to.modality, self.recipe.to.array)
        for bound in (self.recipe.from_, self.recipe.to):
            now = ArrayBinding.of(cache.array(bound.modality, bound.array))
            if now != bound:
                raise MismatchError(
                    f"neighbours {name!r} were mined when {bound.modality} {bound.array} had digest "
                    f"{bound.digest[:12]}, it has {now.digest[:12]}: mine again under a new name"
                )
        missing = self._from.committed - self._records.keys()
        if missing:
            raise UnfinishedError(
                f"neighbours {name!r} lack {len(missing)} of {len(self._from.committed)} parts: "
                "run `pipeline mine` again"
            )

    @property
    def k(self) -> int:
        """Returns the number of neighbours per row."""
        return self.recipe.k

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Returns the neighbours of the given rows as row numbers, int64 of shape (len(rows), k), best first.

        Raises:
            UsageError: a row has no feature and so no neighbours.
            DamagedError: a neighbour is no row of the array that was mined.
        """
        ids = self._reader("ids").gather(rows)
        if (ids < 0).any():
            row = np.asarray(rows)[(ids < 0).any(axis=1)][0]
            raise UsageError(f"row {row} has no feature, so no neighbours: ask for ok rows only")
        if ids.size and ids.max() >= self._to.plan.row_end:
            raise DamagedError(
                f"neighbours in {self._folder} name row {ids.max()} of {self._to}, which ends at row "
                f"{self._to.plan.row_end - 1}: mine them again under a new name"
            )
        return ids

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Returns the cosines that belong to `ids`, float16 of shape (len(rows), k), descending."""
        return self._reader("scores").gather(rows)

    @cached_property
    def _records(self) -> dict[int, dict[str, Json]]:
        return _records_in(self._folder, self.recipe)

    @cached_property
    def _readers(self) -> dict[str, shards.RowReader]:
        formats = _formats(self._cache.part_rows, self.k)
        return {
            array: shards.RowReader(
                self._folder / "neighbours.zarr" / array,
                row_format,
                num_rows=self._from.plan.row_end,
                commits={part: tuple(record["chunk_crc32c"][array]) for part, record in self._records.items()},
            )
            for array, row_format in formats.items()
        }

    def _reader(self, array: str) -> shards.RowReader:
        return self._readers[array]


def verify_neighbours(cache: Cache, report: Callable[[Path, str, str], None]) -> None:
    """Calls `report(where, what, remedy)` for everything wrong with any neighbours of `cache`."""
    remedy = "run `pipeline mine` again under a new name"
    for folder in sorted(cache.layout.all_neighbours.glob("*/")):
        if not (folder / "recipe.json").exists() and not committed_parts(folder / "records"):
            continue  # Interrupted before anything was mined.
        try:
            reader = NeighboursReader(cache, folder.name)
        except PipelineError as error:
            report(folder, str(error), remedy)
            continue
        for part, record in reader._records.items():
            for array, sha256 in record["files"].items():
                path = shard_path(folder / "neighbours.zarr" / array, part)
                if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                    report(path, "is missing or not the shard that was committed", remedy)
        formats = _formats(cache.part_rows, reader.k)
        expected = {name: shape.array_metadata(reader._from.plan.row_end) for name, shape in formats.items()}
        for array, metadata in {**expected, ".": shards.GROUP_METADATA}.items():
            path = folder / "neighbours.zarr" / array / "zarr.json"
            if not path.exists() or path.read_bytes() != metadata:
                report(path, "is missing or not the metadata of these neighbours", remedy)


def _formats(part_rows: int, k: int) -> dict[str, shards.RowFormat]:
    return {array: shards.RowFormat(part_rows, k, dtype) for array, dtype in _DTYPES.items()}


def _records_in(folder: Path, recipe: NeighboursRecipe) -> dict[int, dict[str, Json]]:
    fingerprint = recipe.fingerprint
    return {part: _record_at(folder, part, fingerprint) for part in committed_parts(folder / "records")}


def _record_at(folder: Path, part: int, fingerprint: str) -> dict[str, Json]:
    path = folder / "records" / f"{part:05d}.json"
    record = read_sealed(path)
    if (
        record.get("part") != part
        or record.get("recipe") != fingerprint
        or set(record.get("files", {})) != set(_DTYPES)
    ):
        raise DamagedError(
            f"{path} is not the record of part {part} of these neighbours: mine them again under a new name"
        )
    return record
