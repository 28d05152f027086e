"""Plans a source that changed as it is now: what is found again keeps its row, the rest of its rows are gone."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby

from cache_schema.plan import Part, Plan, Segment, SourceEntry, Span
from cache_schema.progress import Progress
from cache_schema.samples import digest_of
from stages.sources.base import ScannedSource, Source
from stages.sources.same_rows import CommittedRow

_ROWS_BETWEEN_SHOWS = 1024

Found = dict[int, tuple[int, bool]]
"""Row -> the sample that it is found again as, and whether that stands where the row was read from."""


def with_replaced(
    plan: Plan,
    number: int,
    rows: Iterable[CommittedRow],
    source: Source,
    entry: SourceEntry,
    scan: ScannedSource,
    *,
    progress: Progress | None = None,
) -> Plan:
    """Returns `plan` with the source `number` replaced by `entry`, which comes last among its sources.

    A committed row whose key and digest are found again keeps its number and is read from the new source from now on;
    records of a part all of whose rows are found where they were still hold. Any other row of the old source stays
    planned from it, and thereby gone. What is new gets a segment.

    Args:
        plan: so far.
        number: place of the source that changed.
        rows: the committed rows of that source.
        source: what it holds now; read once through.
        entry: `source`, for the plan.
        scan: of `source`.
        progress: called with (samples read, samples, unit).

    Raises:
        RefusedError, EnvironmentProblem: the source is damaged or cannot be read.
    """
    found = _found_again(rows, source, scan, progress)
    kept = {sample for sample, _ in found.values()}
    segments = tuple(
        Segment(tuple(_again(plan, part, number, found, scan) for part in segment.parts)) for segment in plan.segments
    )
    old = replace(plan.sources[number], replaced_by=len(plan.sources))
    sources = (*plan.sources[:number], old, *plan.sources[number + 1 :])
    plan = replace(plan, sources=sources, segments=segments)
    new = [at for at in range(scan.num_samples) if at not in kept]
    return plan.extended([entry], [scan.offsets], [list(_runs(new))])


def _found_again(rows: Iterable[CommittedRow], source: Source, scan: ScannedSource, progress: Progress | None) -> Found:
    wanted = {row.key: row for row in rows}
    found: Found = {}
    for at, raw in enumerate(source.read(0, scan.num_samples, scan.offset_bytes(0))):
        row = wanted.get(raw.key)
        if row is not None and raw.payload is not None and digest_of(raw.payload) == row.digest:
            is_there = (raw.offset_bytes, raw.size_bytes) == (row.offset_bytes, row.size_bytes)
            found[row.row] = (at, is_there)
        if progress is not None and at % _ROWS_BETWEEN_SHOWS == 0:
            progress(at, scan.num_samples, "samples compared")
    return found


def _again(plan: Plan, part: Part, number: int, found: Found, scan: ScannedSource) -> Part:
    """Returns a part with its spans of the source `number` split into those found again and those that are gone."""
    if all(span.source != number for span in part.spans):
        return part
    spans: list[Span] = []
    row = part.first_row
    is_same = True
    for span in part.spans:
        if span.source != number:
            spans.append(span)
        else:
            for first, count in _consecutive(row, span, found):
                at, _ = found.get(first, (0, False))
                if first in found:
                    spans.append(Span(len(plan.sources), at, count, scan.offset_bytes(at)))
                else:
                    spans.append(Span(number, span.first_sample + first - row, count, 0))
            is_same &= all(found.get(at, (0, False))[1] for at in range(row, row + span.num_samples))
        row += span.num_samples
    before = (*part.before, plan.part_fingerprint(part)) if is_same else ()
    return Part(part.number, part.first_row, tuple(spans), before)


def _consecutive(first_row: int, span: Span, found: Found) -> Iterator[tuple[int, int]]:
    """Yields (first row, rows) of what is found again side by side, or gone side by side, in the rows of `span`."""

    def neighbourhood(row: int) -> tuple[bool, int]:
        return (True, found[row][0] - row) if row in found else (False, 0)

    for _, rows in groupby(range(first_row, first_row + span.num_samples), key=neighbourhood):
        together = list(rows)
        yield together[0], len(together)


def _runs(samples: list[int]) -> Iterator[tuple[int, int]]:
    for _, pairs in groupby(enumerate(samples), key=lambda pair: pair[1] - pair[0]):
        run = [sample for _, sample in pairs]
        yield run[0], len(run)
