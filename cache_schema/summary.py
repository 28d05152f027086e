"""Describes a cache as JSON, from its small files; features are not read."""

from collections.abc import Iterable, Iterator

from cache_schema.cache import Cache, CachedArray
from cache_schema.indexes import describe_indexes
from cache_schema.json_file import Json
from cache_schema.layout import Modality
from cache_schema.neighbours import describe_neighbours
from cache_schema.records import parts_by_numerics
from cache_schema.samples import OK
from cache_schema.selections import describe_selections
from cache_schema.stored_pixels import stored_pixels


def summary_of(cache: Cache) -> dict[str, Json]:
    """Returns what is in `cache`: its arrays, sources, number of parts, indexes, neighbours and selections."""
    return {
        "cache": str(cache.path),
        "part_rows": cache.part_rows,
        "arrays": summary_of_arrays(
            cache.array(modality, name) for modality in cache.modalities for name in cache.arrays(modality)
        ),
        "pixels": summary_of_pixels(cache),
        "sources": [source for modality in cache.modalities for source in _sources(cache, modality)],
        "parts": {modality: cache.plan(modality).num_parts for modality in cache.modalities},
        "indexes": describe_indexes(cache),
        "neighbours": describe_neighbours(cache),
        "selections": describe_selections(cache),
    }


def summary_of_arrays(arrays: Iterable[CachedArray]) -> dict[str, Json]:
    """Returns, per array, its rows, ok, bad and pending rows, width, teacher, fingerprint and logical digest."""
    return {
        f"{array.modality}/{array.name}": {
            "modality": array.modality,
            "array": array.name,
            "view": array.recipe.view,
            "teacher": array.recipe.specification,
            "rows": array.num_rows,
            "ok": array.num_ok,
            "bad": array.num_bad,
            "pending": sum(part.num_rows for part in array.pending()),
            "dim": array.recipe.dim,
            "bytes": array.num_bytes,
            "logit_scale": array.recipe.logit_scale,
            "precision": array.recipe.precision,
            "numerics": parts_by_numerics(array.records()),
            "mixed_numerics_allowed": sum(record.allow_mixed_numerics for record in array.records()),
            "fingerprint": array.recipe.fingerprint,
            "digest": array.digest(),
        }
        for array in arrays
    }


def summary_of_pixels(cache: Cache) -> dict[str, Json] | None:
    """Returns the rule, pictures, parts and bytes of the stored pixels of `cache`, None when it stores none."""
    stored = stored_pixels(cache)
    if stored is None:
        return None
    records = stored.records()
    return {
        **stored.recipe.rule,
        "pictures": sum(record.num_pictures for record in records),
        "parts": len(records),
        "pending_parts": len(stored.pending()),
        "bytes": sum(record.num_bytes for record in records),
    }


def _sources(cache: Cache, modality: Modality) -> Iterator[dict[str, Json]]:
    for source in cache.plan(modality).sources:
        yield {
            "modality": modality,
            "uri": source.uri,
            "kind": source.kind,
            "samples": source.num_samples,
            "fingerprint": source.fingerprint,
        }


def bad_rows(cache: Cache) -> Iterator[dict[str, Json]]:
    """Yields every committed row without a feature, with the words that say why."""
    for modality in cache.modalities:
        sources = cache.plan(modality).sources
        for name in cache.arrays(modality):
            array = cache.array(modality, name)
            for record in array.records():
                if not record.bad:
                    continue
                source_of = cache.samples(modality, record.part).column("source").to_pylist()
                for offset, (row, key, status, reason) in enumerate(array.outcome(record.part)):
                    if status != OK:
                        where = {"modality": modality, "array": name, "row": row, "key": key}
                        yield {**where, "source": sources[source_of[offset]].uri, "status": status, "reason": reason}
