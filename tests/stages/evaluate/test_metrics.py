"""The measures on hand-made scores."""

import numpy as np

from stages.evaluate.metrics import mean_per_class_recall


def test_classes_without_pictures_take_no_part_in_the_mean_per_class_recall():
    scores = np.array([[0.1, 0.2, 0.9], [0.6, 0.5, 0.9], [0.1, 0.9, 0.2]])
    labels = np.array([1, 0, 1])  # class 2 has no pictures, so it is no answer either
    assert mean_per_class_recall(scores, labels) == 1.0
