"""`pipeline verify`: read a whole cache and name everything that is not as it was committed."""

import shlex
from pathlib import Path

import click

from cache_schema.errors import RefusedError
from pipeline.options.shared import shared_options
from pipeline.options.types import FilePath
from pipeline.output import print_result
from pipeline.progress import open_progress


@click.command(
    epilog="""\b
Example:
  pipeline verify cache
Ends with 4 when there is any problem. Leftovers of an interrupted write are listed and do no harm."""
)
@click.argument("cache", type=FilePath("DIR"))
@shared_options
def command(cache: Path, as_json: bool, quiet: bool) -> None:
    """Prove that every byte of the cache at CACHE is what was committed, and that every row is accounted for."""
    from cache_schema.cache import Cache
    from cache_schema.leftovers import leftovers_of
    from cache_schema.verify import verify_cache

    with open_progress("verify", quiet=quiet) as progress:
        problems = verify_cache(cache, progress=progress)
    leftovers = [str(path) for path in leftovers_of(Cache.open(cache))]
    lines = [f"{problem.where}: {problem.what}: {problem.remedy}" for problem in problems]
    print_result(
        {"cache": str(cache), "problems": [problem.to_json() for problem in problems], "leftovers": leftovers},
        as_json=as_json,
        lines=[
            *(lines or [f"cache {cache}: everything is as it was committed"]),
            *(f"{path}: is left over from an interrupted write; `pipeline gc` removes it" for path in leftovers),
        ],
        next_step="" if problems else f"pipeline inspect {shlex.quote(str(cache))}",
    )
    if problems:
        named = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise RefusedError(f"cache {cache} has {named}: run `pipeline repair`, or do what stands beside each")
