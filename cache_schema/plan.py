"""The plan: which sources there are, and the ordered parts cut from them. Append-only.

A row is `part * part_rows + offset`. The last part of a segment may be shorter; the rows it lacks are never planned,
so that what was planned keeps its row for ever while new sources append new segments.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from cache_schema import atomic
from cache_schema.errors import DamagedError
from cache_schema.json_file import Json, fingerprint_of, read_sealed, seal
from cache_schema.layout import Modality

Offsets = Mapping[int, int] | Sequence[int] | np.ndarray


@dataclass(frozen=True)
class SourceEntry:
    """One file or folder of samples, as scanned when it was planned.

    Attributes:
        uri: absolute path it was read from. Informative: a source that moved is known by its fingerprint.
        kind: name in the registry of sources.
        fingerprint: SHA-256 over the names, places and sizes of its samples.
        num_samples: in the source.
        options: the options of its kind, such as the column of a Parquet file.
        state: size and times of a source that is one file: while these last, it need not be scanned again; and of
            files behind it the newest time.
        ignored: how many members or files of each extension are not part of any sample.
        replaced_by: place of the source that holds what this one came to hold after it was planned. The rows that are
            still planned from this one are gone.
    """

    uri: str
    kind: str
    fingerprint: str
    num_samples: int
    options: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    replaced_by: int | None = None

    def to_json(self) -> dict[str, Json]:
        """Returns the fields; those of later versions only where they say something."""
        value = asdict(self)
        for name in ("ignored", "replaced_by"):
            if value[name] in ({}, None):
                del value[name]
        return value


@dataclass(frozen=True)
class Span:
    """Consecutive samples of one source: `first_sample` starts `offset_bytes` into it (0 where that has no meaning)."""

    source: int
    first_sample: int
    num_samples: int
    offset_bytes: int


@dataclass(frozen=True)
class Part:
    """Consecutive rows that are read, encoded, committed and, if need be, repeated as one.

    Attributes:
        number: its place in the plan.
        first_row: of it.
        spans: the samples of its rows, in order.
        before: fingerprints of the part as it was planned before, whose records still hold: the same rows, found again
            in a source that changed elsewhere.
    """

    number: int
    first_row: int
    spans: tuple[Span, ...]
    before: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(span.num_samples for span in self.spans)


class PartRecord(Protocol):
    """What every record says of its part."""

    @property
    def num_rows(self) -> int: ...

    @property
    def part_fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Segment:
    """The parts that one run added to the plan."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """Sources and parts of one modality. Immutable; `extended` returns the longer plan."""

    modality: Modality
    part_rows: int
    sources: tuple[SourceEntry, ...] = ()
    segments: tuple[Segment, ...] = ()

    def parts(self) -> Iterator[Part]:
        """Yields every part, in row order."""
        return chain.from_iterable(segment.parts for segment in self.segments)

    def part(self, number: int) -> Part:
        """Returns the part with that number."""
        for segment in self.segments:
            first = segment.parts[0].number
            if first <= number < first + len(segment.parts):
                return segment.parts[number - first]
        raise KeyError(number)

    @property
    def num_parts(self) -> int:
        return sum(len(segment.parts) for segment in self.segments)

    @property
    def num_rows(self) -> int:
        """Planned samples."""
        return sum(part.num_rows for part in self.parts())

    @property
    def row_end(self) -> int:
        """One more than the last planned row: the length of the arrays. At least `num_rows`."""
        if not self.segments:
            return 0
        last = self.segments[-1].parts[-1]
        return last.first_row + last.num_rows

    def extended(
        self,
        sources: Sequence[SourceEntry],
        offsets: Sequence[Offsets],
        runs: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> "Plan":
        """Returns this plan with one more segment that holds the samples of `sources`, in their order.

        Args:
            sources: new ones.
            offsets: for each source, sample number -> byte offset, at least for the samples with which a span starts.
            runs: for each source, (first sample, samples) of those that are planned; None plans all.
        """
        parts: list[Part] = []
        spans: list[Span] = []
        room = self.part_rows
        number = self.num_parts
        runs = runs if runs is not None else [[(0, entry.num_samples)] for entry in sources]
        for source, (of_source, offset_of) in enumerate(zip(runs, offsets, strict=True), start=len(self.sources)):
            for done, num_samples in of_source:
                end = done + num_samples
                while done < end:
                    take = min(room, end - done)
                    spans.append(Span(source, done, take, int(offset_of[done])))
                    done, room = done + take, room - take
                    if room == 0:
                        parts.append(Part(number + len(parts), (number + len(parts)) * self.part_rows, tuple(spans)))
                        spans, room = [], self.part_rows
        if spans:
            parts.append(Part(number + len(parts), (number + len(parts)) * self.part_rows, tuple(spans)))
        segments = (*self.segments, Segment(tuple(parts))) if parts else self.segments
        return Plan(self.modality, self.part_rows, (*self.sources, *sources), segments)

    def part_fingerprint(self, part: Part) -> str:
        """Returns a SHA-256 that binds a record to what was planned for `part`, wherever the sources lie."""
        # Spelt out, because dataclasses.asdict copies deeply and a plan has thousands of parts.
        spans = [
            {
                "source": self.sources[span.source].fingerprint,
                "kind": self.sources[span.source].kind,
                "first_sample": span.first_sample,
                "num_samples": span.num_samples,
                "offset_bytes": span.offset_bytes,
            }
            for span in part.spans
        ]
        return fingerprint_of({"part": part.number, "first_row": part.first_row, "spans": spans})

    @cached_property
    def replanned(self) -> frozenset[int]:
        """Numbers of the parts that lie in a source that was replaced, or in one that replaced another.

        A record of such a part may be of the part as it was planned before: then it is none any more.
        """
        replaced = {number: entry.replaced_by for number, entry in enumerate(self.sources)}
        touched = {number for pair in replaced.items() if pair[1] is not None for number in pair}
        if not touched:
            return frozenset()
        return frozenset(part.number for part in self.parts() if touched & {span.source for span in part.spans})

    def recorded(self, numbers: Iterable[int], record_of: Callable[[int], PartRecord]) -> frozenset[int]:
        """Returns those of `numbers` whose records are of the parts as they are planned now.

        Others stay behind, until the next run removes them, where one was killed between planning anew and that.
        """

        def is_of_now(number: int) -> bool:
            if number not in self.replanned:
                return True
            record = record_of(number)
            return self.is_of_part(self.part(number), record.num_rows, record.part_fingerprint)

        return frozenset(filter(is_of_now, numbers))

    def is_of_part(self, part: Part, num_rows: int, part_fingerprint: str) -> bool:
        """Returns whether a record of that many rows and that fingerprint is one of `part`."""
        return num_rows == part.num_rows and part_fingerprint in (self.part_fingerprint(part), *part.before)


def write_plan(path: Path, plan: Plan, *, fence: atomic.Fence | None = None) -> None:
    """Publishes `plan` at `path`."""
    segments = [
        [
            [
                part.number,
                part.first_row,
                [list(_span_values(span)) for span in part.spans],
                *([list(part.before)] if part.before else []),
            ]
            for part in segment.parts
        ]
        for segment in plan.segments
    ]
    sources = [source.to_json() for source in plan.sources]
    value = {"modality": plan.modality, "part_rows": plan.part_rows, "sources": sources, "segments": segments}
    atomic.publish_json(path, seal(value), fence=fence)


def read_plan(path: Path, modality: Modality, part_rows: int) -> Plan:
    """Returns the plan at `path`.

    Raises:
        DamagedError: the file is missing, damaged, or inconsistent with the cache's `part_rows` or with itself.
    """
    value = read_sealed(path)
    try:
        plan = _plan_of(value)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DamagedError(f"{path} is not a plan ({error}): restore it from a copy") from error
    expected = [(number, number * part_rows) for number in range(plan.num_parts)]
    if (
        plan.modality != modality
        or plan.part_rows != part_rows
        or expected != [(part.number, part.first_row) for part in plan.parts()]
    ):
        raise DamagedError(f"{path} does not fit this cache (part rows {part_rows}): restore it from a copy")
    return plan


def _span_values(span: Span) -> tuple[int, int, int, int]:
    return span.source, span.first_sample, span.num_samples, span.offset_bytes


def _plan_of(value: dict[str, Json]) -> Plan:
    segments = tuple(
        Segment(
            tuple(
                Part(number, row, tuple(Span(*span) for span in spans), *map(tuple, before))
                for number, row, spans, *before in segment
            )
        )
        for segment in value["segments"]
    )
    sources = tuple(SourceEntry(**source) for source in value["sources"])
    return Plan(value["modality"], value["part_rows"], sources, segments)
