"""The configuration of stage one. Imports nothing heavy, so that a command line can show it."""

from pathlib import Path

from cache_schema.shards import check_part_rows
from stages.parts import settings
from stages.settings.check import check_settings
from stages.settings.declare import configuration, running, setting

MAX_VIEWS = 256
MAX_PIXELS_SIDE = 8192
BATCH_ON_CPU = 64


@configuration
class ExtractConfig:
    """The settings of `pipeline extract`. The only home of their defaults."""

    images: tuple[str, ...] = setting(default=(), metavar="URI", help="Source of images; may be repeated.")
    texts: tuple[str, ...] = setting(default=(), metavar="URI", help="Source of sentences; may be repeated.")
    teacher: str | None = setting(
        default=None, help="Teacher, see `pipeline list teachers`.", if_none="the cache's own"
    )
    cache: Path = setting(help="Folder of the cache; made when missing.")
    add_teacher: bool = running(
        default=False, help="Put a second teacher beside the cache's first.", more="Over the same rows."
    )
    batch_size: int | None = running(
        default=None,
        least=1,
        help="Rows of one forward pass.",
        more="The last batch of a part is padded to it. On a GPU it is measured once, and kept with the array.",
        if_none=f"{BATCH_ON_CPU}; by the memory of a GPU",
    )
    part_rows: int | None = settings.part_rows()
    precision: str = setting(
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="Of the forward pass.",
        more="auto: as in the arrays that the cache has of this teacher. At its first one bfloat16 on a GPU, if that "
        "keeps the features of the probes, else float32.",
    )
    device: str = running(
        default="auto",
        metavar="auto|cpu|cuda",
        help="Where the teacher runs.",
        more="auto: the GPUs where there are some, all that the machine has. cuda:N is one of them.",
    )
    num_threads: int = running(
        default=0, least=0, most=4096, help="CPU threads of one teacher; 0 shares the cores.", more="Among its workers."
    )
    decode_workers: int | None = settings.decode_workers(
        help="Processes that decode images, per teacher.",
        more="0 decodes in the worker itself.",
        if_none="1; beside a GPU, the cores",
    )
    max_bad_fraction: float = settings.max_bad_fraction()
    views: int | None = setting(
        default=None,
        least=1,
        most=MAX_VIEWS,
        help="Of every image, view 0 included.",
        more="View 0 is the teacher's own evaluation preprocessing, every further one a crop.",
        if_none="the cache's, or 1",
    )
    view_seed: int | None = setting(
        default=None, least=0, most=2**63 - 1, rare=True, help="Of the crops.", if_none="the cache's, or 0"
    )
    store_pixels: int | None = setting(
        default=None,
        least=1,
        most=MAX_PIXELS_SIDE,
        help="Keep small JPEGs with this shorter side, such as 256.",
        more="In pixels, never enlarged; further views are then cut from them. None stores as the cache does.",
    )
    allow_mixed_numerics: bool = running(
        default=False,
        rare=True,
        help="Go on where parts were computed on another kind of device.",
        more="Or with another instruction set or version of torch.",
    )
    accept_new: bool = running(
        default=False,
        help="Take sources that changed as they are now.",
        more="What is found again keeps its row; the other rows of such a source become src-changed.",
    )
    retry_bad: str | None = running(
        default=None,
        metavar="STATUS",
        help="Extract again the parts with rows of this status.",
        more="Such as src-unreadable; all other rows must come out as they were.",
        if_none="none",
    )
    allow_useless_sources: bool = settings.allow_useless_sources()
    index: bool = settings.index(help="Build a FAISS index of every view 0 at the end.")
    index_device: str = settings.index_device()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.part_rows is not None:
            check_part_rows(self.part_rows)
