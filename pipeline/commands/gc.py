"""`pipeline gc`: remove the files of a cache that no record names."""

import shlex
from pathlib import Path

import click

from pipeline.options.shared import shared_options
from pipeline.options.types import FilePath
from pipeline.output import print_result


@click.command(
    epilog="""\b
Example:
  pipeline gc cache
Removes what interrupted writes left behind, and nothing that a record names."""
)
@click.argument("cache", type=FilePath("DIR"))
@shared_options
def command(cache: Path, as_json: bool, quiet: bool) -> None:
    """Remove the files of the cache at CACHE that no record names."""
    from cache_schema.cache import Cache
    from cache_schema.leftovers import remove_leftovers

    num_files, num_bytes = remove_leftovers(Cache.open(cache))
    print_result(
        {"cache": str(cache), "removed_files": num_files, "removed_bytes": num_bytes},
        as_json=as_json,
        lines=[f"removed {num_files:,} files, {num_bytes:,} bytes"],
        next_step=f"pipeline verify {shlex.quote(str(cache))}",
    )
