"""Makes durable what every writer of an array must agree on: the plan, and the array's metadata, probes and recipe."""

from dataclasses import replace

from cache_schema import atomic, shards
from cache_schema.cache import Cache, CachedArray
from cache_schema.commit import ArrayTarget
from cache_schema.features import feature_format
from cache_schema.json_file import seal
from cache_schema.plan import Plan, write_plan
from cache_schema.recipe import Recipe
from cache_schema.sha256 import sha256_of


def publish_plan(cache: Cache, plan: Plan, fence: atomic.Fence) -> None:
    """Publishes `plan` unless the cache has it already."""
    path = cache.layout.plan(plan.modality)
    if not path.exists() or cache.plan(plan.modality) != plan:
        atomic.make_folder(path.parent)
        write_plan(path, plan, fence=fence)


def publish_metadata(cache: Cache, name: str, recipe: Recipe, plan: Plan, fence: atomic.Fence) -> None:
    """Publishes the Zarr metadata of array `name`; it and all arrays beside it get the plan's length."""
    modality = plan.modality
    for other in {name, *cache.arrays(modality)}:
        dim = recipe.dim if other == name else cache.array(modality, other).recipe.dim
        folder = cache.layout.feature_array(modality, other)
        shards.publish_array(folder, feature_format(cache.part_rows, dim), plan.row_end, fence=fence)


def publish_recipe(cache: Cache, name: str, recipe: Recipe, probes: bytes | None, fence: atomic.Fence) -> None:
    """Publishes the recipe that makes array `name` exist, after its probes where it has some."""
    path = cache.layout.recipe(recipe.modality, name)
    atomic.make_folder(path.parent)
    if probes is not None:
        atomic.publish_bytes(cache.layout.probes(recipe.modality, name), probes, fence=fence)
        recipe = replace(recipe, probes_sha256=sha256_of(probes))
    atomic.publish_json(path, seal(recipe.to_json()), fence=fence)


def target_of(cache: Cache, array: CachedArray) -> ArrayTarget:
    """Returns `array` as what parts are committed to."""
    row_format = feature_format(cache.part_rows, array.recipe.dim)
    return ArrayTarget(cache.layout, array.modality, array.name, row_format, array.recipe.fingerprint)
