"""The configuration of an evaluation. Imports nothing heavy, so that a command line can show it."""

from pathlib import Path

from cache_schema.errors import UsageError
from stages.settings.check import check_settings
from stages.settings.declare import configuration, running, setting


@configuration
class EvaluateConfig:
    """The settings of `pipeline evaluate`. The only home of their defaults."""

    model: str = setting(flag=None, help="A run, RUN@STEP, an exported folder or a teacher specification.")
    data: Path = setting(
        help="Folder of the labelled pictures.",
        more="In the CLIP_benchmark webdataset layout, see `stages.evaluate.data`.",
    )
    teacher: str | None = setting(
        default=None,
        help="Compare with it.",
        more="A specification; without one, only a teacher that can be loaded is compared with.",
        if_none="the one MODEL learnt from",
    )
    compare: bool = setting(default=True, flag="--compare/--no-compare", help="Compare with a teacher.")
    batch_size: int = running(
        default=64, least=1, help="Pictures of one forward pass.", more="Of the text tower: prompts."
    )
    device: str = running(
        default="auto",
        metavar="auto|cpu|cuda",
        help="Where the model runs.",
        more="auto: a GPU where there is one. Or cuda:N.",
    )
    num_threads: int = running(default=0, least=0, most=4096, help="CPU threads; 0 is torch's own choice.")
    decode_workers: int | None = running(
        default=None,
        least=0,
        most=4096,
        help="Processes that decode pictures.",
        more="0 decodes in this one.",
        if_none="1; beside a GPU, the cores",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.teacher is not None and not self.compare:
            raise UsageError(
                f"teacher {self.teacher} is named and the comparison with a teacher is switched off: drop one"
            )
