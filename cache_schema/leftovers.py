"""Files that no record names: what an interrupted write or a damaged part leaves behind. Readers never look at them."""

from pathlib import Path

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.layout import Layout, Modality, shard_path
from cache_schema.records import committed_parts


def leftovers_of(cache: Cache) -> list[Path]:
    """Returns the files of `cache` that no record names, sorted. Exact only while nobody writes."""
    layout = cache.layout
    found = set(layout.root.rglob(f"*{atomic.PARTIAL_SUFFIX}"))
    for modality in cache.modalities:
        found |= _part_files(layout, modality) - _named(cache, modality)
        indexes = layout.indexes(modality).glob("*.faiss")
        found |= {path for path in indexes if not path.with_suffix(".json").exists()}
    selections = layout.all_selections.glob("*.parquet")
    found |= {path for path in selections if not layout.selection_sidecar(path.stem).exists()}
    return sorted(found)


def remove_leftovers(cache: Cache) -> tuple[int, int]:
    """Removes what `leftovers_of` finds, holding the cache's lock; returns (files, bytes).

    Raises:
        LockedError: the cache is being written.
    """
    with cache.lock():
        paths = leftovers_of(Cache.open(cache.path))
        num_bytes = sum(path.stat().st_size for path in paths)
        for path in paths:
            atomic.remove_file(path)
    return len(paths), num_bytes


def _named(cache: Cache, modality: Modality) -> set[Path]:
    layout = cache.layout
    named: set[Path] = set()
    # By the names of the records alone: what a damaged record stands for is not for us to throw away.
    for folder in layout.arrays(modality).glob("*/"):
        for part in committed_parts(layout.records(modality, folder.name)):
            named.add(shard_path(layout.features(modality) / folder.name, part))
            named.add(layout.samples(modality, part))
            named.add(layout.row_hashes(modality, folder.name, part))
            named.add(layout.view_checks(modality, folder.name, part))
    if modality == "image":
        named |= {layout.pixels(part) for part in committed_parts(layout.all_pixels)}
    return named


def _part_files(layout: Layout, modality: Modality) -> set[Path]:
    in_records = ("arrays/*/records/*.rows", "arrays/*/records/*.views")
    patterns = ("features.zarr/*/c/*/0", "samples/*.parquet", "pixels/*.arrow", *in_records)
    return {path for pattern in patterns for path in layout.modality(modality).glob(pattern)}
