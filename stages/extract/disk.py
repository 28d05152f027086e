"""Estimates the bytes that an extract will still write: pure functions of the planned and the committed parts."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache_schema.cache import Cache
from cache_schema.errors import EnvironmentProblem, PipelineError
from cache_schema.features import feature_format
from cache_schema.layout import Modality
from cache_schema.pixels import PixelsRecipe
from cache_schema.plan import Part, Plan, Span
from cache_schema.records import HASH_BYTES, committed_parts
from cache_schema.view_checks import VIEW_CHECK_BYTES
from stages.extract.config import ExtractConfig
from stages.extract.wanted import WantedArray
from stages.files.free_disk import free_bytes
from stages.images.stored import PixelRule
from stages.search.index import index_bytes
from stages.sources import open_source

TABLE_BYTES = 3_000
"""A sample table of one row: mostly its schema."""

DEFAULT_ROW_BYTES: Mapping[Modality, float] = {"image": 48.0, "text": 64.0}
"""Bytes of a row in a sample table where none has been measured: a digest, a key, and half of a sentence."""

_PIXEL_FILE_BYTES = 2_000
_PIXEL_ROW_BYTES = 24
_SOURCES_LOOKED_AT = 8
_SAMPLES_LOOKED_AT = 16
_RECORD_BYTES = 750
_RECORD_BYTES_PER_CHUNK = 15
_ARRAY_BYTES = 16_384
_PLAN_BYTES_PER_PART = 90
_PLAN_BYTES_PER_SOURCE = 400
_BLOCK_BYTES = 4_096


@dataclass(frozen=True)
class PendingArray:
    """The pending parts of one array.

    Attributes:
        modality: the modality of the array.
        name: the name of the array.
        view: 0 for sentences and for the teacher's own preprocessing.
        dim: width of a feature.
        exists: whether the array has a recipe already.
        parts: planned and not committed.
        index_rows: rows of the index that is to be built; 0 for none.
    """

    modality: Modality
    name: str
    view: int
    dim: int
    exists: bool
    parts: tuple[Part, ...]
    index_rows: int

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)


@dataclass(frozen=True)
class PendingWork:
    """The pending work of an extract.

    Attributes:
        part_rows: the rows of the cache.
        arrays: all that are wanted, those with nothing pending too.
        tables: modality -> parts whose samples no array has committed.
        num_parts: modality -> parts of the whole plan.
        num_sources: modality -> sources of the whole plan.
        pixels: parts whose pictures are to be stored and are not.
        pixels_side: shorter side of a stored picture; 0 where none is stored.
    """

    part_rows: int
    arrays: tuple[PendingArray, ...]
    tables: Mapping[Modality, tuple[Part, ...]]
    num_parts: Mapping[Modality, int]
    num_sources: Mapping[Modality, int]
    pixels: tuple[Part, ...] = ()
    pixels_side: int = 0


@dataclass(frozen=True)
class DiskEstimate:
    """Bytes that are still to be written.

    Attributes:
        features: array, named as `image/NAME` -> bytes of its shards.
        tables: modality -> bytes of its sample tables.
        hashes: row hashes and view checks.
        indexes: array -> bytes of its index.
        pixels: stored pictures.
        other: plans, recipes, probes and records.
        num_files: among which all this is divided.
    """

    features: Mapping[str, int]
    tables: Mapping[Modality, int]
    hashes: int
    indexes: Mapping[str, int]
    pixels: int
    other: int
    num_files: int

    @property
    def total_bytes(self) -> int:
        parts = (*self.features.values(), *self.tables.values(), *self.indexes.values())
        return sum(parts) + self.hashes + self.pixels + self.other

    @property
    def disk_bytes(self) -> int:
        """Returns the total with a file system's block lost on every file."""
        return self.total_bytes + self.num_files * _BLOCK_BYTES


def pending_work(
    cache: Cache,
    config: ExtractConfig,
    wanted: Sequence[WantedArray],
    plans: Mapping[Modality, Plan],
    pixels: PixelsRecipe | None,
) -> PendingWork:
    """Returns what is left to do of `wanted` and `pixels` over `plans`. Reads the names of records.

    `cache` need not be on disk; where `pixels` is None, none are stored.
    """
    arrays = [_pending_array(cache, config, array, plans[array.modality]) for array in wanted]
    tables = {}
    for modality, plan in plans.items():
        there = [cache.array(modality, name).committed for name in cache.arrays(modality)]
        have = frozenset[int]().union(*there)
        tables[modality] = tuple(part for part in plan.parts() if part.number not in have)
    have_pixels = frozenset(committed_parts(cache.layout.all_pixels))
    return PendingWork(
        cache.part_rows,
        tuple(arrays),
        tables,
        {modality: plan.num_parts for modality, plan in plans.items()},
        {modality: len(plan.sources) for modality, plan in plans.items()},
        tuple(part for part in plans["image"].parts() if part.number not in have_pixels) if pixels else (),
        PixelRule.from_json(pixels.rule).side if pixels else 0,
    )


