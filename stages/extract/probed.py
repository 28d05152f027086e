"""A teacher at work, asked for probes at the start and again before every commit.

So a teacher that goes wrong under way (a sick device, a library that sets something, weights that are written to) is
found before anything that it made since its last good probe is on disk: there is nothing to take back, whoever is
killed in between.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cache_schema.cache import Cache
from cache_schema.errors import DriftedError, RefusedError
from cache_schema.layout import Modality
from stages.extract.wanted import WantedArray
from stages.teachers import Teacher
from stages.teachers.arithmetic import Arithmetic
from stages.teachers.probes import (
    Probes,
    check_in_batch,
    check_probes,
    compare_probes,
    probes_from_bytes,
    require_distinct,
)

LEAST_BATCHES = 100
"""A part of fewer batches is probed by fewer rows than a batch has, so that probes take no more than their share."""
FEW_ROWS = 8


class ProbedTeacher:
    """A teacher that reproduces the probes of arrays, and keeps doing so.

    Args:
        teacher: computes in this process.
        arithmetic: that of the teacher.
        batch_size: rows of a batch of the run.
        paths: of every modality the probes' files of all arrays that the teacher is to be the maker of, also those in
            which nothing is pending: a teacher that is another one for sentences is another teacher.

    Raises:
        MismatchError: it does not reproduce them, or gives other features in a batch of the run.
        RefusedError: it gives different probes one feature, or one that is not finite.
        DamagedError: a file holds no probes.
    """

    def __init__(
        self,
        teacher: Teacher,
        arithmetic: Arithmetic,
        *,
        batch_size: int,
        paths: Mapping[Modality, Sequence[Path]],
    ) -> None:
        self._teacher = teacher
        self._batch_size = batch_size
        self._known: dict[Modality, Probes] = {}
        for modality, of_arrays in paths.items():
            # The views of one teacher have the same probes, which need to be computed once only.
            for data, path in {path.read_bytes(): path for path in reversed(of_arrays)}.items():
                stored = probes_from_bytes(data, where=path)
                self._known[modality] = check_probes(stored, teacher, modality, where=path, arithmetic=arithmetic)
            require_distinct(self._known[modality], teacher.specification, modality)
            # In both sizes that are asked for later, so that what fails then is something new.
            for size in {batch_size, min(batch_size, FEW_ROWS)}:
                check_in_batch(self._known[modality], teacher, modality, batch_size=size)

    def require_same(self, modality: Modality, num_rows: int) -> None:
        """Returns when the teacher still gives the features that it gave at the start.

        Args:
            modality: the modality of the part that is about to be committed.
            num_rows: the rows of that part.

        Raises:
            DriftedError: it does not.
        """
        is_large = num_rows >= LEAST_BATCHES * self._batch_size
        size = self._batch_size if is_large else min(self._batch_size, FEW_ROWS)
        try:
            check_in_batch(self._known[modality], self._teacher, modality, batch_size=size)
        except RefusedError as error:
            raise DriftedError(
                f"the teacher went wrong while it worked: {error}. What it made since its last good probe is not "
                "committed and stays pending: mend it, and run again to resume"
            ) from error


def check_described(cache: Cache, arrays: Sequence[WantedArray], probes: Mapping[Modality, bytes]) -> None:
    """Returns when a teacher is fit to make `arrays` of `cache`, as far as its `probes` tell; writes nothing.

    Raises:
        MismatchError: an array that is there, also one in which nothing is pending, has other probes.
        RefusedError: it gives different probes one feature.
    """
    for array in arrays:
        now = probes_from_bytes(probes[array.modality], where=array.recipe.specification)
        require_distinct(now, array.recipe.specification, array.modality)
        path = cache.layout.probes(array.modality, array.name)
        if path.exists():
            stored = probes_from_bytes(path.read_bytes(), where=path)
            compare_probes(stored, now, array.recipe.specification, array.modality, where=path)
