"""Files that no record names: what an interrupted write or a damaged part leaves behind. Readers never look at them."""

from pathlib import Path

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.layout import Modality, shard_path
from cache_schema.records import committed_parts


def leftovers_of(cache: Cache) -> list[Path]:
    """Returns the files of `cache` that no record names, sorted. Exact only while nobody writes."""
    layout = cache.layout
    found = set(layout.root.rglob(f"*{atomic.PARTIAL_SUFFIX}"))
    for modality in cache.modalities:
        found |= layout.part_files(modality) - _named(cache, modality)
        found |= {path for path in layout.index_files(modality) if not path.with_suffix(".json").exists()}
    found |= {path for path in layout.selection_files() if not layout.selection_sidecar(path.stem).exists()}
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
    for name in layout.array_names(modality):
        for part in committed_parts(layout.records(modality, name)):
            named.add(shard_path(layout.feature_array(modality, name), part))
            named.add(layout.samples(modality, part))
            named.add(layout.row_hashes(modality, name, part))
            named.add(layout.view_checks(modality, name, part))
        for path in layout.records(modality, name).glob("*.withdrawn"):
            part = int(path.stem)
            if not layout.record(modality, name, part).exists():
                # What a part that is made again is compared with.
                named |= {path, layout.samples(modality, part), layout.row_hashes(modality, name, part)}
    if modality == "image":
        named |= {layout.pixels(part) for part in committed_parts(layout.all_pixels)}
    return named
