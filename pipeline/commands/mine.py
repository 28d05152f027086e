"""`pipeline mine`: find the nearest rows of one array for every row of another."""

import shlex
import time
from pathlib import Path

import click

from cache_schema.errors import UsageError, nearest
from cache_schema.layout import MODALITIES, Modality, check_name
from pipeline.options.shared import shared_options
from pipeline.options.types import Choice, Count, FilePath, Text
from pipeline.output import print_result
from pipeline.progress import open_progress


@click.command(
    epilog="""\b
Example:
  pipeline mine --cache cache --from image --to text --k 32 --name nearest
An array is named by its modality, or as image/ARRAY where a cache has several.
Stopped half-way? Run the same command again."""
)
@click.option("--cache", type=FilePath("DIR"), required=True, help="Folder of the cache.")
@click.option(
    "--from", "from_array", type=Text("ARRAY"), default="image", show_default=True, help="Rows that get neighbours."
)
@click.option("--to", "to_array", type=Text("ARRAY"), default="text", show_default=True, help="What they are.")
@click.option("--k", type=Count(1, 2048), default=32, show_default=True, help="Neighbours of each row.")
@click.option("--name", type=Text("NAME"), required=True, help="What `distill --negatives mined:NAME` will call them.")
@click.option(
    "--device", type=Choice(("auto", "cpu", "cuda")), default="auto", show_default=True, help="Where the search runs."
)
@shared_options
def command(
    cache: Path, from_array: str, to_array: str, k: int, name: str, device: str, as_json: bool, quiet: bool
) -> None:
    """Find the nearest sentences of every image in a cache, through the cache's own index."""
    check_name(name, "set of neighbours")
    ends = _parsed(from_array, "--from"), _parsed(to_array, "--to")
    from cache_schema.cache import Cache
    from stages.search.mine import mine

    opened = Cache.open(cache)
    start = time.monotonic()
    with open_progress("mine", quiet=quiet) as progress:
        mined = mine(
            opened,
            from_array=opened.array(*ends[0]),
            to_array=opened.array(*ends[1]),
            k=k,
            name=name,
            device=device,
            progress=progress,
        )
    result = {"cache": str(cache), "name": name, "k": k, "seconds": round(time.monotonic() - start, 3), **mined}
    print_result(
        result,
        as_json=as_json,
        lines=[f"{key.replace('_', ' ')}: {value}" for key, value in result.items() if not isinstance(value, dict)],
        next_step=f"pipeline distill --cache {shlex.quote(str(cache))} --out RUN --negatives mined:{name}",
    )


def _parsed(array: str, flag: str) -> tuple[Modality, str | None]:
    """Returns modality and name of an array given as `image`, `text`, `image/NAME` or `text/NAME`."""
    modality, slash, name = array.partition("/")
    for known in MODALITIES:
        if modality == known:
            return known, name if slash else None
    raise UsageError(
        f"{flag} {array!r} names no array{nearest(modality, MODALITIES)}: write image, text or image/ARRAY"
    )
