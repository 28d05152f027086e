"""The measures of a classification, from scores and labels.

Shape letters: N pictures, K classes.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Metric(Protocol):
    """A measure of a classification; returns a share from 0 to 1."""

    def __call__(self, scores_NK: NDArray[np.floating], labels_N: NDArray[np.int64]) -> float: ...


def top1(scores_NK: NDArray[np.floating], labels_N: NDArray[np.int64]) -> float:
    """Returns the share of pictures whose best score is that of their class."""
    return float((scores_NK.argmax(axis=1) == labels_N).mean())


def mean_per_class_recall(scores_NK: NDArray[np.floating], labels_N: NDArray[np.int64]) -> float:
    """Returns the mean over classes of the share of their pictures that are recognised.

    Classes without a picture take no part, neither in the mean nor as an answer.
    """
    present = np.unique(labels_N)
    best_N = present[scores_NK[:, present].argmax(axis=1)]
    return float(np.mean([(best_N[labels_N == label] == label).mean() for label in present]))


METRICS: dict[str, Metric] = {"zero_shot_top1": top1, "mean_per_class_recall": mean_per_class_recall}
"""Name in results -> measure."""
