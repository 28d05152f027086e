"""Zero-shot measures of a student while it learns, on an evaluation set (`--probe`).

Shape letters: K classes, D width of a feature.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_schema.cache import CachedArray
from cache_schema.errors import UsageError
from cache_schema.reading import read_file
from cache_schema.recipe import IMPORTED
from stages.evaluate.data import EvaluationSet, open_evaluation_set
from stages.evaluate.encode import encode_set
from stages.evaluate.metrics import METRICS
from stages.students.encoder import StudentEncoder
from stages.teachers import load_text_tower
from stages.teachers.class_vectors import class_vectors
from stages.teachers.described import arithmetic_of
from stages.teachers.held import load_held
from stages.teachers.probes import check_probes, probes_from_bytes

_BATCH_SIZE = 256


@dataclass(frozen=True)
class Probe:
    """An evaluation set with what the teacher's text tower makes of its classes.

    Attributes:
        data: the set.
        class_KD: float32, unit norm.
        num_workers: processes that decode.
    """

    data: EvaluationSet
    class_KD: NDArray[np.float32]
    num_workers: int

    def measure(self, encoder: StudentEncoder) -> dict[str, float]:
        """Returns `zero_shot_top1` and `mean_per_class_recall`, as `pipeline evaluate` does; errors as `encode_set`."""
        encoded = encode_set(
            encoder, self.data, batch_size=_BATCH_SIZE, decode_workers=self.num_workers, progress=_ignore
        )
        scores_NK = encoded.image_ND @ self.class_KD.T
        return {name: float(metric(scores_NK, encoded.labels_N)) for name, metric in METRICS.items()}


def open_probe(path: Path, texts: CachedArray, *, device: str, num_workers: int) -> Probe:
    """Returns the probe on the evaluation set at `path`; the teacher's text tower is loaded for it, and let go.

    Args:
        path: of the evaluation set.
        texts: the text array whose teacher encodes the prompts.
        device: where it does.
        num_workers: processes that decode.

    Raises:
        UsageError: the cache was imported, so that nobody knows the text tower; or the set lacks a file of its layout.
        MismatchError: the text tower found does not reproduce the probes of the cache.
        PipelineError: it cannot be loaded.
    """
    specification = texts.recipe.specification
    if specification.startswith(f"{IMPORTED}:"):
        raise UsageError(
            f"--probe {path} needs the text tower of the teacher, and the features of {texts.cache.path} were imported "
            "without one: drop --probe, and name the teacher to `pipeline evaluate --teacher` afterwards"
        )
    data = open_evaluation_set(path)
    teacher = load_held(lambda: load_text_tower(specification, device=device))
    probes = texts.cache.layout.probes("text", texts.name)
    stored = read_file(probes)
    if stored is not None:
        arithmetic = arithmetic_of(teacher, device, "float32")
        check_probes(probes_from_bytes(stored, where=probes), teacher, "text", where=probes, arithmetic=arithmetic)
    return Probe(data, class_vectors(teacher, data.prompts(), batch_size=_BATCH_SIZE), num_workers)


def _ignore(done: int) -> None:
    """Stands for a progress that nobody follows."""
