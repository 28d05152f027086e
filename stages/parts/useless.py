"""Sources of which not one row is usable: accounted for, row by row, and yet not what anybody meant."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cache_schema.cache import CachedArray
from cache_schema.errors import RefusedError
from cache_schema.json_file import Json
from cache_schema.layout import Modality
from cache_schema.plan import Plan
from stages.parts.job import NamedSources, PartsJob

_MOST_SHOWN = 3


@dataclass(frozen=True)
class UselessSource:
    """A source without one ok row.

    Attributes:
        modality: of its rows.
        uri: as planned.
        num_rows: that it has.
        status: the commonest among them.
        reason: that goes with it most often.
        num_alike: how many have both.
        key: of one of these.
        has_files: its samples are files of their own, which can be mended one by one.
    """

    modality: Modality
    uri: str
    num_rows: int
    status: str
    reason: str
    num_alike: int
    key: str
    has_files: bool = False

    def __str__(self) -> str:
        why = f"{self.status}: {self.reason}" if self.reason else self.status
        return f"{self.uri} ({self.num_alike:,} of {self.num_rows:,} are {why}, such as {self.key!r})"

    def to_json(self) -> dict[str, Json]:
        """Returns the fields, as JSON."""
        return asdict(self)


def useless_sources(job: "PartsJob[Any]") -> list[UselessSource]:
    """Returns those of the sources that a finished `job` names of which all rows are committed and none is ok."""
    found = []
    for modality, (first, *_) in job.arrays.items():
        array = job.cache.array(modality, first.name)
        found += [_useless(array, number) for number in _without_ok_row(array, job.sources[modality].numbers)]
    return found


def useless_refused(sources: Sequence[UselessSource], *, is_import: bool = False) -> RefusedError:
    """Returns the error that names `sources`, at least one, of an extract or an import."""
    named = "; ".join(map(str, sources[:_MOST_SHOWN]))
    more = f"; and {len(sources) - _MOST_SHOWN} more" if len(sources) > _MOST_SHOWN else ""
    remedy = (
        f"run again with --retry-bad {sources[0].status}" if sources[0].has_files else "run again with --accept-new"
    )
    mended = "import into a new cache" if is_import else remedy
    return RefusedError(
        f"not one row is usable of {named}{more}: mend it and {mended}, leave it out, or say --allow-useless-sources"
    )


def ignored_by(plan: Plan, named: NamedSources) -> dict[str, int]:
    """Returns what the named sources of `plan` hold beside their samples: extension or kind -> how many."""
    total: Counter[str] = Counter()
    for number in named.numbers:
        total.update(plan.sources[number].ignored)
    return dict(total.most_common())


def _without_ok_row(array: CachedArray, numbers: frozenset[int]) -> list[int]:
    """Returns those sources among `numbers` that have rows, all committed and all bad."""
    sources = array.plan.sources
    named = {number for number in numbers if sources[number].replaced_by is None}
    planned: set[int] = set()
    usable: set[int] = set()
    for part in array.plan.parts():
        offset = 0
        bad: Sequence[int] | None = array.record(part.number).bad if part.number in array.committed else None
        for span in part.spans:
            end = offset + span.num_samples
            planned.add(span.source)
            if bad is None or bisect_left(bad, end) - bisect_left(bad, offset) < span.num_samples:
                usable.add(span.source)
            offset = end
    return sorted(named & planned - usable)


def _useless(array: CachedArray, number: int) -> UselessSource:
    alike: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    for part in array.plan.parts():
        outcome: Sequence[tuple[int, str, str, str]] = ()
        offset = 0
        for span in part.spans:
            if span.source == number:
                outcome = outcome or array.outcome(part.number)
                for _, key, status, reason in outcome[offset : offset + span.num_samples]:
                    alike[status, reason] += 1
                    example.setdefault((status, reason), key)
            offset += span.num_samples
    (status, reason), num_alike = alike.most_common(1)[0]
    key = example[status, reason]
    entry = array.plan.sources[number]
    return UselessSource(
        array.modality, entry.uri, alike.total(), status, reason, num_alike, key, has_files="newest_ns" in entry.state
    )
