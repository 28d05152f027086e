"""What `pipeline import` is asked to do. Imports nothing heavy, so that a command line can show it."""

from dataclasses import dataclass
from pathlib import Path

from cache_schema.errors import UsageError
from cache_schema.shards import check_part_rows

DEFAULT_LOGIT_SCALE = 100.0
"""What CLIP was trained with and DIME-FM uses; assumed, and recorded as assumed, where nobody says otherwise."""


@dataclass(frozen=True)
class ImportConfig:
    """What `pipeline import` is asked to do. The only home of its defaults.

    Attributes:
        cache: folder of the feature cache, made when missing.
        image_features: files of image features.
        text_features: files of text features.
        images: sources of the pictures, joined to their features by key; without any, rows are features alone.
        texts: sources of the sentences, joined by key; without any, the sentences that stand beside the features.
        teacher_name: what the features are known as; None means the name that the cache's imported features have.
        logit_scale: factor on cosines that the teacher was trained with; None means the cache's, or 100.
        add_teacher: put the features beside those of another teacher, over the same rows.
        part_rows: rows of one part; None means those of the cache, or 16,384 for a new one.
        decode_workers: processes that decode pictures, for their sizes and to find the bad ones; 0 decodes inline.
        index: build a FAISS index of every finished array.
        index_device: where indexes are built: cpu or cuda.
        max_bad_fraction: stop when more than this share of all planned rows is bad; 1 never stops.
    """

    cache: Path
    image_features: tuple[str, ...] = ()
    text_features: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    teacher_name: str | None = None
    logit_scale: float | None = None
    add_teacher: bool = False
    part_rows: int | None = None
    decode_workers: int = 1
    index: bool = True
    index_device: str = "cpu"
    max_bad_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.part_rows is not None:
            check_part_rows(self.part_rows)
        if self.decode_workers < 0:
            raise UsageError(f"decode_workers is {self.decode_workers}: use 0 or more")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UsageError(f"max_bad_fraction is {self.max_bad_fraction}: use a share from 0 to 1")
        for samples, features, flag in (
            (self.images, self.image_features, "image"),
            (self.texts, self.text_features, "text"),
        ):
            if samples and not features:
                raise UsageError(
                    f"--{flag}s {samples[0]} needs features to go with it: name them with --{flag}-features, "
                    "or run `pipeline extract` with a teacher"
                )
