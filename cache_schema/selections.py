"""Selections: named lists of rows over one cache, such as the rows without duplicates. The cache itself never changes.

`selections/<name>.parquet` holds one column `row` (int64, ascending, no row twice); `<name>.json`, sealed and published
last, says what the rows were chosen from, how, and the SHA-256 of the file. A selection is bound to the parts that it
was made from: parts appended later leave it valid for its rows, other rows in one of its parts do not.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache_schema import atomic
from cache_schema.binding import Binding
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError, unknown_name
from cache_schema.json_file import Json, read_sealed, seal
from cache_schema.layout import Modality, check_name
from cache_schema.mapped import parsed_by_arrow
from cache_schema.plan import Plan
from cache_schema.reading import read_file
from cache_schema.recipe import differences
from cache_schema.sha256 import sha256_of

_SCHEMA = pa.schema([pa.field("row", pa.int64(), nullable=False)])
_REMEDY = "make it again under another name"


@dataclass(frozen=True, eq=False)
class Selection:
    """A named list of rows.

    Attributes:
        name: the name of the selection.
        binding: what the rows were chosen from.
        method: JSON that says how; the same method over the same binding gives the same rows.
        report: JSON about the outcome, for people.
        rows: int64, ascending, no row twice.
    """

    name: str
    binding: Binding
    method: Mapping[str, Json]
    report: Mapping[str, Json]
    rows: np.ndarray

    @property
    def modality(self) -> Modality:
        return self.binding.modality

    @property
    def digest(self) -> str:
        """Returns the SHA-256 over the rows as little-endian int64: what a run that trains on them is bound to."""
        return sha256_of(np.ascontiguousarray(self.rows, "<i8").tobytes())


def write_selection(cache: Cache, selection: Selection) -> None:
    """Publishes `selection` in `cache`, holding its lock; after a crash it is there whole, or not at all.

    Raises:
        UsageError: its name cannot name anything in a cache.
        MismatchError: there is another selection of that name, or the array no longer holds what was chosen from.
        LockedError: the cache is being written.
    """
    layout, name = cache.layout, check_name(selection.name, "selection")
    with cache.lock() as lock:
        _require_bound(Cache.open(cache.path), selection.binding, f"selection {name!r}")
        if layout.selection_sidecar(name).exists():
            require_same_selection(read_selection(cache, name), selection.binding, selection.method)
        data = _encoded(selection.rows)
        value = {
            "binding": asdict(selection.binding),
            "method": dict(selection.method),
            "report": dict(selection.report),
            "num_rows": len(selection.rows),
            "sha256": sha256_of(data),
        }
        atomic.make_folder(layout.all_selections)
        atomic.publish_bytes(layout.selection(name), data, fence=lock.fence)
        atomic.publish_json(layout.selection_sidecar(name), seal(value), fence=lock.fence)


def read_selection(cache: Cache, name: str) -> Selection:
    """Returns the selection `name` of `cache`.

    Raises:
        UsageError: there is none of that name.
        DamagedError: its file is not the one that was published, or its rows are not rows of the plan.
        MismatchError: a part that it was made from has other rows now.
        UnfinishedError: a part that it was made from is no longer committed.
    """
    names = cache.layout.selection_names()
    if name not in names:
        raise unknown_name(f"selection of cache {cache.path}", name, names)
    selection = _selection_at(cache, name)
    _require_bound(cache, selection.binding, f"selection {name!r}")
    return selection


def require_same_selection(then: Selection, binding: Binding, method: Mapping[str, Json]) -> None:
    """Raises `MismatchError` with the fields that differ when `then` was made otherwise than by `method`, `binding`."""
    ours = {"binding": asdict(binding), "method": dict(method)}
    theirs = {"binding": asdict(then.binding), "method": dict(then.method)}
    found = differences(ours, theirs)
    if found:
        shown = "; ".join(f"{field}: {mine!r} now, {other!r} then" for field, mine, other in found[:6])
        raise MismatchError(f"selection {then.name!r} was made otherwise ({shown}): use another name")


def describe_selections(cache: Cache) -> list[dict[str, Json]]:
    """Returns, for every selection, its name, array, rows and method, and whether it is of that array now."""
    found: list[dict[str, Json]] = []
    for name in cache.layout.selection_names():
        try:
            selection = read_selection(cache, name)
            binding, method = selection.binding, selection.method.get("name")
            of = {"array": f"{binding.modality}/{binding.array}", "rows": len(selection.rows), "method": method}
            found.append({"name": name, **of, "state": "current"})
        except (RefusedError, UsageError) as error:
            found.append({"name": name, "array": None, "rows": None, "method": None, "state": str(error)})
    return found


def verify_selections(cache: Cache, report: Callable[[Path, str, str], None]) -> None:
    """Calls `report(where, what, remedy)` for everything wrong with any selection of `cache`."""
    for name in cache.layout.selection_names():
        try:
            read_selection(cache, name)
        except (RefusedError, UsageError) as error:
            report(cache.layout.selection(name), str(error), _REMEDY)


def _selection_at(cache: Cache, name: str) -> Selection:
    sidecar, path = cache.layout.selection_sidecar(name), cache.layout.selection(name)
    value = read_sealed(sidecar)
    try:
        binding = Binding.from_json(value["binding"])
        method, report = dict(value["method"]), dict(value["report"])
        num_rows, sha256 = int(value["num_rows"]), str(value["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{sidecar} does not describe a selection ({error}): {_REMEDY}") from error
    data = read_file(path) or b""
    if sha256_of(data) != sha256:
        raise DamagedError(f"{path} is missing or not the file that was published: {_REMEDY}")
    rows = _rows_of(data, path)
    if len(rows) != num_rows:
        raise DamagedError(f"{path} has {len(rows):,} rows, its sidecar says {num_rows:,}: {_REMEDY}")
    num_parts = binding.num_parts or cache.plan(binding.modality).num_parts
    _require_planned(rows, cache.plan(binding.modality), num_parts, path)
    return Selection(name, binding, method, report, rows)


def _require_bound(cache: Cache, binding: Binding, what: str) -> None:
    binding.require_whole(cache.array(binding.modality, binding.array), what, _REMEDY)


def _require_planned(rows: np.ndarray, plan: Plan, num_parts: int, where: Path) -> None:
    """Raises `DamagedError` unless `rows` ascend, without repetition, within the first `num_parts` parts of `plan`."""
    falls = np.flatnonzero(rows[1:] <= rows[:-1])
    if len(falls):
        first, second = rows[falls[0]], rows[falls[0] + 1]
        what = f"names row {first} twice" if first == second else f"has row {second} after row {first}"
        raise DamagedError(f"{where} {what}: {_REMEDY}")
    sizes = np.zeros(num_parts + 1, np.int64)
    for part in plan.parts():
        if part.number < num_parts:
            sizes[part.number] = part.num_rows
    parts, offsets = np.divmod(rows, plan.part_rows)
    outside = (rows < 0) | (offsets >= sizes[np.clip(parts, 0, num_parts)])
    if outside.any():
        raise DamagedError(
            f"{where} names row {rows[outside][0]}, which is no row of the {num_parts} parts that it was made from: "
            f"{_REMEDY}"
        )


def _encoded(rows: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"row": np.asarray(rows, np.int64)}, schema=_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def _rows_of(data: bytes, where: Path) -> np.ndarray:
    with parsed_by_arrow(where, f"{where} is not Parquet: {_REMEDY}"):
        table = pq.read_table(pa.BufferReader(data))
    if not table.schema.equals(_SCHEMA):
        raise DamagedError(f"{where} has columns {table.schema.names}, expected one int64 column row: {_REMEDY}")
    return table.column("row").to_numpy()
