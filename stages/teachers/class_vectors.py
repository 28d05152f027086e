"""Class vectors: from the prompts of every class to one unit vector each.

Shape letters: K classes, D width of a feature.

**Source:** CLIP's prompt ensembling, as in the ELEVATER toolkit: fill all templates, encode, normalise, average,
normalise.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cache_schema.features import usable_unit_rows
from stages.teachers import Teacher

Prompts = Sequence[Sequence[str]]
"""For every class, in the order of the labels, its prompts; at least one."""


def class_vectors(texts: Teacher, prompts_of_class: Prompts, *, batch_size: int) -> NDArray[np.float32]:
    """Returns class_KD, float32, unit norm: one vector per class, the mean of its prompts' unit features.

    Raises:
        RefusedError: a prompt or a class has no usable feature; names the prompt.
    """
    means = []
    for prompts in prompts_of_class:
        batches = [list(prompts[first : first + batch_size]) for first in range(0, len(prompts), batch_size)]
        encoded = np.concatenate([texts.encode_texts(batch) for batch in batches])
        means.append(usable_unit_rows(encoded, f"prompts such as {prompts[0]!r}").mean(axis=0))
    return usable_unit_rows(np.stack(means), "a class vector")


def count_cut_prompts(texts: Teacher, prompts_of_class: Prompts) -> int:
    """Returns how many prompts are longer than the text tower reads; 0 where that is unknown."""
    counts = texts.count_tokens([prompt for prompts in prompts_of_class for prompt in prompts])
    if counts is None or texts.context_length is None:
        return 0
    return sum(count > texts.context_length for count in counts)
