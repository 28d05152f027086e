"""The precision in which a teacher computes where nobody says one: bfloat16 on a GPU, if its probes bear that."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import RefusedError
from cache_schema.layout import MODALITIES
from stages.teachers import Teacher, takes
from stages.teachers.described import loaded_teacher
from stages.teachers.probes import compute_probes

LEAST_COSINE = 0.999
"""Between the features of one input in two precisions, the same that a teacher needs to be taken for itself."""


def chosen_precision(specification: str, device: str, *, compared_on: str, say: Callable[[str], None]) -> str:
    """Returns "bfloat16" for a teacher on a GPU that keeps every probe's feature near that of float32, else "float32".

    Args:
        specification: the specification of the teacher.
        device: where it is to compute.
        compared_on: where this process compares; it may have no GPU itself.
        say: called with a sentence about what was chosen, where there was a choice.

    Raises: as `load_teacher`.
    """
    if device == "cpu" or not takes(specification, "precision"):
        return "float32"
    cosine = least_cosine("bfloat16", specification, compared_on)
    kept = f"in bfloat16 all probes keep a cosine of {cosine:.5f} or more to their features in float32"
    if cosine >= LEAST_COSINE:
        say(f"precision bfloat16: {kept}")
        return "bfloat16"
    say(f"precision float32: {kept}, and {LEAST_COSINE} is the least")
    return "float32"


def least_cosine(precision: str, specification: str, device: str) -> float:
    """Returns the least cosine between the features of one probe in `precision` and in float32; -1 where it has none.

    Raises: as `load_teacher`.
    """
    exact = _features(loaded_teacher(specification, device, "float32"))
    try:
        rounded = _features(loaded_teacher(specification, device, precision))
    except RefusedError:
        return -1.0
    return float(np.einsum("nd,nd->n", exact, rounded).min())


def _features(teacher: Teacher) -> NDArray[np.float64]:
    """Returns features_ND, unit norm, of the probes of both modalities."""
    features = np.concatenate([compute_probes(teacher, modality)["features"] for modality in MODALITIES])
    return features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
