"""The measures of a classification, from scores and labels.

Shape letters: N pictures, K classes.
"""

import numpy as np
from numpy.typing import NDArray


def top1_of(scores_NK: NDArray[np.floating], labels_N: NDArray[np.int64]) -> float:
    """Returns the share of pictures whose best score is that of their class."""
    return float((scores_NK.argmax(axis=1) == labels_N).mean())


def mean_per_class_recall(scores_NK: NDArray[np.floating], labels_N: NDArray[np.int64]) -> float:
    """Returns the mean over classes of the share of their pictures that are recognised.

    Classes without a picture take no part, neither in the mean nor as an answer.
    """
    present = np.unique(labels_N)
    best_N = present[scores_NK[:, present].argmax(axis=1)]
    return float(np.mean([(best_N[labels_N == label] == label).mean() for label in present]))
