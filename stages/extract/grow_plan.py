"""From what the user points at to the plan: scans sources, finds duplicate keys, appends what is new."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cache_schema.errors import MismatchError, RefusedError, UsageError
from cache_schema.plan import Plan, SourceEntry, part_starts
from cache_schema.progress import Progress
from stages.files.opened import is_remote, state_of
from stages.sources import ScannedSource, Source, expand


def grown_plan(plan: Plan, uris: Sequence[str], *, progress: Progress | None = None) -> Plan:
    """Returns `plan` grown by the sources that `uris` name, as `grown_by`; raises also what `expand` does."""
    return grown_by(plan, [(uri, expand(uri, plan.modality)) for uri in uris], progress=progress)


def grown_by(
    plan: Plan,
    groups: Sequence[tuple[str, Sequence[Source]]],
    *,
    progress: Progress | None = None,
    scanned: Callable[[Source, ScannedSource], None] | None = None,
) -> Plan:
    """Returns `plan` with a segment for those samples that it does not have; `plan` itself if it has all.

    A source is known by its fingerprint, so one that moved or was named differently is not planned twice; where it is
    no longer at its old place, the plan gets the new one. Only names and headers are read; where every file of a URI
    has the size and time that the plan knows, nothing is opened.

    Args:
        plan: so far, perhaps empty.
        groups: what was typed and the sources of the plan's modality behind it; keys are unique within a group.
        progress: called with (sources scanned, sources, unit).
        scanned: called with every source that had to be scanned.

    Raises:
        UsageError: a path is missing, a kind or option unknown, a folder without samples.
        MismatchError: a source that was planned has changed.
        RefusedError: a source is damaged or repeats a key.
    """
    total = sum(len(sources) for _, sources in groups)
    known = {entry.fingerprint: number for number, entry in enumerate(plan.sources)}
    new: list[tuple[SourceEntry, ScannedSource]] = []
    done = 0
    for uri, sources in groups:
        if all(_is_unchanged(plan, source) for source in sources):
            done += len(sources)
            continue
        scans = []
        for source in sources:
            scans.append(source.scan())
            if scanned is not None:
                scanned(source, scans[-1])
            done += 1
            if progress is not None:
                progress(done, total, f"{plan.modality} sources")
        _refuse_duplicate_keys(uri, sources, scans)
        for source, scan in zip(sources, scans, strict=True):
            entry = _entry_of(plan, source, scan)
            if entry.fingerprint in known:
                plan = _where_it_is_now(plan, known[entry.fingerprint], entry)
            elif entry.num_samples:
                known[entry.fingerprint] = len(plan.sources) + len(new)
                new.append((entry, scan))
    if groups and not plan.sources and not new:
        named = ", ".join(uri for uri, _ in groups)
        raise UsageError(f"no {plan.modality}s in {named}: point at a source that has some")
    starts = part_starts([entry.num_samples for entry, _ in new], plan.part_rows)
    offsets = [{at: scan.offset_bytes(at) for at in places} for (_, scan), places in zip(new, starts, strict=True)]
    return plan.extended([entry for entry, _ in new], offsets) if new else plan


def _planned(plan: Plan, source: Source) -> SourceEntry | None:
    same = (e for e in plan.sources if (e.uri, e.kind, dict(e.options)) == (source.uri, source.kind, source.options))
    return next(same, None)


def _is_unchanged(plan: Plan, source: Source) -> bool:
    planned = _planned(plan, source)
    return planned is not None and bool(planned.state) and planned.state == state_of(source.uri)


def _entry_of(plan: Plan, source: Source, scan: ScannedSource) -> SourceEntry:
    planned = _planned(plan, source)
    if planned is not None and planned.fingerprint != scan.fingerprint:
        raise MismatchError(
            f"{source.uri} changed since it was planned ({planned.num_samples:,} samples, {planned.fingerprint[:12]}; "
            f"now {scan.num_samples:,}, {scan.fingerprint[:12]}): restore it, give new data another name, "
            "or extract into a new cache"
        )
    options = dict(source.options)
    return SourceEntry(source.uri, source.kind, scan.fingerprint, scan.num_samples, options, state_of(source.uri))


def _where_it_is_now(plan: Plan, number: int, entry: SourceEntry) -> Plan:
    """Returns `plan` with source `number` read from where `entry` is, if it is no longer where it was."""
    if number >= len(plan.sources) or _is_there(plan.sources[number].uri):
        return plan
    sources = (*plan.sources[:number], entry, *plan.sources[number + 1 :])
    return replace(plan, sources=sources)


def _is_there(uri: str) -> bool:
    # Nobody is asked over the network: a source that was named again is read from where it was named last.
    return not is_remote(uri) and os.path.exists(uri)


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
