"""An open feature cache: which arrays it has, what is done, and its features, texts and samples."""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from cache_schema import atomic
from cache_schema.committed_rows import COLUMNS, CommittedRows, outcome_of
from cache_schema.errors import DamagedError, MismatchError, RefusedError, UnfinishedError, UsageError, unknown_name
from cache_schema.features import FeatureReader, feature_format
from cache_schema.json_file import Json, read_sealed, seal
from cache_schema.layout import MODALITIES, Layout, Modality, record_path, row_hashes_path
from cache_schema.lock import WriterLock
from cache_schema.plan import Part, Plan, read_plan
from cache_schema.read_once import ReadOnce
from cache_schema.reading import read_file
from cache_schema.recipe import Recipe
from cache_schema.records import HASH_BYTES, Record, committed_parts, logical_digest, read_record
from cache_schema.samples import ImageLocation, read_table
from cache_schema.sha256 import sha256_of
from cache_schema.shards import RowCheck, check_part_rows

FORMAT = 1


def create_cache(path: Path, part_rows: int) -> "Cache":
    """Creates an empty cache in the missing or empty folder `path`, and returns it, or one just made there, open.

    Raises:
        UsageError: `part_rows` breaks the rule of `check_part_rows`.
        RefusedError: the folder holds something else; nothing was touched.
        EnvironmentProblem: it cannot be written.
    """
    check_part_rows(part_rows)
    layout = Layout(path.absolute())
    is_taken = path.exists() and (not path.is_dir() or any(not p.name.startswith(".") for p in path.iterdir()))
    if layout.cache_json.exists():
        return Cache.open(path)
    if is_taken:
        raise RefusedError(f"{path} exists and is not a feature cache: choose another --cache, or empty it yourself")
    atomic.make_folder(layout.root)
    tools = {name: version(name) for name in ("pyarrow", "numpy")}
    atomic.publish_json(layout.cache_json, seal({"format": FORMAT, "part_rows": part_rows, "tools": tools}))
    return Cache.open(path)


