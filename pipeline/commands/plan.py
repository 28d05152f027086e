"""`pipeline plan`: what an extract would do, write and take, before anything runs."""

import shlex
from collections.abc import Mapping
from typing import Any

import click

from pipeline.options.fields import settings_of, words_of
from pipeline.options.shared import help_all_option, shared_options
from pipeline.options.types import Count, Number
from pipeline.output import print_note, print_result, table
from pipeline.progress import duration, open_progress
from stages.extract.config import ExtractConfig

ARRAY_COLUMNS = ("array", "view", "dim", "rows", "pending_rows", "feature_bytes", "index_bytes")
MODALITY_COLUMNS = ("modality", "sources", "rows", "parts", "pending_rows", "pending_parts")
_BYTES = ("features", "indexes", "sample_tables", "row_hashes", "pixels", "other", "total")


@click.command(
    epilog="""\b
Example:
  pipeline plan --images 'photos/{000..099}.tar' --texts captions.txt \\
                --teacher open_clip:ViT-L-14/openai --cache cache --workers 8
Takes the options of `pipeline extract`. Nothing is written into the cache's folder."""
)
# Bad rows and the place where indexes are built change nothing of a plan.
@settings_of(ExtractConfig, leave_out=("max_bad_fraction", "index_device", "retry_bad", "allow_useless_sources"))
@click.option(
    "--calibrate-seconds",
    type=Number(at_least=0, at_most=86_400),
    default=30,
    show_default=True,
    help="Time the real input and teacher so long; 0 does not.",
)
@click.option(
    "--workers", type=Count(1, 4096), default=1, show_default=True, help="Foresee the time on so many like this."
)
@help_all_option
@shared_options
def command(calibrate_seconds: float, workers: int, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Say what an extract would do: rows, bytes, free disk, and hours after timing a little of it."""
    config = ExtractConfig(**settings)
    from stages.extract.chosen import Surroundings
    from stages.extract.forecast import forecast_extract

    with open_progress("plan", quiet=quiet) as progress:
        result = forecast_extract(
            config,
            calibrate_seconds=calibrate_seconds,
            num_workers=workers,
            around=Surroundings(notice=print_note),
            progress=progress,
        )
    print_result(result, as_json=as_json, lines=_lines(result), next_step=_next_step(result, config))


def _lines(result: Mapping[str, Any]) -> list[str]:
    state = "exists, only what is pending counts" if result["exists"] else "does not exist yet"
    lines = [f"cache {result['cache']}: {state}; parts of {result['part_rows']:,} rows", ""]
    lines += table(result["modalities"], MODALITY_COLUMNS)
    lines += ["", *table(result["arrays"], ARRAY_COLUMNS), ""]
    lines += table(
        [{"what": name.replace("_", " "), "bytes": result["bytes"][name]} for name in _BYTES], ("what", "bytes")
    )
    rows = ", ".join(
        f"{modality} {row['bytes']:.0f} bytes a row ({'measured' if row['measured'] else 'assumed'})"
        for modality, row in result["row_bytes"].items()
    )
    lines.append(f"sample tables: {rows}")
    if result["picture_bytes"]:
        how = "measured" if result["picture_bytes"]["measured"] else "assumed"
        lines.append(f"stored pictures: {result['picture_bytes']['bytes']:,} bytes each ({how})")
    fits = "enough" if result["fits"] else "NOT ENOUGH: extract will refuse to start"
    lines.append(f"free disk: {result['free_bytes']:,} bytes, {fits}")
    if result["time"]:
        lines += ["", *map(_speed, result["calibration"]), *_hours(result["time"])]
    elif any(modality["pending_rows"] for modality in result["modalities"]):
        lines += ["", "nothing was timed (--calibrate-seconds 0)"]
    else:
        lines += ["", "nothing is pending: the cache has all of it"]
    return lines


def _speed(speed: Mapping[str, Any]) -> str:
    return (
        f"{speed['modality']}s: {speed['rows_per_s']:,.4g} rows/s (from {speed['slowest_rows_per_s']:,.4g} to "
        f"{speed['fastest_rows_per_s']:,.4g} in {speed['timed_parts']} parts), slowest stage: {speed['bottleneck']}; "
        f"timed: {speed['timed_rows']:,} rows, {speed['bad_rows']:,} of them bad"
    )


def _hours(foreseen: Mapping[str, Any]) -> list[str]:
    def shown(seconds: Mapping[str, float]) -> str:
        ends = f"from {duration(seconds['fastest'])} to {duration(seconds['slowest'])}"
        return f"{duration(seconds['expected'])} ({ends} as the timed parts differ)"

    lines = [
        f"start of a worker: {duration(foreseen['start_seconds'])}",
        f"one worker like this: {shown(foreseen['seconds_here'])}",
    ]
    if foreseen["workers"] > 1:
        lines.append(f"{foreseen['workers']} workers like this: {shown(foreseen['seconds_on_workers'])}")
    if foreseen["shared_rows"]:
        lines.append("some rows lack only some of their arrays and are counted as that share of a row")
    return [*lines, "h:mm:ss, beside the start; building indexes and waiting for shared disks come on top"]


def _next_step(result: Mapping[str, Any], config: ExtractConfig) -> str:
    if not any(modality["pending_rows"] for modality in result["modalities"]):
        return f"pipeline inspect {shlex.quote(result['cache'])}"
    return shlex.join(["pipeline", "extract", *words_of(config)]) if result["fits"] else ""
