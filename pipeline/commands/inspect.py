"""`pipeline inspect`: what is in a cache, from its small files; features are not read."""

import shlex
from pathlib import Path
from typing import Any

import click

from pipeline.cache_lines import array_lines, pixels_line
from pipeline.options.shared import shared_options
from pipeline.options.types import FilePath
from pipeline.output import print_result, table

ARRAY_COLUMNS = ("array", "rows", "ok", "bad", "pending", "dim", "bytes", "teacher", "fingerprint", "digest")


@click.command(
    epilog="""\b
Examples:
  pipeline inspect cache
  pipeline inspect cache --bad
  pipeline inspect cache --json | jq .arrays"""
)
@click.argument("cache", type=FilePath("DIR"))
@click.option("--bad", is_flag=True, help="List the rows without a feature: key, source, status, reason.")
@shared_options
def command(cache: Path, bad: bool, as_json: bool, quiet: bool) -> None:
    """Show what is in the cache at CACHE: arrays, sources, indexes, neighbours, selections."""
    from cache_schema.cache import Cache
    from cache_schema.summary import bad_rows, summary_of

    opened = Cache.open(cache)
    result = summary_of(opened)
    if bad:
        result["bad_rows"] = list(bad_rows(opened))
    print_result(result, as_json=as_json, lines=_lines(result), next_step=_next_step(cache, result))


def _lines(result: dict[str, Any]) -> list[str]:
    parts = ", ".join(f"{number:,} {modality}" for modality, number in result["parts"].items()) or "none"
    lines = [f"cache {result['cache']}: parts of {result['part_rows']:,} rows ({parts})", ""]
    lines += array_lines([{**array, "array": name} for name, array in result["arrays"].items()], ARRAY_COLUMNS)
    if result["pixels"] is not None:
        lines += ["", pixels_line(result["pixels"])]
    lines += ["", "computed on:", *table(_numerics(result), ("array", "numerics", "parts", "allowed"))]
    for title, columns in (
        ("sources", ("modality", "kind", "samples", "uri")),
        ("indexes", ("modality", "index", "kind", "num_rows", "recall_at_10", "state")),
        ("neighbours", ("name", "from", "to", "k", "state")),
        ("selections", ("name", "array", "rows", "method", "state")),
        ("bad_rows", ("modality", "array", "row", "key", "source", "status", "reason")),
    ):
        if result.get(title):
            lines += ["", f"{title.replace('_', ' ')}:", *table(result[title], columns)]
    if result.get("bad_rows") == []:
        lines += ["", "no bad rows"]
    return lines


def _numerics(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row per array and kind of arithmetic, with its parts; more than one kind was allowed by somebody."""
    return [
        {
            "array": name,
            "numerics": kind,
            "parts": parts,
            "allowed": "--allow-mixed-numerics" if array["mixed_numerics_allowed"] else "",
        }
        for name, array in result["arrays"].items()
        for kind, parts in array["numerics"].items()
    ]


def _next_step(cache: Path, result: dict[str, Any]) -> str:
    where = shlex.quote(str(cache))
    arrays = result["arrays"].values()
    pending = [array["teacher"] for array in arrays if array["pending"]]
    if pending:
        verb = "import" if all(teacher.startswith("imported:") for teacher in pending) else "extract"
        return f"pipeline {verb} --cache {where}"
    if result["pixels"] and result["pixels"]["pending_parts"]:
        return f"pipeline extract --cache {where}"
    if any(array["bad"] for array in arrays) and "bad_rows" not in result:
        return f"pipeline inspect {where} --bad"
    return f"pipeline verify {where}"
