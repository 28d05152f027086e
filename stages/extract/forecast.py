"""Forecasts an extract: its rows, bytes and time. Nothing in the cache's folder is touched."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cache_schema.json_file import Json
from cache_schema.layout import Modality
from cache_schema.plan import Plan, Segment
from cache_schema.progress import Progress
from stages.extract.calibrate import Calibration, Speed, calibrate
from stages.extract.chosen import ALONE, Surroundings
from stages.extract.config import ExtractConfig
from stages.extract.disk import (
    DEFAULT_ROW_BYTES,
    DiskEstimate,
    PendingWork,
    disk_estimate,
    most_picture_bytes,
)
from stages.extract.job import ask
from stages.extract.wanted import WantedArray
from stages.files.free_disk import free_bytes
from stages.images.views import rule_of
from stages.parts.lock import cache_at, is_on_disk


def forecast_extract(
    config: ExtractConfig,
    *,
    calibrate_seconds: float,
    num_workers: int,
    around: Surroundings = ALONE,
    progress: Progress | None = None,
) -> dict[str, Json]:
    """Returns, as JSON, what the extract of `config` still has to do, what it will write, and how long it will take.

    Args:
        config: as for the extract.
        calibrate_seconds: spent on timing the real input and teacher; 0 times nothing.
        around: who is told what was chosen.
        num_workers: workers like this one to foresee the time for.
        progress: called with (done, total, unit).

    Raises: what `open_job` raises before it writes.
    """
    cache = cache_at(config.cache, config.part_rows)
    asked = ask(config, cache, around=around, progress=progress)
    plans, wanted, work = asked.plans, asked.arrays, asked.work
    pending = {modality: plan for modality in plans if (plan := _pending_plan(plans[modality], work)).num_parts}
    measured = None
    if calibrate_seconds and pending:
        resolved = _resolved(replace(config, teacher=asked.specification, precision=asked.precision), wanted, work)
        measured = calibrate(resolved, pending, seconds=calibrate_seconds, progress=progress)
        measured = replace(measured, start_seconds=measured.start_seconds + asked.load_seconds)
    speeds: Mapping[Modality, Speed] = measured.speeds if measured else {}
    each = None
    if work.pixels:
        each = measured.picture_bytes if measured else most_picture_bytes(plans["image"], work.pixels_side)
    estimate = disk_estimate(
        work,
        row_bytes={modality: speed.row_bytes for modality, speed in speeds.items()},
        picture_bytes=each,
    )
    free = free_bytes(config.cache)
    return {
        "cache": str(config.cache),
        "exists": is_on_disk(cache),
        "teacher": asked.specification,
        "part_rows": cache.part_rows,
        "modalities": [_modality(plans[modality], pending.get(modality)) for modality in plans],
        "arrays": [_array(array, plans[array.modality], work, estimate) for array in wanted],
        "bytes": _bytes(estimate),
        "row_bytes": {
            modality: {
                "bytes": round(speeds[modality].row_bytes if modality in speeds else DEFAULT_ROW_BYTES[modality], 1),
                "measured": modality in speeds,
            }
            for modality in plans
        },
        "picture_bytes": None if each is None else {"bytes": round(each), "measured": measured is not None},
        "free_bytes": free,
        "fits": estimate.disk_bytes <= free,
        "calibration": _calibration(measured) if measured else None,
        "time": _time(measured, pending, work, num_workers) if measured else None,
    }


def _pending_plan(plan: Plan, work: PendingWork) -> Plan:
    """Returns the parts of `plan` in which something is pending."""
    numbers = {part.number for array in work.arrays if array.modality == plan.modality for part in array.parts}
    numbers |= {part.number for part in work.pixels if plan.modality == "image"}
    parts = tuple(part for part in plan.parts() if part.number in numbers)
    return replace(plan, segments=(Segment(parts),) if parts else ())


def _resolved(config: ExtractConfig, wanted: Sequence[WantedArray], work: PendingWork) -> ExtractConfig:
    """Returns `config` with what it leaves to the cache written out, so that a scratch cache gets the same."""
    rules = [rule for array in wanted if array.modality == "image" and (rule := rule_of(array.recipe)) is not None]
    seed = rules[0].seed if rules else None
    return replace(config, views=1 + len(rules), view_seed=seed, store_pixels=work.pixels_side or None)


def _modality(plan: Plan, pending: Plan | None) -> dict[str, Json]:
    return {
        "modality": plan.modality,
        "sources": len(plan.sources),
        "rows": plan.num_rows,
        "parts": plan.num_parts,
        "pending_rows": pending.num_rows if pending else 0,
        "pending_parts": pending.num_parts if pending else 0,
    }


def _array(wanted: WantedArray, plan: Plan, work: PendingWork, estimate: DiskEstimate) -> dict[str, Json]:
    name = f"{wanted.modality}/{wanted.name}"
    (pending,) = (array for array in work.arrays if (array.modality, array.name) == (wanted.modality, wanted.name))
    return {
        "array": name,
        "view": wanted.recipe.view,
        "dim": wanted.recipe.dim,
        "rows": plan.num_rows,
        "pending_rows": pending.num_rows,
        "feature_bytes": estimate.features[name],
        "index_bytes": estimate.indexes.get(name, 0),
    }


def _bytes(estimate: DiskEstimate) -> dict[str, Json]:
    return {
        "features": sum(estimate.features.values()),
        "indexes": sum(estimate.indexes.values()),
        "sample_tables": sum(estimate.tables.values()),
        "row_hashes": estimate.hashes,
        "pixels": estimate.pixels,
        "other": estimate.other,
        "total": estimate.total_bytes,
        "on_disk": estimate.disk_bytes,
    }


def _calibration(measured: Calibration) -> list[dict[str, Json]]:
    return [
        {
            "modality": modality,
            "timed_rows": speed.num_rows,
            "timed_parts": speed.num_parts,
            "bad_rows": speed.num_bad,
            "rows_per_s": _rounded(1 / speed.seconds_per_row),
            "slowest_rows_per_s": _rounded(1 / speed.slowest_seconds_per_row),
            "fastest_rows_per_s": _rounded(1 / speed.fastest_seconds_per_row),
            "bottleneck": max(speed.stage_seconds, key=lambda stage: speed.stage_seconds[stage]),
            "stage_seconds_per_1000_rows": {
                stage: _rounded(1000 * seconds / speed.num_rows) for stage, seconds in speed.stage_seconds.items()
            },
        }
        for modality, speed in measured.speeds.items()
    ]


def _time(
    measured: Calibration, pending: Mapping[Modality, Plan], work: PendingWork, num_workers: int
) -> dict[str, Json]:
    """Returns the seconds of the pending work, of one worker here and of several like it, start-up apart."""

    def seconds(per_row: Callable[[Speed], float]) -> float:
        return sum(per_row(speed) * _rows_to_do(work, modality) for modality, speed in measured.speeds.items())

    num_parts = sum(plan.num_parts for plan in pending.values())
    # The worker with the most parts is the last to end.
    share = math.ceil(num_parts / num_workers) / num_parts
    here = {
        "expected": seconds(lambda speed: speed.seconds_per_row),
        "fastest": seconds(lambda speed: speed.fastest_seconds_per_row),
        "slowest": seconds(lambda speed: speed.slowest_seconds_per_row),
    }
    return {
        "start_seconds": _rounded(measured.start_seconds),
        "seconds_here": {name: _rounded(value) for name, value in here.items()},
        # A view alone costs less than its share of the decoding, or more: then the figure is rougher.
        "shared_rows": any(_rows_to_do(work, modality) < plan.num_rows for modality, plan in pending.items()),
        "workers": num_workers,
        "seconds_on_workers": {name: _rounded(value * share) for name, value in here.items()},
    }


def _rows_to_do(work: PendingWork, modality: Modality) -> float:
    """Returns the pending rows as if all was pending in each: a row that lacks half of its arrays is half a row."""
    pending = [array.num_rows for array in work.arrays if array.modality == modality]
    if modality == "image" and work.pixels_side:
        pending.append(sum(part.num_rows for part in work.pixels))
    return sum(pending) / len(pending)


def _rounded(value: float) -> Any:
    """Returns `value` with four digits: more would say more than was measured."""
    return float(f"{value:.4g}")
