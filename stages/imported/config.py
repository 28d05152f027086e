"""The configuration of an import. Imports nothing heavy, so that a command line can show it."""

from pathlib import Path

from cache_schema.errors import UsageError
from cache_schema.shards import check_part_rows
from stages.parts import settings
from stages.settings.check import check_settings
from stages.settings.declare import configuration, running, setting

DEFAULT_LOGIT_SCALE = 100.0
"""What CLIP was trained with and DIME-FM uses; assumed, and recorded as assumed, where nobody says otherwise."""


@configuration
class ImportConfig:
    """The settings of `pipeline import`. The only home of their defaults."""

    image_features: tuple[str, ...] = setting(default=(), metavar="URI", help="Features of images; may be repeated.")
    text_features: tuple[str, ...] = setting(default=(), metavar="URI", help="Features of sentences; may be repeated.")
    images: tuple[str, ...] = setting(
        default=(),
        metavar="URI",
        help="Their pictures, joined by key; distill needs them.",
        more="Without any, rows are features alone.",
    )
    texts: tuple[str, ...] = setting(
        default=(),
        metavar="URI",
        help="Their sentences, joined by key.",
        more="Without any, the sentences that stand beside the features.",
    )
    teacher_name: str | None = setting(default=None, help="Whose features they are.", if_none="the cache's own")
    cache: Path = setting(help="Folder of the cache; made when missing.")
    logit_scale: float | None = setting(
        default=None,
        above=0,
        most=1e9,
        help="Of the teacher.",
        more="The factor on cosines that it was trained with; that of the cache where it has one.",
        if_none=f"{DEFAULT_LOGIT_SCALE:g}, noted",
    )
    add_teacher: bool = running(default=False, help="Put them beside another teacher's, over the same rows.")
    part_rows: int | None = settings.part_rows()
    decode_workers: int | None = settings.decode_workers(
        help="Processes that look at pictures.",
        more="For their sizes and to find the bad ones; 0 decodes inline.",
        if_none="the cores",
    )
    max_bad_fraction: float = settings.max_bad_fraction()
    allow_useless_sources: bool = settings.allow_useless_sources()
    index: bool = settings.index(help="Build a FAISS index of every array at the end.")
    index_device: str = settings.index_device()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.part_rows is not None:
            check_part_rows(self.part_rows)
        for samples, features, flag in (
            (self.images, self.image_features, "image"),
            (self.texts, self.text_features, "text"),
        ):
            if samples and not features:
                raise UsageError(
                    f"--{flag}s {samples[0]} needs features to go with it: name them with --{flag}-features, "
                    "or run `pipeline extract` with a teacher"
                )
