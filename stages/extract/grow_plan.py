"""From what the user points at to the plan: scans sources, finds duplicate keys, appends what is new."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cache_schema.errors import EnvironmentProblem, MismatchError, RefusedError, UsageError
from cache_schema.plan import Plan, SourceEntry
from cache_schema.progress import Progress
from stages.extract.accept_new import with_replaced
from stages.extract.source_rows import CommittedRows
from stages.files.opened import is_remote, state_of
from stages.sources import ScannedSource, Source, expand, open_source
from stages.sources.image_files import planned_now
from stages.sources.same_rows import CommittedRow, hold_the_same, look_again
from stages.sources.watch import file_state, is_same_state, state_of_source

_CHANGED = "restore it, take it as it is now with --accept-new, give new data another name, or use another --cache"


@dataclass(frozen=True)
class GrownPlan:
    """A plan with what was asked for.

    Attributes:
        plan: all that is planned now.
        named: places of the sources that were named, in the plan.
        empty: those without a sample, which are not planned.
    """

    plan: Plan
    named: frozenset[int] = frozenset()
    empty: tuple[str, ...] = ()


def grown_plan(
    plan: Plan,
    uris: Sequence[str],
    *,
    committed: CommittedRows | None = None,
    accept_new: bool = False,
    progress: Progress | None = None,
) -> GrownPlan:
    """Returns `plan` grown by the sources that `uris` name, as `grown_by`; raises also what `expand` does."""
    groups = [(uri, expand(uri, plan.modality)) for uri in uris]
    return grown_by(plan, groups, committed=committed, accept_new=accept_new, progress=progress)


def grown_by(
    plan: Plan,
    groups: Sequence[tuple[str, Sequence[Source]]],
    *,
    committed: CommittedRows | None = None,
    accept_new: bool = False,
    progress: Progress | None = None,
    scanned: Callable[[Source, ScannedSource], None] | None = None,
) -> GrownPlan:
    """Returns `plan` with a segment for those samples that it does not have; `plan` itself if it has all.

    A source is known by its place and, at another place, by its fingerprint and some rows that are compared byte for
    byte, so one that moved or was named differently is not planned twice; where it is no longer at its old place, the
    plan gets the new one. Only names and headers are read; where every file of a URI has the size and times that the
    plan knows, nothing is opened.

    Args:
        plan: so far, perhaps empty.
        groups: what was typed and the sources of the plan's modality behind it; keys are unique within a group.
        committed: what is committed of the plan's sources; None for nothing.
        accept_new: plan what a source that changed holds now, instead of refusing it.
        progress: called with (sources scanned, sources, unit).
        scanned: called with every source that had to be scanned.

    Raises:
        UsageError: a path is missing, a kind or option unknown, a folder without samples.
        MismatchError: a source that was planned has changed.
        RefusedError: a source is damaged or repeats a key, or nothing that was named has a sample.
        EnvironmentProblem: the disk, the mount or the network fails.
    """
    growth = _Growth(plan, committed, accept_new, progress)
    total = sum(len(sources) for _, sources in groups)
    done = 0
    for uri, sources in groups:
        if growth.has_all(sources):
            done += len(sources)
            continue
        scans = []
        for source in sources:
            state, scan = _scanned(source)
            scans.append((state, scan))
            if scanned is not None:
                scanned(source, scan)
            done += 1
            if progress is not None:
                progress(done, total, f"{plan.modality} sources")
        _refuse_duplicate_keys(uri, sources, [scan for _, scan in scans])
        for source, (state, scan) in zip(sources, scans, strict=True):
            growth.add(source, state, scan)
    if groups and not growth.named:
        named = ", ".join(uri for uri, _ in groups)
        raise RefusedError(f"no {plan.modality}s in {named}: point at a source that has some")
    return GrownPlan(growth.finished(), frozenset(growth.named), tuple(growth.empty))


def looked_again(
    plan: Plan,
    numbers: Iterable[int],
    committed: CommittedRows,
    *,
    accept_new: bool = False,
    tries_again: bool = False,
) -> Plan:
    """Returns `plan` with the present times of those of its sources that have new ones and still hold the same.

    A file that changed is left as it was planned, so that its parts fail, each on its own; or, with `accept_new`, is
    planned as it is now.

    Args:
        plan: as it is.
        numbers: places of the sources.
        committed: what is committed of them.
        accept_new: as `grown_by`.
        tries_again: files that were bad are read as they are now, however new.

    Raises:
        MismatchError: files behind a folder or a table of paths changed after they were read.
        EnvironmentProblem: as `look_again`.
    """
    growth = _Growth(plan, committed, accept_new, None, tries_again=tries_again)
    for number in numbers:
        entry = plan.sources[number]
        is_gone = not is_remote(entry.uri) and not os.path.exists(entry.uri)
        if entry.replaced_by is not None or is_gone or (not _has_files(entry) and growth.is_unchanged(number)):
            continue
        growth.look_again(number)
    return growth.finished()


class _Growth:
    """A plan while it grows."""

    def __init__(
        self,
        plan: Plan,
        committed: CommittedRows | None,
        accept_new: bool,
        progress: Progress | None,
        *,
        tries_again: bool = False,
    ) -> None:
        self._plan = plan
        self._committed = committed
        self._accept_new = accept_new
        self._progress = progress
        self._tries_again = tries_again
        self._new: list[tuple[SourceEntry, ScannedSource]] = []
        self._numbers = {_place(entry): at for at, entry in enumerate(plan.sources) if entry.replaced_by is None}
        self._same_scan: dict[str, list[int]] = {}
        for at, entry in enumerate(plan.sources):
            self._same_scan.setdefault(entry.fingerprint, []).append(at)
        self.named: set[int] = set()
        self.empty: list[str] = []

    def has_all(self, sources: Sequence[Source]) -> bool:
        """Returns whether all of `sources` are planned and as they were; names them then."""
        if self._accept_new and any(_has_files(entry) for entry in self._plan.sources):
            # A table of paths that is the same says nothing of the files behind it.
            return False
        numbers = [self._numbers.get(_place(source)) for source in sources]
        if any(number is None or not self.is_unchanged(number) for number in numbers):
            return False
        self.named |= {number for number in numbers if number is not None}
        return True

    def is_unchanged(self, number: int) -> bool:
        entry = self._plan.sources[number]
        return bool(file_state(entry.state)) and is_same_state(entry.state, state_of_source(entry.uri))

    def add(self, source: Source, state: dict[str, int], scan: ScannedSource) -> None:
        """Takes in a source that was named; raises `MismatchError` when it was planned and changed."""
        if not scan.num_samples:
            self.empty.append(source.uri)
            return
        entry = _entry_of(source, state, scan)
        number = self._numbers.get(_place(source))
        if number is not None and (change := self._change(number, source, entry)):
            if not self._accept_new:
                raise MismatchError(f"{source.uri} changed since it was planned ({change}): {_CHANGED}")
            number = self._replace(number, source, entry, scan)
        if number is None:
            number = self._same_elsewhere(source, entry, scan)
        if number is None:
            number = len(self._plan.sources) + len(self._new)
            self._new.append((entry, scan))
            self._same_scan.setdefault(entry.fingerprint, []).append(number)
        self.named.add(number)

    def look_again(self, number: int) -> None:
        """Takes in a source that is planned, as it is now, where it changed only as `add` allows or new is accepted."""
        planned = self._plan.sources[number]
        source = open_source(planned.uri, planned.kind, self._plan.modality, dict(planned.options))
        if self.is_unchanged(number):
            # A table of paths that is the same itself: only the files behind it may have changed.
            now = replace(planned, state={**planned.state, **planned_now()})
            if not self._change(number, source, now):
                return
        state, scan = _scanned(source)
        entry = _entry_of(source, state, scan)
        change = self._change(number, source, entry)
        if change and self._accept_new:
            self._replace(number, source, entry, scan)
        elif change and _has_files(planned):
            # No part would notice.
            raise MismatchError(f"{source.uri} changed since it was planned ({change}): {_CHANGED}")

    def finished(self) -> Plan:
        """Returns the plan with a segment for what is new."""
        if not self._new:
            return self._plan
        return self._plan.extended([entry for entry, _ in self._new], [scan.offsets for _, scan in self._new])

    def _change(self, number: int, source: Source, now: SourceEntry) -> str:
        """Returns in what a planned source is not what was planned or committed; if in nothing, notes its new times."""
        then = self._plan.sources[number]
        is_resized = "names" in now.state and now.state["names"] == then.state.get("names")
        if then.fingerprint != now.fingerprint and not is_resized:
            return (
                f"{then.num_samples:,} samples, {then.fingerprint[:12]}; now {now.num_samples:,}, "
                f"{now.fingerprint[:12]}"
            )
        has_files = _has_files(now)
        if not has_files and then.state == now.state:
            return ""
        rows = self._rows(number)
        again = look_again(source, rows, has_files=has_files)
        if again.changed:
            return f"{again.changed[0].key!r} is not what was read before"
        # A file that is newer than all that were planned has changed; unless those that were read before have new times
        # too, and the same bytes: then times mean nothing.
        keeps_newest = bool(rows) and again.newest_ns <= then.state.get("newest_ns", again.newest_ns)
        keeps_newest &= not self._tries_again
        newest = {"newest_ns": then.state["newest_ns"]} if keeps_newest and "newest_ns" in then.state else {}
        is_committed = self._committed is not None and self._committed.has(number)
        fingerprint = then.fingerprint if is_committed else now.fingerprint
        self._put(number, replace(then, state={**now.state, **newest}, fingerprint=fingerprint))
        return ""

    def _same_elsewhere(self, source: Source, entry: SourceEntry, scan: ScannedSource) -> int | None:
        """Returns the number of the source that holds the same; the plan gets its new place when it left the old."""
        num_planned = len(self._plan.sources)
        for number in self._same_scan.get(entry.fingerprint, ()):
            is_planned = number < num_planned
            other = self._plan.sources[number] if is_planned else self._new[number - num_planned][0]
            if other.replaced_by is not None:
                continue
            if not is_planned or _is_there(other):
                there = open_source(other.uri, other.kind, self._plan.modality, dict(other.options))
                if hold_the_same(there, source, scan, seed=number):
                    return number
            elif not look_again(source, self._rows(number), has_files=_has_files(entry)).changed:
                self._put(number, entry)
                return number
        return None

    def _rows(self, number: int) -> list[CommittedRow]:
        return self._committed.some(number) if self._committed is not None else []

    def _put(self, number: int, entry: SourceEntry) -> None:
        sources = self._plan.sources
        self._plan = replace(self._plan, sources=(*sources[:number], entry, *sources[number + 1 :]))
        self._numbers[_place(entry)] = number

    def _replace(self, number: int, source: Source, entry: SourceEntry, scan: ScannedSource) -> int:
        """Plans what a source that changed holds now; returns the number of the new source."""
        rows = self._committed.all(number) if self._committed is not None else ()
        new_number = len(self._plan.sources) + len(self._new)
        # What is new so far has its place first.
        self._plan, self._new = self.finished(), []
        self._plan = with_replaced(self._plan, number, rows, source, entry, scan, progress=self._progress)
        self._numbers[_place(entry)] = new_number
        self._same_scan.setdefault(entry.fingerprint, []).append(new_number)
        return new_number


def _place(source: Source | SourceEntry) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    return source.uri, source.kind, tuple(sorted(source.options.items()))


def _scanned(source: Source) -> tuple[dict[str, int], ScannedSource]:
    """Returns the state of a source and its scan; raises `MismatchError` when it changes meanwhile."""
    before = state_of_source(source.uri)
    scan = source.scan()
    if state_of_source(source.uri) != before:
        raise MismatchError(f"{source.uri} changed while it was scanned: wait until it is complete, then run again")
    return before, scan


def _entry_of(source: Source, state: dict[str, int], scan: ScannedSource) -> SourceEntry:
    return SourceEntry(
        source.uri,
        source.kind,
        scan.fingerprint,
        scan.num_samples,
        dict(source.options),
        {**state, **scan.state},
        dict(scan.ignored),
    )


def _has_files(entry: SourceEntry) -> bool:
    """Returns whether the samples of a source are files of their own, which its own state says nothing of."""
    return "newest_ns" in entry.state or entry.kind == "folder" or "path_column" in entry.options


def _is_there(entry: SourceEntry) -> bool:
    """Returns whether what a source is read from is still where it was planned."""
    places = [entry.uri, *([entry.options["root"]] if "root" in entry.options else [])]
    return all(_answers(place) if is_remote(place) else os.path.exists(place) for place in places)


def _answers(address: str) -> bool:
    try:
        return bool(state_of(address))
    except (EnvironmentProblem, RefusedError, UsageError):
        return False


def _refuse_duplicate_keys(uri: str, sources: Sequence[Source], scans: Sequence[ScannedSource]) -> None:
    """Raises `RefusedError` when a key stands twice among the sources behind one URI."""
    hashes = np.sort(np.concatenate([scan.key_hashes for scan in scans])) if scans else np.zeros(0, np.uint64)
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    if not len(repeated):
        return
    places = []
    for source, scan in zip(sources, scans, strict=True):
        places += [(source, scan, int(index)) for index in np.flatnonzero(scan.key_hashes == repeated[0])]
    (first, scan, index), (second, _, other) = places[:2]
    sample = next(iter(first.read(index, 1, scan.offset_bytes(index))))
    raise RefusedError(
        f"key {sample.key!r} stands twice: sample {index} of {first.uri} and sample {other} of {second.uri}: "
        f"rename one of them (keys must be unique within {uri})"
    )
