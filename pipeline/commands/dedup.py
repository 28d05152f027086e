"""`pipeline dedup`: choose the rows of a cache that repeat no other; the cache itself stays as it is."""

import shlex
import time
from pathlib import Path
from typing import Any

import click

from cache_schema.errors import UsageError
from cache_schema.layout import MODALITIES, Modality, check_name
from pipeline.options.shared import shared_options
from pipeline.options.types import Choice, FilePath, Number, Text
from pipeline.output import print_result, table
from pipeline.progress import open_progress


@click.command(
    epilog="""\b
Examples:
  pipeline dedup --cache cache --modality image --exact --name unique
  pipeline dedup --cache cache --modality text --threshold 0.95 --name distinct
The first row in plan order of each group is kept; the selection goes to `distill --images NAME`."""
)
@click.option("--cache", type=FilePath("DIR"), required=True, help="Folder of the cache.")
@click.option("--modality", type=Choice(MODALITIES), required=True, help="Which rows.")
@click.option("--array", type=Text("NAME"), help="Its ok rows take part. [default: the only one]")
@click.option("--exact", is_flag=True, help="Same bytes, or for sentences the same cleaned text.")
@click.option("--threshold", type=Number(above=0, at_most=1), help="Least cosine of a near duplicate, such as 0.95.")
@click.option("--name", type=Text("NAME"), required=True, help="Of the selection.")
@shared_options
def command(
    cache: Path,
    modality: Modality,
    array: str | None,
    exact: bool,
    threshold: float | None,
    name: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Choose the rows of a cache that repeat no other, and keep them as a named selection."""
    if exact == (threshold is not None):
        given = f"--exact and --threshold {threshold}" if exact else "neither --exact nor --threshold"
        raise UsageError(f"dedup has {given}: give one of them")
    check_name(name, "selection")
    from cache_schema.cache import Cache
    from stages.search.dedup import dedup

    start = time.monotonic()
    with open_progress("dedup", quiet=quiet) as progress:
        selection = dedup(
            Cache.open(cache), modality=modality, array=array, threshold=threshold, name=name, progress=progress
        )
    result = {
        "cache": str(cache),
        "name": name,
        "modality": modality,
        "array": selection.binding.array,
        "method": dict(selection.method),
        **selection.report,
        "seconds": round(time.monotonic() - start, 3),
    }
    print_result(
        result,
        as_json=as_json,
        lines=_lines(result),
        next_step=f"pipeline distill --cache {shlex.quote(str(cache))} --{modality}s {name} --out RUN",
    )


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"selection {result['name']}: {result['kept']:,} of {result['rows']:,} {result['modality']}s kept, "
        f"{result['dropped']:,} dropped in {result['groups']:,} groups"
    ]
    search = result["search"]
    if search["kind"] == "approximate":
        lines.append(
            f"approximate search: of {search['checked_kept_rows']:,} kept rows compared with all, "
            f"{search['missed_among_checked']:,} should have been dropped"
        )
    for title, columns in (
        ("largest_groups", ("row", "key", "rows")),
        ("examples", ("kept_row", "kept", "dropped_row", "dropped", "cosine")),
    ):
        if result[title]:
            lines += ["", f"{title.replace('_', ' ')}:", *table(result[title], columns)]
    return lines
