"""Mined neighbours on disk: for every row of one array the k nearest rows of another, bound to both.

`ids` (int64) and `scores` (float16, cosine) are Zarr arrays of shape (rows, k), one shard per part of the array mined
from. A row without a feature has no neighbours: its ids are -1 on disk and an error to ask for.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from cache_schema import atomic, shards
from cache_schema.binding import Binding
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, RefusedError, UnfinishedError, UsageError, unknown_name
from cache_schema.json_file import Json, fingerprint_of, read_sealed, seal
from cache_schema.layout import Layout, check_name, metadata_path, shard_path
from cache_schema.mined_rows import MinedRows
from cache_schema.recipe import differences
from cache_schema.records import committed_parts
from cache_schema.sha256 import sha256_of, sha256_of_file

ArrayName = Literal["ids", "scores"]

_DTYPES: dict[ArrayName, str] = {"ids": "int64", "scores": "float16"}


@dataclass(frozen=True)
class NeighboursRecipe:
    """The two arrays of some neighbours, and the search that found them.

    Attributes:
        from_: the array whose rows have neighbours.
        to: the array that the neighbours are rows of.
        k: neighbours per row, best first.
        index: JSON that describes the search: kind, parameters, SHA-256 of the index file.
        earlier: fingerprints of the recipes before parts were appended to `from_`, which the records of then carry.
    """

    from_: Binding
    to: Binding
    k: int
    index: dict[str, Json]
    earlier: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Json]:
        """Returns the JSON that the fingerprint covers."""
        return {"from": _end(self.from_), "to": _end(self.to), "k": self.k, "index": self.index}

    @property
    def fingerprint(self) -> str:
        """Returns the SHA-256 of `identity`; every record carries it."""
        return fingerprint_of(self.identity)

    def to_json(self) -> dict[str, Json]:
        """Returns the JSON form kept in recipe.json."""
        return {**self.identity, "earlier": list(self.earlier)} if self.earlier else self.identity


def _end(binding: Binding) -> dict[str, Json]:
    # The number of parts follows from the digest; the first neighbours do not say it.
    return {name: value for name, value in asdict(binding).items() if name != "num_parts"}


def _recipe_at(path: Path) -> NeighboursRecipe:
    value = read_sealed(path)
    try:
        ends = Binding.from_json(value["from"]), Binding.from_json(value["to"])
        if type(value["k"]) is not int or value["k"] < 1:
            raise ValueError(f"k is {value['k']!r}")
        return NeighboursRecipe(*ends, value["k"], value["index"], tuple(value.get("earlier", ())))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{path} is not a recipe of neighbours ({error}): mine them again under a new name"
        ) from error


def begun_recipe(layout: Layout, name: str) -> NeighboursRecipe | None:
    """Returns the recipe of the neighbours `name`; None where they have no part yet."""
    path = layout.neighbours_recipe(name)
    return _recipe_at(path) if path.exists() and committed_parts(layout.neighbours_records(name)) else None


class NeighboursWriter:
    """Writes neighbours part by part; a part is there when its record is.

    Where parts were appended to the array that has the neighbours, and nothing else is different, the parts that are
    there stay and the new ones are pending. Nothing is written before the first part is committed; a recipe without a
    part, which a killed run may leave, gives way to another.

    Args:
        cache: that both arrays belong to.
        name: the name of the neighbours.
        recipe: what is being mined.
        fence: the fence of the cache's lock.

    Raises:
        UsageError: `name` cannot name anything in a cache.
        MismatchError: neighbours of that name exist with another recipe; shows the fields.
    """

    def __init__(self, cache: Cache, name: str, recipe: NeighboursRecipe, *, fence: atomic.Fence | None = None) -> None:
        self._layout = cache.layout
        self._name = check_name(name, "set of neighbours")
        self._fence = fence
        self._formats = _formats(cache.part_rows, recipe.k)
        self._num_rows = cache.plan(recipe.from_.modality).row_end
        self._stored = begun_recipe(cache.layout, name)
        self._recipe = recipe if self._stored is None else _continued(cache, name, recipe, self._stored)

    def committed(self) -> frozenset[int]:
        """Returns the numbers of the parts that need not be mined again.

        Raises:
            DamagedError: a record is damaged, or belongs to other neighbours.
        """
        return frozenset(_records_of(self._layout, self._name, self._recipe))

    def commit(self, part: int, ids: np.ndarray, scores: np.ndarray) -> None:
        """Commits one part: `ids` and `scores` of shape (planned rows of the part, k), -1 and NaN for bad rows."""
        self._publish_recipe()
        files, chunk_crc32c = {}, {}
        given: dict[ArrayName, np.ndarray] = {"ids": ids, "scores": scores}
        for array, rows in given.items():
            shard = self._formats[array].encode_shard(rows.astype(_DTYPES[array]))
            shards.publish_shard(self._layout.neighbours_array(self._name, array), part, shard, fence=self._fence)
            files[array] = sha256_of(shard.data)
            chunk_crc32c[array] = list(shard.chunk_crc32c)
        record = {
            "part": part,
            "recipe": self._recipe.fingerprint,
            "num_rows": len(ids),
            "files": files,
            "chunk_crc32c": chunk_crc32c,
        }
        atomic.publish_json(self._layout.neighbours_record(self._name, part), seal(record), fence=self._fence)

    def _publish_recipe(self) -> None:
        """Publishes what all parts share, the recipe last; does nothing the second time."""
        if self._stored == self._recipe:
            return
        atomic.make_folder(self._layout.neighbours_records(self._name))
        for array, row_format in self._formats.items():
            folder = self._layout.neighbours_array(self._name, array)
            shards.publish_array(folder, row_format, self._num_rows, fence=self._fence)
        path = self._layout.neighbours_recipe(self._name)
        atomic.publish_json(path, seal(self._recipe.to_json()), fence=self._fence)
        self._stored = self._recipe


class NeighboursReader:
    """The neighbours called `name` of an open cache. Parts appended to the other array leave them as they are.

    Raises:
        UsageError: there are none of that name.
        MismatchError: one of the two arrays has changed since.
        UnfinishedError: some parts were not mined.
    """

    def __init__(self, cache: Cache, name: str) -> None:
        self._cache = cache
        self._name = name
        names = neighbours_names(cache.layout)
        if name not in names:
            raise unknown_name(f"neighbours of cache {cache.path}", name, names)
        self.recipe = _recipe_at(cache.layout.neighbours_recipe(name))
        self._from = cache.array(self.recipe.from_.modality, self.recipe.from_.array)
        self._to = cache.array(self.recipe.to.modality, self.recipe.to.array)
        what, remedy = f"neighbours {name!r}", "mine again under a new name"
        self.recipe.from_.require_whole(self._from, what, remedy)
        self._num_parts_of_to = self.recipe.to.require_whole(self._to, what, remedy)
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
            DamagedError: a neighbour is no row with a feature, or the two are not as near as was stored.
        """
        ids = self._reader("ids").gather(rows)
        if (ids < 0).any():
            row = np.asarray(rows)[(ids < 0).any(axis=1)][0]
            raise UsageError(f"row {row} has no feature, so no neighbours: ask for ok rows only")
        return ids

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Returns the cosines that belong to `ids`, float16 of shape (len(rows), k), descending; NaN for bad rows."""
        # Whoever reads ids checks both.
        self._reader("ids").gather(rows)
        return self._reader("scores").gather(rows)

    @cached_property
    def _records(self) -> dict[int, dict[str, Json]]:
        return _records_of(self._cache.layout, self._name, self.recipe)

    @cached_property
    def _readers(self) -> dict[ArrayName, shards.RowReader]:
        formats = _formats(self._cache.part_rows, self.k)
        return {
            array: shards.RowReader(
                self._cache.layout.neighbours_array(self._name, array),
                row_format,
                num_rows=self._from.plan.row_end,
                commits={part: tuple(record["chunk_crc32c"][array]) for part, record in self._records.items()},
                checks=self._check_of if array == "ids" else None,
            )
            for array, row_format in formats.items()
        }

    def _check_of(self, part: int) -> shards.RowCheck:
        where = f"neighbours in {self._cache.layout.neighbours(self._name)}"
        return MinedRows(where, part, self._from, self._to, self._can_be_found, self._reader("scores")).require

    @cached_property
    def _can_be_found(self) -> np.ndarray:
        """Whether a row of the array that was mined had a feature then, by row number."""
        rows = self._to.ok_rows()
        found = np.zeros(self._to.plan.row_end, bool)
        found[rows[rows < self._num_parts_of_to * self._cache.part_rows]] = True
        return found

    def _reader(self, array: ArrayName) -> shards.RowReader:
        return self._readers[array]


def neighbours_names(layout: Layout) -> list[str]:
    """Returns the names of the neighbours of a cache, sorted."""
    return [name for name in layout.neighbours_names() if layout.neighbours_recipe(name).exists()]


def describe_neighbours(cache: Cache) -> list[dict[str, Json]]:
    """Returns, for all neighbours, their name, both arrays, k, and whether they are of these arrays now."""
    found: list[dict[str, Json]] = []
    for name in neighbours_names(cache.layout):
        try:
            recipe = NeighboursReader(cache, name).recipe
            ends = {side: f"{end.modality}/{end.array}" for side, end in (("from", recipe.from_), ("to", recipe.to))}
            found.append({"name": name, **ends, "k": recipe.k, "state": "current"})
        except (RefusedError, UsageError) as error:
            found.append({"name": name, "from": None, "to": None, "k": None, "state": str(error)})
    return found


def verify_neighbours(cache: Cache, report: Callable[[Path, str, str], None]) -> None:
    """Calls `report(where, what, remedy)` for everything wrong with any neighbours of `cache`."""
    remedy = "run `pipeline mine` again under a new name"
    layout = cache.layout
    for name in layout.neighbours_names():
        if not layout.neighbours_recipe(name).exists() and not committed_parts(layout.neighbours_records(name)):
            continue  # Interrupted before anything was mined.
        try:
            reader = NeighboursReader(cache, name)
        except (RefusedError, UsageError) as error:
            report(layout.neighbours(name), str(error), remedy)
            continue
        for part, record in reader._records.items():
            paths = {array: shard_path(layout.neighbours_array(name, array), part) for array in _DTYPES}
            damaged = [path for array, path in paths.items() if sha256_of_file(path) != record["files"][array]]
            for path in damaged:
                report(path, "is missing or not the shard that was committed", remedy)
            if damaged:
                continue
            try:
                reader.scores(np.array([part * cache.part_rows]))
            except RefusedError as error:
                report(layout.neighbours_record(name, part), str(error), remedy)
        expected = {layout.neighbours_group(name): shards.GROUP_METADATA}
        for array, row_format in _formats(cache.part_rows, reader.k).items():
            expected[layout.neighbours_array(name, array)] = row_format.array_metadata(reader._from.plan.row_end)
        for folder, metadata in expected.items():
            path = metadata_path(folder)
            if not path.exists() or path.read_bytes() != metadata:
                report(path, "is missing or not the metadata of these neighbours", remedy)


def _continued(cache: Cache, name: str, now: NeighboursRecipe, then: NeighboursRecipe) -> NeighboursRecipe:
    """Returns the recipe under which mining goes on where it was begun as `then`; raises `MismatchError`."""
    if now.identity == then.identity:
        return then
    if replace(now, from_=then.from_).identity == then.identity:
        array = cache.array(then.from_.modality, then.from_.array)
        then.from_.require_whole(array, f"neighbours {name!r}", "mine again under a new name")
        return replace(now, earlier=(*then.earlier, then.fingerprint))
    other = differences(now.identity, then.identity)
    shown = "; ".join(f"{field}: {mine!r} now, {theirs!r} then" for field, mine, theirs in other)
    raise MismatchError(f"neighbours {name!r} of {cache.path} were mined otherwise ({shown}): use another name")


def _formats(part_rows: int, k: int) -> dict[ArrayName, shards.RowFormat]:
    return {array: shards.RowFormat(part_rows, k, dtype) for array, dtype in _DTYPES.items()}


def _records_of(layout: Layout, name: str, recipe: NeighboursRecipe) -> dict[int, dict[str, Json]]:
    fingerprints = {recipe.fingerprint, *recipe.earlier}
    parts = committed_parts(layout.neighbours_records(name))
    return {part: _record_at(layout.neighbours_record(name, part), part, fingerprints) for part in parts}


def _record_at(path: Path, part: int, fingerprints: set[str]) -> dict[str, Json]:
    record = read_sealed(path)
    files, crcs = record.get("files"), record.get("chunk_crc32c")
    whole = (
        isinstance(files, dict)
        and isinstance(crcs, dict)
        and files.keys() == crcs.keys() == _DTYPES.keys()
        and all(isinstance(of_chunks, list) for of_chunks in crcs.values())
    )
    if not whole or record.get("part") != part or record.get("recipe") not in fingerprints:
        raise DamagedError(
            f"{path} is not the record of part {part} of these neighbours: mine them again under a new name"
        )
    return record