class Cache:
    """A feature cache on disk, opened for reading. Works on read-only media.

    Opening reads cache.json alone; plans, recipes and records are read and checked the first time they are needed.
    """

    def __init__(self, layout: Layout, part_rows: int) -> None:
        self.layout = layout
        self.part_rows = part_rows
        self._arrays: dict[tuple[Modality, str], CachedArray] = {}
        self._read_once = ReadOnce()

    @staticmethod
    def open(path: str | Path) -> "Cache":
        """Returns the cache at `path`.

        Raises:
            UsageError: there is no cache.
            DamagedError: cache.json is damaged.
            RefusedError: the cache was made by a newer format.
        """
        layout = Layout(Path(path).absolute())
        if not layout.cache_json.exists():
            raise UsageError(f"{path} holds no feature cache (no cache.json): make one with `pipeline extract`")
        value = read_sealed(layout.cache_json)
        if value.get("format") != FORMAT:
            raise RefusedError(
                f"{path} has cache format {value.get('format')}, this version reads {FORMAT}: upgrade the pipeline"
            )
        return Cache(layout, check_part_rows(value["part_rows"]))

    def reopened(self) -> "Cache":
        """Returns the cache as it is on disk now; plans and records that have not changed are not read again."""
        cache = Cache.open(self.path)
        cache._read_once = self._read_once
        return cache

    @property
    def path(self) -> Path:
        return self.layout.root

    @property
    def modalities(self) -> list[Modality]:
        """Returns the modalities that have a plan."""
        return [modality for modality in MODALITIES if self.layout.plan(modality).exists()]

    def lock(self) -> WriterLock:
        """Returns the context manager that makes this process the cache's only writer."""
        return WriterLock(self.layout.lock_json, f"cache {self.path}")

    def plan(self, modality: Modality) -> Plan:
        """Returns the plan of `modality`, an empty one where nothing was planned."""
        path = self.layout.plan(modality)
        if not path.exists():
            return Plan(modality, self.part_rows)
        return self._read_once.get(path, lambda path: read_plan(path, modality, self.part_rows))

    def arrays(self, modality: Modality) -> list[str]:
        """Returns the names of the arrays of `modality`, sorted."""
        return [name for name in self.layout.array_names(modality) if self.layout.recipe(modality, name).exists()]

    def array(self, modality: Modality, name: str | None = None) -> "CachedArray":
        """Returns the array of `modality` called `name`, or the only one of view 0 when `name` is None.

        Raises:
            UsageError: there is no such array, or several and no name.
        """
        names = self.arrays(modality)
        if name is None:
            if len(names) != 1:
                names = [name for name in names if self.array(modality, name).recipe.view == 0]
            if len(names) != 1:
                listed = ", ".join(names) or "none"
                raise UsageError(
                    f"cache {self.path} has {len(names)} {modality} arrays ({listed}): "
                    + ("name one" if names else f"run `pipeline extract` with {modality}s first")
                )
            name = names[0]
        if name not in names:
            raise unknown_name(f"{modality} array of cache {self.path}", name, names)
        if (modality, name) not in self._arrays:
            self._arrays[modality, name] = CachedArray(self, modality, name)
        return self._arrays[modality, name]

    def samples(self, modality: Modality, part: int) -> pa.Table:
        """Returns the sample table of `part`, checked against the SHA-256 in the records of every array that has it.

        Raises:
            UnfinishedError: no array has committed the part.
            DamagedError: the table is not the one that was committed.
        """
        return self._tables(modality, part)

    def sample_rows(self, modality: Modality, rows: np.ndarray, columns: Sequence[str]) -> list[dict[str, Json]]:
        """Returns the given columns of the given rows, one dict per row, in the order asked; errors as `samples`."""
        rows = np.asarray(rows, np.int64)
        found: list[dict[str, Json]] = [{}] * len(rows)
        parts, offsets = np.divmod(rows, self.part_rows)
        for part in np.unique(parts):
            places = np.flatnonzero(parts == part)
            table = self.samples(modality, int(part)).select(list(columns)).take(pa.array(offsets[places]))
            for place, row in zip(places, table.to_pylist(), strict=True):
                found[place] = row
        return found

    def texts(self, rows: np.ndarray) -> list[str]:
        """Returns the sentences of the given ok text rows, in the order asked."""
        return [row["text"] for row in self.sample_rows("text", rows, ["text"])]

    def keys(self, modality: Modality, rows: np.ndarray) -> list[str]:
        """Returns the keys of the given rows, in the order asked."""
        return [row["key"] for row in self.sample_rows(modality, rows, ["key"])]

    def locations(self, rows: np.ndarray) -> list[ImageLocation]:
        """Returns where the original bytes of the given ok image rows are, in the order asked."""
        sources = self._image_plan.sources
        columns = ["key", "source", "offset_bytes", "size_bytes", "digest", "width", "height"]
        found = []
        for row in self.sample_rows("image", rows, columns):
            source = sources[row.pop("source")]
            found.append(ImageLocation(source.uri, source.kind, dict(source.options), **row))
        return found

    def read_record(self, path: Path) -> Record:
        """Returns the record at `path`, parsed once for as long as the file stays the same; errors as `read_record`."""
        return self._read_once.get(path, read_record)

    @cached_property
    def _image_plan(self) -> Plan:
        return self.plan("image")

    @cached_property
    def _tables(self):  # type: ignore[no-untyped-def]
        return lru_cache(maxsize=64)(self.read_samples)

    def read_samples(self, modality: Modality, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns a sample table, or some columns with `row`, and remembers nothing; errors as `samples`."""
        stored = {
            array.record(part).files["samples"]
            for array in (self.array(modality, name) for name in self.arrays(modality))
            if part in array.committed
        }
        path = self.layout.samples(modality, part)
        if not stored:
            raise UnfinishedError(f"part {part} of the {modality}s in {self.path} is not committed: finish extract")
        if len(stored) > 1:
            raise DamagedError(f"the records of sample table {path} contradict each other: run `pipeline verify`")
        table = read_table(path, modality, columns, sha256=stored.pop())
        planned = self.plan(modality).part(part)
        if not np.array_equal(table.column("row").to_numpy(), planned.first_row + np.arange(planned.num_rows)):
            raise DamagedError(f"sample table {path} has other rows than the plan: run `pipeline verify`")
        return table


class CachedArray:
    """One array of an open cache: its recipe, records and features."""

    def __init__(self, cache: Cache, modality: Modality, name: str) -> None:
        self.cache = cache
        self.modality = modality
        self.name = name
        self._records: dict[int, Record] = {}
        self._records_folder = cache.layout.records(modality, name)
        path = cache.layout.recipe(modality, name)
        self.recipe = Recipe.from_json(read_sealed(path), path)

    def __str__(self) -> str:
        return f"{self.modality} array {self.name} of {self.cache.path}"

    @cached_property
    def plan(self) -> Plan:
        return self.cache.plan(self.modality)

    @cached_property
    def committed(self) -> frozenset[int]:
        """Numbers of the parts that have a record."""
        folder, read = self._records_folder, self.cache.read_record
        return self.plan.recorded(committed_parts(folder), lambda part: read(record_path(folder, part)))

    def record(self, part: int) -> Record:
        """Returns the record of a committed part, checked against recipe and plan.

        Raises:
            DamagedError: the record is damaged, or its rows are not those of the plan.
            MismatchError: the part was made with another recipe.
        """
        if part not in self._records:
            self._records[part] = self._checked_record(part)
        return self._records[part]

    def _checked_record(self, part: int) -> Record:
        path = record_path(self._records_folder, part)
        record = self.cache.read_record(path)
        if record.fingerprint != self.recipe.fingerprint:
            raise MismatchError(
                f"{path} was made with recipe {record.fingerprint[:12]}, the array's is "
                f"{self.recipe.fingerprint[:12]}: run `pipeline verify` to see all damage"
            )
        if part >= self.plan.num_parts:
            raise DamagedError(f"{path} records a part that the plan does not have: restore the plan from a copy")
        planned = self.plan.part(part)
        if not self.plan.is_of_part(planned, record.num_rows, record.part_fingerprint):
            raise DamagedError(
                f"{path} accounts for other rows than the plan ({record.num_rows} against {planned.num_rows}): "
                "run `pipeline verify` to see all damage"
            )
        return record

    def records(self) -> list[Record]:
        """Returns the records of all committed parts, in part order; errors as `record`."""
        return [self.record(part) for part in sorted(self.committed)]

    def pending(self) -> list[Part]:
        """Returns the planned parts that have no record, in order."""
        return [part for part in self.plan.parts() if part.number not in self.committed]

    def require_complete(self) -> None:
        """Raises `UnfinishedError` with the progress when a planned part is not committed."""
        pending = self.pending()
        if pending or not self.committed:
            missing = ", ".join(str(part.number) for part in pending[:10])
            again = "import" if self.recipe.is_imported else "extract"
            raise UnfinishedError(
                f"{self} is unfinished: {len(self.committed)} of {self.plan.num_parts} parts are committed "
                f"(missing: {missing or 'all'}): run `pipeline {again}` again to finish it"
            )

    @property
    def num_rows(self) -> int:
        """Committed rows, good and bad."""
        return sum(record.num_rows for record in self.records())

    @property
    def num_ok(self) -> int:
        return sum(record.num_ok for record in self.records())

    @property
    def num_bad(self) -> int:
        return self.num_rows - self.num_ok

    @property
    def num_bytes(self) -> int:
        """Of the features of the committed parts."""
        return len(self.committed) * feature_format(self.cache.part_rows, self.recipe.dim).shard_bytes

    def ok_rows(self) -> np.ndarray:
        """Returns the row numbers that have a feature, int64, ascending."""
        found = [np.zeros(0, np.int64)]
        for record in self.records():
            good = np.ones(record.num_rows, bool)
            good[list(record.bad)] = False
            found.append(record.part * self.cache.part_rows + np.flatnonzero(good))
        return np.concatenate(found)

    def outcome(self, part: int) -> list[tuple[int, str, str, str]]:
        """Returns (row, key, status, reason) of every row of a committed part, as this array sees it."""
        return outcome_of(self.cache.samples(self.modality, part), self.record(part))

    def committed_rows(self, part: int) -> CommittedRows:
        """Returns what was committed of the rows of `part`; errors as `record`, `samples` and `row_hashes`."""
        table = self.cache.read_samples(self.modality, part, COLUMNS)
        return CommittedRows(f"part {part} of {self}", table, self.record(part), self.row_hashes(part))

    @cached_property
    def features(self) -> FeatureReader:
        """Returns the reader of the parts committed by now, which checks what `verify` does but the shard's SHA-256."""
        return self._reader_of(self.records(), checks=lambda part: self.committed_rows(part).require)

    def unchecked_features(self, part: int) -> FeatureReader:
        """Returns a reader of one part that judges rows by the checksums of its record alone."""
        return self._reader_of([self.record(part)], checks=None)

    def _reader_of(self, records: Sequence[Record], *, checks: Callable[[int], RowCheck] | None) -> FeatureReader:
        return FeatureReader(
            self.cache.layout.feature_array(self.modality, self.name),
            feature_format(self.cache.part_rows, self.recipe.dim),
            num_rows=self.plan.row_end,
            commits={record.part: record.chunk_crc32c for record in records},
            checks=checks,
        )

    def row_hashes(self, part: int) -> bytes:
        """Returns 16 bytes per row of a committed part; raises `DamagedError` when they are not what was committed."""
        path = row_hashes_path(self._records_folder, part)
        record = self.record(part)
        data = read_file(path) or b""
        if len(data) != HASH_BYTES * record.num_rows or sha256_of(data) != record.files["rows"]:
            raise DamagedError(f"row hashes {path} are not those that were committed: run `pipeline verify`")
        return data

    def digest(self) -> str:
        """Returns the logical digest over the committed rows, as 64 hexadecimal digits, from the stored row hashes.

        It does not depend on paths, times, codecs, part boundaries, workers, or on how often the run was killed.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return logical_digest([self.row_hashes(part) for part in sorted(self.committed)])
