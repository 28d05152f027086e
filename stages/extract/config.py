"""What stage one is asked to do. Imports nothing heavy, so that a command line can show it."""

from dataclasses import dataclass
from pathlib import Path

from cache_schema.errors import UsageError
from cache_schema.shards import check_part_rows

MAX_VIEWS = 256
MAX_PIXELS_SIDE = 8192


@dataclass(frozen=True)
class ExtractConfig:
    """What `pipeline extract` is asked to do. The only home of its defaults.

    Attributes:
        cache: folder of the feature cache, made when missing.
        images: sources of images.
        texts: sources of sentences.
        teacher: specification; None means the one that the cache was made with.
        add_teacher: put a second teacher beside the one that the cache has, over the same rows.
        batch_size: rows of one forward pass; the last batch of a part is padded to it.
        part_rows: rows of one part; None means those of the cache, or 16,384 for a new one.
        precision: of the forward pass: float32, bfloat16 or float16.
        device: cpu, cuda or cuda:N.
        num_threads: CPU threads of one teacher; 0 means the cores of the machine, shared by its workers.
        decode_workers: processes that decode images; 0 decodes in the worker itself.
        index: build a FAISS index of every finished array.
        index_device: where indexes are built: cpu or cuda.
        views: how many views of every image the teacher looks at, the first being view 0, its own evaluation
            preprocessing, and every further one a crop; None means as many as the cache has, or 1.
        view_seed: of the crops; None means that of the views in the cache, or 0.
        store_pixels: keep every image once more as a JPEG with this shorter side, never enlarged; None stores as the
            cache does, or nothing. Views of a cache with stored pixels are cut from them.
        allow_mixed_numerics: go on with parts computed on another kind of device, instruction set or version of torch.
        max_bad_fraction: stop when more than this share of all planned rows is bad; 1 never stops.
    """

    cache: Path
    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    teacher: str | None = None
    add_teacher: bool = False
    batch_size: int = 64
    part_rows: int | None = None
    precision: str = "float32"
    device: str = "cpu"
    num_threads: int = 0
    decode_workers: int = 1
    views: int | None = None
    view_seed: int | None = None
    store_pixels: int | None = None
    index: bool = True
    index_device: str = "cpu"
    allow_mixed_numerics: bool = False
    max_bad_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.part_rows is not None:
            check_part_rows(self.part_rows)
        for name, least in (("batch_size", 1), ("num_threads", 0), ("decode_workers", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}: use {least} or more")
        if self.views is not None and not 1 <= self.views <= MAX_VIEWS:
            raise UsageError(f"views is {self.views}: use 1 to {MAX_VIEWS}")
        if self.view_seed is not None and not 0 <= self.view_seed < 2**63:
            raise UsageError(f"view_seed is {self.view_seed}: use 0 to {2**63 - 1}")
        if self.store_pixels is not None and not 1 <= self.store_pixels <= MAX_PIXELS_SIDE:
            raise UsageError(f"store_pixels is {self.store_pixels}: use 1 to {MAX_PIXELS_SIDE}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UsageError(f"max_bad_fraction is {self.max_bad_fraction}: use a share from 0 to 1")
