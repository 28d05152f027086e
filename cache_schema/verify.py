"""Reads a whole cache and names everything that is not as it was committed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import RefusedError, UsageError
from cache_schema.features import feature_format
from cache_schema.indexes import verify_indexes
from cache_schema.json_file import Json
from cache_schema.layout import MODALITIES, Layout, Modality, metadata_path, shard_path
from cache_schema.neighbours import verify_neighbours
from cache_schema.plan import Part
from cache_schema.progress import Progress
from cache_schema.records import logical_digest
from cache_schema.selections import verify_selections
from cache_schema.sha256 import sha256_of_file
from cache_schema.shards import GROUP_METADATA
from cache_schema.stored_pixels import verify_pixels
from cache_schema.view_checks import read_checks


@dataclass(frozen=True)
class PartOfArray:
    """One part of one array; of the stored pixels where `array` is None."""

    modality: Modality
    array: str | None
    part: int


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, what to do, and the part that would have to be extracted again, if any."""

    where: str
    what: str
    remedy: str
    part: PartOfArray | None = None

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


RESTORE = "restore it from a copy"
REPAIR = "run `pipeline repair` to write it again"
REEXTRACT = "run `pipeline repair` to extract the part again, or restore it from a copy"


def verify_cache(path: Path, *, progress: Progress | None = None) -> list[Problem]:
    """Returns every problem of the cache at `path`, in plan order; an empty list means that all of it is right.

    Checks, for every committed part: SHA-256 of its files, the crc32c of each chunk, that each planned row is accounted
    for exactly once, finite unit features, and row hashes recomputed from samples and features. Also plans, recipes,
    stored pixels, indexes, neighbours and selections. Reads everything once; holds one part in memory. Files that no
    record names are no problem: see `cache_schema.leftovers`.

    Raises:
        UsageError, RefusedError: there is no cache at all, or its cache.json cannot be believed.
    """
    cache = Cache.open(path)
    found: list[Problem] = list(_headless(cache.layout))
    for modality in cache.modalities:
        with _problems_of(found, cache.layout.plan(modality), RESTORE):
            cache.plan(modality)
            for name in cache.arrays(modality):
                _verify_array(cache, modality, name, found, progress)
    verify_pixels(cache, lambda where, what, part: found.append(_problem_of_pixels(where, what, part)))
    for verify_derived in (verify_indexes, verify_neighbours, verify_selections):
        verify_derived(cache, lambda where, what, remedy: found.append(Problem(str(where), what, remedy)))
    return found


def _problem_of_pixels(where: Path, what: str, part: int | None) -> Problem:
    if part is None:
        return Problem(str(where), what, RESTORE)
    return Problem(str(where), what, REEXTRACT, PartOfArray("image", None, part))


def _verify_array(cache: Cache, modality: Modality, name: str, found: list[Problem], progress: Progress | None) -> None:
    with _problems_of(found, cache.layout.recipe(modality, name), RESTORE):
        array = cache.array(modality, name)
        if array.recipe.modality != modality:
            what = f"is the recipe of an array of {array.recipe.modality}s"
            found.append(Problem(str(cache.layout.recipe(modality, name)), what, RESTORE))
        _verify_metadata(array, found)
        _verify_probes(array, found)
        hashes: list[bytes] = []
        for done, part in enumerate(sorted(array.committed), start=1):
            at = PartOfArray(modality, name, part)
            with _problems_of(found, cache.layout.record(modality, name, part), REEXTRACT, at):
                if part < array.plan.num_parts:
                    hashes.append(_verify_part(array, array.plan.part(part), found))
                else:
                    array.record(part)
            if progress is not None:
                progress(done, len(array.committed), f"parts of {modality} {name}")
        with _problems_of(found, cache.layout.records(modality, name), REEXTRACT):
            if logical_digest(hashes) != array.digest():
                found.append(Problem(str(array), "its rows do not give its stored digest", REEXTRACT))


def _verify_metadata(array: CachedArray, found: list[Problem]) -> None:
    group = metadata_path(array.cache.layout.features(array.modality))
    path = metadata_path(array.cache.layout.feature_array(array.modality, array.name))
    row_format = feature_format(array.cache.part_rows, array.recipe.dim)
    # A crash between a longer plan and the longer arrays leaves them shorter: long enough for all that is committed.
    last = max((part for part in array.committed if part < array.plan.num_parts), default=0)
    parts = [segment.parts[-1] for segment in reversed(array.plan.segments) if segment.parts[-1].number >= last]
    metadata = path.read_bytes() if path.exists() else b""
    if not any(metadata == row_format.array_metadata(part.first_row + part.num_rows) for part in parts):
        found.append(Problem(str(path), "is missing or not the metadata of this array", REPAIR))
    if not group.exists() or group.read_bytes() != GROUP_METADATA:
        found.append(Problem(str(group), "is missing or not the metadata of a group", REPAIR))


def _verify_probes(array: CachedArray, found: list[Problem]) -> None:
    path = array.cache.layout.probes(array.modality, array.name)
    expected = array.recipe.probes_sha256
    if expected and sha256_of_file(path) != expected:
        found.append(Problem(str(path), "is missing or not what the teacher made of the probes", RESTORE))


def _verify_part(array: CachedArray, part: Part, found: list[Problem]) -> bytes:
    """Adds the problems of one part to `found`; returns the row hashes recomputed from its samples and features."""
    layout, modality = array.cache.layout, array.modality
    record = array.record(part.number)
    at = PartOfArray(modality, array.name, part.number)
    shard = shard_path(layout.feature_array(modality, array.name), part.number)
    if sha256_of_file(shard) != record.files["shard"]:
        raise RefusedError(f"shard {shard} is missing or not the one that was committed")
    features = array.unchecked_features(part.number).read_part(part.number)[: part.num_rows]
    committed = array.committed_rows(part.number)
    for what in committed.problems(0, features):
        found.append(Problem(str(shard), what, REEXTRACT, at))
    hashes = committed.hashes_of(0, features)
    if array.recipe.view:
        path = layout.view_checks(modality, array.name, part.number)
        with _problems_of(found, path, REEXTRACT, at):
            read_checks(path, record)
    if hashes != committed.hashes:
        where = layout.row_hashes(modality, array.name, part.number)
        found.append(Problem(str(where), "does not hold the hashes of the part's rows", REEXTRACT, at))
    return hashes


def _headless(layout: Layout) -> Iterator[Problem]:
    """Yields the plans and recipes that are missing although something was made by them."""
    for modality in MODALITIES:
        if layout.arrays(modality).is_dir() and not layout.plan(modality).exists():
            yield Problem(str(layout.plan(modality)), "is missing: no row of this modality can be used", RESTORE)
        for name in layout.array_names(modality):
            recipe = layout.recipe(modality, name)
            if layout.records(modality, name).exists() and not recipe.exists():
                yield Problem(str(recipe), "is missing: nobody knows what made this array", RESTORE)


@contextmanager
def _problems_of(found: list[Problem], where: Path, remedy: str, part: PartOfArray | None = None) -> Iterator[None]:
    try:
        yield
    except (RefusedError, UsageError) as error:
        found.append(Problem(str(where), str(error), remedy, part))
