"""What an evaluation is asked to do. Imports nothing heavy, so that a command line can show it."""

from dataclasses import dataclass
from pathlib import Path

from cache_schema.errors import UsageError


@dataclass(frozen=True)
class EvaluateConfig:
    """What `pipeline evaluate` is asked to do. The only home of its defaults.

    Attributes:
        model: a run, an exported folder or a teacher specification.
        data: folder in the CLIP_benchmark webdataset layout, see `stages.evaluate.data`.
        teacher: specification of the teacher to compare with; None means the one that a run learnt from, if it can be
            loaded.
        compare: whether to compare with a teacher at all.
        batch_size: pictures, or prompts, of one forward pass.
        device: cpu, cuda or cuda:N.
        num_threads: CPU threads; 0 leaves torch's own choice.
        decode_workers: processes that decode pictures; 0 decodes in this one.
    """

    model: str
    data: Path
    teacher: str | None = None
    compare: bool = True
    batch_size: int = 64
    device: str = "cpu"
    num_threads: int = 0
    decode_workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_threads", 0), ("decode_workers", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}: use {least} or more")
        if self.teacher is not None and not self.compare:
            raise UsageError(
                f"teacher {self.teacher} is named and the comparison with a teacher is switched off: drop one"
            )
