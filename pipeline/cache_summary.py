"""Describes a cache as JSON, from its small files; features are not read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cache_schema.errors import PipelineError

if TYPE_CHECKING:
    from cache_schema.cache import Cache, CachedArray
    from cache_schema.layout import Modality


def description(cache: "Cache") -> dict[str, Any]:
    """Returns what is in `cache`: its arrays, sources, number of parts, indexes, neighbours and selections, as JSON."""
    arrays = [cache.array(modality, name) for modality in cache.modalities for name in cache.arrays(modality)]
    return {
        "cache": str(cache.path),
        "part_rows": cache.part_rows,
        "arrays": {f"{array.modality}/{array.name}": _array(array) for array in arrays},
        "pixels": pixels(cache),
        "sources": [source for modality in cache.modalities for source in _sources(cache, modality)],
        "parts": {modality: cache.plan(modality).num_parts for modality in cache.modalities},
        "indexes": [index for modality in cache.modalities for index in indexes(cache, modality)],
        "neighbours": _neighbours(cache),
        "selections": _selections(cache),
    }


def _array(array: "CachedArray") -> dict[str, Any]:
    from cache_schema.records import parts_by_numerics

    recipe = array.recipe
    return {
        "modality": array.modality,
        "array": array.name,
        "view": recipe.view,
        "teacher": recipe.specification,
        "rows": array.num_rows,
        "ok": array.num_ok,
        "bad": array.num_bad,
        "pending": sum(part.num_rows for part in array.pending()),
        "dim": recipe.dim,
        "bytes": array.num_bytes,
        "logit_scale": recipe.logit_scale,
        "precision": recipe.precision,
        "numerics": parts_by_numerics(array.records()),
        "mixed_numerics_allowed": sum(record.allow_mixed_numerics for record in array.records()),
        "fingerprint": recipe.fingerprint,
        "digest": array.digest(),
    }


def pixels(cache: "Cache") -> dict[str, Any] | None:
    """Returns the rule, pictures, parts and bytes of the stored pixels of `cache`, None when it stores none."""
    from cache_schema.stored_pixels import stored_pixels

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


def pixels_line(stored: dict[str, Any]) -> str:
    """Returns one line for people about what `pixels` returned."""
    pending = f", {stored['pending_parts']:,} parts pending" if stored["pending_parts"] else ""
    return (
        f"pixels: {stored['pictures']:,} JPEGs, shorter side {stored['side']}, quality {stored['quality']}, "
        f"{stored['bytes']:,} bytes{pending}"
    )


def _sources(cache: "Cache", modality: "Modality") -> Iterator[dict[str, Any]]:
    for source in cache.plan(modality).sources:
        yield {
            "modality": modality,
            "uri": source.uri,
            "kind": source.kind,
            "samples": source.num_samples,
            "fingerprint": source.fingerprint,
        }


def indexes(cache: "Cache", modality: "Modality") -> Iterator[dict[str, Any]]:
    """Yields every index over arrays of `modality`, and whether it still belongs to its array."""
    from cache_schema.json_file import read_sealed

    folder = cache.layout.indexes(modality)
    for sidecar in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            value = read_sealed(sidecar)
            current = cache.array(modality, value.get("array")).digest() == value.get("digest")
            state = "current" if current else "stale: run `pipeline extract` again"
        except PipelineError as error:
            value, state = {}, str(error)
        shown = ("array", "kind", "num_rows", "recall_at_10")
        yield {"modality": modality, "index": sidecar.stem, "state": state, **{key: value.get(key) for key in shown}}


def _neighbours(cache: "Cache") -> list[dict[str, Any]]:
    from cache_schema.neighbours import NeighboursReader

    found = []
    for folder in sorted(path for path in cache.layout.all_neighbours.glob("*/") if (path / "recipe.json").exists()):
        try:
            recipe = NeighboursReader(cache, folder.name).recipe
            ends = {side: f"{end.modality}/{end.array}" for side, end in (("from", recipe.from_), ("to", recipe.to))}
            found.append({"name": folder.name, **ends, "k": recipe.k, "state": "current"})
        except PipelineError as error:
            found.append({"name": folder.name, "from": None, "to": None, "k": None, "state": str(error)})
    return found


def _selections(cache: "Cache") -> list[dict[str, Any]]:
    from cache_schema.selections import read_selection, selection_names

    found: list[dict[str, Any]] = []
    for name in selection_names(cache.layout):
        try:
            selection = read_selection(cache, name)
            binding, method = selection.binding, selection.method.get("name")
            of = {"array": f"{binding.modality}/{binding.array}", "rows": len(selection.rows), "method": method}
            found.append({"name": name, **of, "state": "current"})
        except PipelineError as error:
            found.append({"name": name, "array": None, "rows": None, "method": None, "state": str(error)})
    return found


def bad_rows(cache: "Cache") -> Iterator[dict[str, Any]]:
    """Yields every committed row without a feature, with the words that say why."""
    from cache_schema.samples import OK

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
