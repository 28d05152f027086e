"""A small finished cache made with cache_schema alone, for tests that need features but no teacher."""

from pathlib import Path

import numpy as np

from cache_schema import atomic, shards
from cache_schema.cache import Cache, create_cache
from cache_schema.commit import ArrayTarget, commit_part
from cache_schema.features import feature_format, storable
from cache_schema.json_file import seal
from cache_schema.layout import Modality
from cache_schema.plan import Plan, SourceEntry, write_plan
from cache_schema.recipe import Recipe
from cache_schema.records import RowException
from cache_schema.samples import Sample, digest_of


def unit_features(num_rows: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """Returns float16 unit rows drawn from `seed`, shape (num_rows, dim)."""
    return storable(np.random.default_rng(seed).standard_normal((num_rows, dim)))[0]


def recipe_for(modality: Modality, dim: int, **changes: object) -> Recipe:
    """Returns a recipe of an imaginary teacher."""
    fields: dict = {"teacher": {"name": "imaginary"}, "preprocess": {}, "logit_scale": 100.0, "logit_bias": None}
    return Recipe(**{"modality": modality, "dim": dim, "precision": "float32", **fields, **changes})


def sample(modality: Modality, row: int, *, index: int, status: str = "ok") -> Sample:
    """Returns the sample at `row`, number `index` of its source; a bad one when `status` says so."""
    payload = f"{modality} {index}".encode()
    size = {"width": 8, "height": 8} if modality == "image" else {}
    text = f"sentence {index}" if modality == "text" and status == "ok" else None
    reason = "" if status == "ok" else "planted"
    return Sample(row, str(index), 0, index, len(payload), digest_of(payload), status, reason, text=text, **size)


def add_array(
    cache: Cache,
    modality: Modality,
    features: np.ndarray,
    *,
    name: str = "imaginary.v0",
    bad: tuple[int, ...] = (),
    not_finite: tuple[int, ...] = (),
    parts: tuple[int, ...] | None = None,
    **recipe: object,
) -> None:
    """Adds an array of `features` (samples, dim) to `cache`, planning the samples when nothing is planned yet.

    Samples `bad` have a bad status of their own, `not_finite` one of this array only. `parts` limits what is committed.
    """
    plan = cache.plan(modality)
    if not plan.num_parts:
        starts = {at: at for at in range(len(features))}
        plan = plan.extended([SourceEntry("/nowhere", "text", "0" * 64, len(features))], [starts])
        atomic.make_folder(cache.layout.modality(modality))
        write_plan(cache.layout.plan(modality), plan)
    row_format = feature_format(cache.part_rows, features.shape[1])
    shards.publish_array(cache.layout.features(modality) / name, row_format, plan.row_end)
    made = recipe_for(modality, features.shape[1], **recipe)
    path = cache.layout.recipe(modality, name)
    atomic.make_folder(path.parent)
    atomic.publish_json(path, seal(made.to_json()))
    target = ArrayTarget(cache.layout, modality, name, row_format, made.fingerprint)
    for part in plan.parts():
        if parts is None or part.number in parts:
            _commit(target, plan, part.number, features, bad, not_finite)


def append_segment(cache: Cache, modality: Modality, features: np.ndarray, *, name: str = "imaginary.v0") -> None:
    """Plans a further source of `features` (samples, dim) and commits its parts to the array called `name`."""
    before = cache.plan(modality)
    starts = {at: at for at in range(len(features))}
    fingerprint = f"{len(before.sources):064d}"
    plan = before.extended([SourceEntry(f"/nowhere/{fingerprint}", "text", fingerprint, len(features))], [starts])
    write_plan(cache.layout.plan(modality), plan)
    array = Cache.open(cache.path).array(modality, name)
    row_format = feature_format(cache.part_rows, array.recipe.dim)
    shards.publish_array(cache.layout.features(modality) / name, row_format, plan.row_end)
    target = ArrayTarget(cache.layout, modality, name, row_format, array.recipe.fingerprint)
    for part in list(plan.parts())[before.num_parts :]:
        _commit(target, plan, part.number, features, (), ())


def _commit(
    target: ArrayTarget,
    plan: Plan,
    number: int,
    features: np.ndarray,
    bad: tuple[int, ...],
    not_finite: tuple[int, ...],
) -> None:
    part = plan.part(number)
    indexes = [span.first_sample + i for span in part.spans for i in range(span.num_samples)]
    rows = features[indexes].copy()
    rows[[i for i, index in enumerate(indexes) if index in bad or index in not_finite]] = np.nan
    commit_part(
        target,
        number,
        [
            sample(target.modality, part.first_row + i, index=index, status="img-empty" if index in bad else "ok")
            for i, index in enumerate(indexes)
        ],
        rows,
        part_fingerprint=plan.part_fingerprint(part),
        exceptions={
            i: RowException(i, "feature-not-finite", "") for i, index in enumerate(indexes) if index in not_finite
        },
        numerics="cpu",
        seconds={"forward": 0.0},
        fence=None,
    )


def make_cache(
    path: Path,
    *,
    num_images: int = 40,
    num_texts: int = 60,
    dim: int = 8,
    part_rows: int = 16,
    bad: tuple[int, ...] = (),
) -> Cache:
    """Returns a finished cache of `num_images` and `num_texts` random features."""
    cache = create_cache(path, part_rows)
    for seed, (modality, count) in enumerate({"image": num_images, "text": num_texts}.items()):
        if count:
            add_array(cache, modality, unit_features(count, dim, seed=seed), bad=bad if modality == "image" else ())
    return Cache.open(path)
