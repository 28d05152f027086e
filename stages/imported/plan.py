"""Joins samples to the files that hold their features, before anything is written.

The samples that one run adds to a plan (a segment) are joined to the files of features that came with them, so that
keys need be unique only among files that are imported together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import MismatchError, RefusedError, UsageError
from cache_schema.json_file import Json
from cache_schema.layout import Modality
from cache_schema.plan import Part, Plan
from cache_schema.progress import Progress
from cache_schema.recipe import Recipe
from stages.extract.grow_plan import grown_by, looked_again
from stages.extract.source_rows import CommittedRows
from stages.extract.wanted_sources import pending_sources
from stages.feature_files import FeatureFile, expand_features, scan_once, states_of
from stages.feature_files.by_key import FeatureIndex
from stages.imported.config import ImportConfig
from stages.imported.worker import is_beside
from stages.parts.job import NamedSources
from stages.sources import ScannedSource, Source, expand, open_source
from stages.sources.feature_rows import FeaturesSource, require_pictures

FileEntry = dict[str, Json]
"""What a recipe keeps of a file of features: format, options, fingerprint, dim, states, and first_parts, the numbers of
the parts that begin a segment whose features it holds."""


@dataclass(frozen=True)
class JoinedPlan:
    """The plan of one modality, and the files of features that go with its samples.

    Attributes:
        plan: grown by the samples that are new.
        named: what of it was named; all where nothing was.
        files: path -> `FileEntry` of every file of features, for the recipe.
        format: the format of all of them.
        dim: the width of all of them.
        num_unused: features that no sample asked for; None where this run added none by key.
    """

    plan: Plan
    named: NamedSources
    files: dict[str, FileEntry]
    format: str
    dim: int
    num_unused: int | None


def joined_plan(
    config: ImportConfig,
    cache: Cache,
    modality: Modality,
    then: CachedArray | None,
    *,
    progress: Progress | None = None,
) -> JoinedPlan | None:
    """Returns what `config` adds to the plan of a modality; None when it has nothing to do with it. Writes nothing.

    Args:
        config: what is asked.
        cache: as it is.
        modality: of the features.
        then: the array that these features belong to, when there is one.
        progress: called with (files scanned, files, unit).

    Raises:
        UsageError: features without samples, or the reverse.
        RefusedError: something is damaged, keys repeat, no key is in common, or no file of features has a row.
        MismatchError: formats or widths differ, or a file has changed.
    """
    plan, committed = cache.plan(modality), CommittedRows(cache, modality)
    arrays = [] if then is None else [then.name]
    recipe = None if then is None else then.recipe
    uris = config.image_features if modality == "image" else config.text_features
    if not uris and recipe is None:
        return None
    named = list({file.uri: file for uri in uris for file in expand_features(uri, modality)}.values())
    files, new, empty = _known_and_new(named, dict(recipe.files) if recipe is not None else {}, progress)
    given = [file for file in named if file.uri not in empty]
    if named and not given:
        raise RefusedError(f"no {modality} features in {', '.join(uris)}: point at files that have some")
    scans: dict[tuple[str, str], ScannedSource] = {}
    grown = grown_by(
        plan,
        _samples(config, plan, recipe, given, new),
        committed=committed,
        progress=progress,
        scanned=lambda source, scan: scans.update({(source.uri, source.kind): scan}),
    )
    plan = looked_again(grown.plan, pending_sources(cache, grown.plan, arrays), committed)
    unbound = _unbound(plan, files)
    # New samples belong to the files that are new with them, else to all that were named.
    joined = new or given
    num_unused = None
    if unbound and not joined:
        raise UsageError(
            f"{len(unbound)} segments of {modality}s in {config.cache} have no features: name the files that hold them "
            f"with --{modality}-features"
        )
    if unbound:
        num_unused = _require_join(plan, unbound, joined, scans)
    elif new:
        raise UsageError(
            f"{new[0].uri} holds features of samples that are planned already: to replace features import into a new "
            f"cache, to add some name their --{modality}s"
        )
    for file in joined if unbound else ():
        files[file.uri]["first_parts"] = sorted({*files[file.uri]["first_parts"], *unbound})
    _require_same(files, modality)
    first = next(iter(files.values()))
    sources = NamedSources(
        grown.named or frozenset(range(len(plan.sources))), tuple(dict.fromkeys([*grown.empty, *empty]))
    )
    return JoinedPlan(plan, sources, files, first["format"], first["dim"], num_unused)


def _known_and_new(
    given: Sequence[FeatureFile], remembered: Mapping[str, FileEntry], progress: Progress | None
) -> tuple[dict[str, FileEntry], list[FeatureFile], list[str]]:
    """Returns an entry for every file of features, remembered or given, the files never seen before, and empty ones."""
    files = {path: dict(entry) for path, entry in remembered.items()}
    new: list[FeatureFile] = []
    empty: list[str] = []
    for done, file in enumerate(given, start=1):
        entry = files.get(file.uri)
        if entry is not None and (entry["format"], entry["options"]) != (file.format, file.options):
            then, now = (f"{name}, options {options or 'none'}" for name, options in _named(entry, file))
            raise MismatchError(
                f"{file.uri} was imported as {then}, this run says {now}: say the same, or import into a new cache"
            )
        if entry is not None and entry["states"] == states_of(file):
            continue
        scan = scan_once(file)
        if progress is not None:
            progress(done, len(given), f"files of {file.modality} features")
        if entry is None and not len(scan.places):
            empty.append(file.uri)
            continue
        same = next((path for path in files if files[path]["fingerprint"] == scan.fingerprint), None)
        if same is not None and same != file.uri and same in {other.uri for other in given}:
            raise RefusedError(f"{file.uri} holds the same as {same}: name one of them")
        if same is None and entry is not None:
            raise MismatchError(
                f"{file.uri} changed since it was imported ({entry['fingerprint'][:12]} then, {scan.fingerprint[:12]} "
                "now): restore it, give new features another name, or import into a new cache"
            )
        found: FileEntry = {
            "format": file.format,
            "options": dict(file.options),
            "fingerprint": scan.fingerprint,
            "dim": scan.dim,
            "states": states_of(file),
            "first_parts": files.pop(same)["first_parts"] if same is not None else [],
        }
        files[file.uri] = found
        if same is None:
            new.append(file)
    return files, new, empty


def _named(entry: FileEntry, file: FeatureFile) -> list[tuple[str, dict[str, str]]]:
    return [(entry["format"], entry["options"]), (file.format, file.options)]


def _samples(
    config: ImportConfig, plan: Plan, then: Recipe | None, given: Sequence[FeatureFile], new: Sequence[FeatureFile]
) -> list[tuple[str, Sequence[Source]]]:
    """Returns the sources of samples, as groups for `grown_by`."""
    modality = plan.modality
    uris = config.images if modality == "image" else config.texts
    if uris:
        require_pictures(plan, config.cache)
        is_dime_fm = any(file.format == "dime-fm" for file in given)
        return [(uri, expand(_with_kind(uri) if is_dime_fm else uri, modality)) for uri in uris]
    if plan.sources and then is None and config.add_teacher:
        return []
    if modality == "image" and new and any(entry.kind != FeaturesSource.kind for entry in plan.sources):
        raise UsageError(
            f"the images of cache {config.cache} have pictures, {new[0].uri} comes without: name the originals of its "
            "features with --images, put them beside another teacher's with --add-teacher, or use another --cache"
        )
    sources = [_sentences_of(file) if modality == "text" else _features_alone(file) for file in new]
    return [(", ".join(file.uri for file in new[:3]), sources)] if new else []


def _with_kind(uri: str) -> str:
    """Returns `uri` with the kind that a .tsv has beside features of DIME-FM, unless it says its kind itself."""
    return f"dime-fm:{uri}" if uri.lower().endswith(".tsv") and ":" not in uri else uri


def _sentences_of(file: FeatureFile) -> Source:
    beside = file.sentences()
    if beside is None:
        raise UsageError(f"{file.uri} holds no sentences: name the source of its sentences with --texts")
    return open_source(beside.uri, beside.kind, "text", beside.options)


def _features_alone(file: FeatureFile) -> Source:
    return open_source(file.uri, FeaturesSource.kind, "image", {"format": file.format, **file.options})


def _unbound(plan: Plan, files: Mapping[str, FileEntry]) -> list[int]:
    """Returns the numbers of the first parts of segments that no file of features goes with."""
    bound = {number for entry in files.values() for number in entry["first_parts"]}
    return [segment.parts[0].number for segment in plan.segments if segment.parts[0].number not in bound]


def _require_same(files: Mapping[str, FileEntry], modality: Modality) -> None:
    for what in ("format", "dim"):
        found = {entry[what]: path for path, entry in files.items()}
        if len(found) > 1:
            (one, first), (other, second) = list(found.items())[:2]
            raise MismatchError(
                f"{first} has {what} {one}, {second} has {what} {other}: all {modality} features of a teacher must "
                "have the same; import one of them into another cache"
            )


def _require_join(
    plan: Plan,
    unbound: Sequence[int],
    files: Sequence[FeatureFile],
    scans: Mapping[tuple[str, str], ScannedSource],
) -> int | None:
    """Returns how many features no sample asks for, None where rows join by their position.

    Raises:
        RefusedError: a source has not one key in common with the features, or a key stands in two sources.
        UsageError: a source has no keys of its own.
    """
    numbers = {span.source for number in unbound for part in _segment_at(plan, number) for span in part.spans}
    by_key: list[tuple[Source, ScannedSource]] = []
    for entry in (plan.sources[number] for number in sorted(numbers)):
        source = open_source(entry.uri, entry.kind, plan.modality, dict(entry.options))
        if not any(is_beside(source, file) for file in files):
            by_key.append((source, scans.get((entry.uri, entry.kind)) or source.scan()))
    if not by_key:
        return None
    index = FeatureIndex([(file, scan_once(file)) for file in files])
    for source, scan in by_key:
        if not len(scan.key_hashes):
            raise UsageError(
                f"the keys of {source.uri} are only positions in it, which say nothing of whose feature is whose: use "
                "a source with keys of its own, such as a Parquet file with ?key_column=NAME"
            )
        if not (index.find(scan.key_hashes) >= 0).any():
            key = next(iter(source.read(0, 1, scan.offset_bytes(0)))).key
            raise RefusedError(
                f"not one of the {scan.num_samples:,} keys of {source.uri} (such as {key!r}) has a feature in "
                f"{files[0].uri} (a key there: {index.example()!r}): name the right files, or make the keys equal "
                "(?prefix=TEXT behind the features cuts TEXT off the front of theirs, ?key_column=NAME takes others)"
            )
    hashes = np.concatenate([scan.key_hashes for _, scan in by_key])
    if len(np.unique(hashes)) < len(hashes):
        _refuse_repeated(by_key)
    return len(index) - int((index.find(hashes) >= 0).sum())


def _segment_at(plan: Plan, number: int) -> Sequence[Part]:
    return next(segment.parts for segment in plan.segments if segment.parts[0].number == number)


def _refuse_repeated(by_key: Sequence[tuple[Source, ScannedSource]]) -> None:
    seen: dict[int, Source] = {}
    for source, scan in by_key:
        for at, key_hash in enumerate(scan.key_hashes.tolist()):
            if key_hash in seen:
                key = next(iter(source.read(at, 1, scan.offset_bytes(at)))).key
                raise RefusedError(
                    f"key {key!r} stands in {seen[key_hash].uri} and in {source.uri}: keys must be unique among "
                    "sources that are imported together; rename one, or import them one after the other"
                )
            seen[key_hash] = source