def _pending_array(cache: Cache, config: ExtractConfig, wanted: WantedArray, plan: Plan) -> PendingArray:
    exists = wanted.name in cache.arrays(wanted.modality)
    committed = cache.array(wanted.modality, wanted.name).committed if exists else frozenset()
    parts = tuple(part for part in plan.parts() if part.number not in committed)
    has_index = any(cache.layout.indexes(wanted.modality).glob(f"{wanted.name}.*.json"))
    index_rows = plan.num_rows if config.index and not wanted.recipe.view and (parts or not has_index) else 0
    return PendingArray(wanted.modality, wanted.name, wanted.recipe.view, wanted.recipe.dim, exists, parts, index_rows)


def disk_estimate(
    work: PendingWork, *, row_bytes: Mapping[Modality, float] | None = None, picture_bytes: float | None = None
) -> DiskEstimate:
    """Returns the bytes that `work` will add to the cache.

    Shards, hashes and indexes follow from rows and widths; sample tables and pixels from bytes per row.

    Args:
        work: what is pending.
        row_bytes: modality -> bytes of one row in a sample table; the defaults where it says nothing.
        picture_bytes: of one stored picture; None assumes what a photograph of that size takes.
    """
    row_bytes = {**DEFAULT_ROW_BYTES, **(row_bytes or {})}
    features, indexes, hashes, other, num_files = {}, {}, 0, 0, 0
    for array in work.arrays:
        name, row_format = f"{array.modality}/{array.name}", feature_format(work.part_rows, array.dim)
        features[name] = len(array.parts) * row_format.shard_bytes
        hashes += array.num_rows * (HASH_BYTES + (VIEW_CHECK_BYTES if array.view else 0))
        other += len(array.parts) * (_RECORD_BYTES + _RECORD_BYTES_PER_CHUNK * row_format.num_chunks)
        other += 0 if array.exists else _ARRAY_BYTES + 64 * array.dim
        num_files += (4 if array.view else 3) * len(array.parts) + (0 if array.exists else 3)
        if array.index_rows:
            indexes[name] = index_bytes(array.index_rows, array.dim)
            num_files += 2
    tables = {}
    for modality, parts in work.tables.items():
        tables[modality] = sum(round(TABLE_BYTES + row_bytes[modality] * part.num_rows) for part in parts)
        num_files += len(parts)
        if parts:
            other += _PLAN_BYTES_PER_PART * work.num_parts[modality]
            other += _PLAN_BYTES_PER_SOURCE * work.num_sources[modality]
    each = usual_picture_bytes(work.pixels_side) if picture_bytes is None else picture_bytes
    num_pictures = sum(part.num_rows for part in work.pixels)
    pixels = len(work.pixels) * _PIXEL_FILE_BYTES + round(num_pictures * (each + _PIXEL_ROW_BYTES))
    return DiskEstimate(features, tables, hashes, indexes, pixels, other, num_files + 2 * len(work.pixels))


def usual_picture_bytes(side: int) -> float:
    """Returns about how many bytes a photograph takes as a stored picture with that shorter side."""
    return 800 + 0.36 * side**2


def most_picture_bytes(plan: Plan, side: int) -> float:
    """Returns what to assume of stored pictures before any is made: small originals are stored in less.

    Reads a few originals at the beginning of some sources. Those that cannot be read are met again, and named, by who
    needs them.
    """
    sizes: list[int] = []
    begins = {span.source: span for part in reversed(list(plan.parts())) for span in reversed(part.spans)}
    for place in sorted({i * len(plan.sources) // _SOURCES_LOOKED_AT for i in range(_SOURCES_LOOKED_AT)}):
        entry = plan.sources[place]
        with suppress(PipelineError, OSError):
            source = open_source(entry.uri, entry.kind, "image", dict(entry.options))
            span = begins.get(place, Span(place, 0, 0, 0))
            num_samples = min(span.num_samples, _SAMPLES_LOOKED_AT)
            raws = source.read(span.first_sample, num_samples, span.offset_bytes)
            sizes += [len(raw.payload) for raw in raws if raw.payload]
    # Written again in higher quality, a picture may take twice its bytes.
    return min([usual_picture_bytes(side)] + ([2 * sum(sizes) / len(sizes)] if sizes else []))


def require_free_disk(cache: Path, estimate: DiskEstimate) -> None:
    """Raises `EnvironmentProblem` when the file system of `cache` has less room than `estimate` says is needed."""
    free = free_bytes(cache)
    if estimate.disk_bytes > free:
        raise EnvironmentProblem(
            f"cache {cache} needs about {estimate.disk_bytes:,} bytes more, its file system has {free:,} bytes free: "
            "free some space there, or name a --cache on another disk; `pipeline plan` shows what takes it"
        )
