"""The settings that every job over parts has. Imports nothing heavy, so that a command line can show them."""

from functools import partial

from cache_schema.shards import DEFAULT_PART_ROWS
from stages.settings.declare import running, setting

part_rows = partial(
    setting, default=None, least=1, help="Rows of one part; fixed with the cache.", if_none=str(DEFAULT_PART_ROWS)
)
decode_workers = partial(running, default=None, least=0, most=4096)
max_bad_fraction = partial(
    running, default=1.0, least=0, most=1, help="Stop when more rows are bad.", more="As a share of all planned rows."
)
allow_useless_sources = partial(
    running, default=False, rare=True, help="Go on where not one row of a source is usable."
)
index = partial(running, default=True, flag="--index/--no-index")
index_device = partial(
    running,
    default="auto",
    choices=("auto", "cpu", "cuda"),
    help="Where indexes are built.",
    more="auto: on a GPU that FAISS sees and that has the memory.",
)
