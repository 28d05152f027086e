"""The rows of a source that a cache has committed: where they stand in it, and the digests of their payloads."""

from collections.abc import Iterator
from functools import cached_property

from cache_schema.cache import Cache
from cache_schema.layout import Modality
from cache_schema.plan import Plan
from stages.sources.same_rows import CommittedRow, drawn

_COLUMNS = ["key", "offset_bytes", "size_bytes", "digest"]


class CommittedRows:
    """The committed rows of one modality of a cache, by source.

    Args:
        cache: open.
        modality: of the rows.
    """

    def __init__(self, cache: Cache, modality: Modality) -> None:
        self._cache = cache
        self._modality = modality
        self.plan: Plan = cache.plan(modality)

    @cached_property
    def parts(self) -> frozenset[int]:
        """Numbers of the parts that some array has committed."""
        arrays = (self._cache.array(self._modality, name) for name in self._cache.arrays(self._modality))
        return frozenset(part for array in arrays for part in array.committed)

    def has(self, source: int) -> bool:
        """Returns whether a row of the source is committed, good or bad."""
        return bool(self._places(source))

    def some(self, source: int) -> list[CommittedRow]:
        """Returns rows of the source that are drawn by its number; those without a payload are left out."""
        places = self._places(source)
        chosen = drawn(sum(count for *_, count in places), source).tolist()
        rows: list[CommittedRow] = []
        before = 0
        for part, offset, first_sample, count in places:
            wanted = [at - before for at in chosen if before <= at < before + count]
            rows += [row for row in self._rows(part, offset, first_sample, wanted) if row is not None]
            before += count
        return rows

    def all(self, source: int) -> Iterator[CommittedRow]:
        """Yields every committed row of the source that had a payload, in order."""
        for part, offset, first_sample, count in self._places(source):
            yield from (row for row in self._rows(part, offset, first_sample, list(range(count))) if row is not None)

    def _places(self, source: int) -> list[tuple[int, int, int, int]]:
        """Returns (part, offset in it, first sample, samples) of the committed spans of a source."""
        places = []
        for part in self.plan.parts():
            offset = 0
            for span in part.spans:
                if span.source == source and part.number in self.parts:
                    places.append((part.number, offset, span.first_sample, span.num_samples))
                offset += span.num_samples
        return places

    def _rows(self, part: int, offset: int, first_sample: int, wanted: list[int]) -> Iterator[CommittedRow | None]:
        if not wanted:
            return
        first_row = part * self._cache.part_rows + offset
        table = self._cache.samples(self._modality, part).select(_COLUMNS).slice(offset)
        for at, row in zip(wanted, table.take(wanted).to_pylist(), strict=True):
            known = None if row["digest"] is None else CommittedRow(first_row + at, first_sample + at, **row)
            yield known
