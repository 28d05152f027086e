"""Views of the teacher that a student sees again: the same boxes of the same pictures, against their own features."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from cache_schema.cache import Cache, CachedArray, ImageLocation
from cache_schema.errors import MismatchError
from cache_schema.view_checks import read_checks
from stages.distill.config import DistillConfig
from stages.distill.rows import Rows, rows_in_all
from stages.images.crops import Crop
from stages.images.views import ViewRule, recipe_of_view_0, rule_of

_PARTS_OF_CHECKS = 256


@dataclass(frozen=True)
class Replay:
    """The views that a student sees again: those of `arrays` in turn, one an epoch.

    Attributes:
        arrays: the views, complete, all of one teacher and cut from the same pictures.
    """

    arrays: tuple[CachedArray, ...]
    _seen: dict[int, NDArray[np.bool_]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _rules(self) -> list[ViewRule]:
        rules = [rule_of(array.recipe) for array in self.arrays]
        return [rule for rule in rules if rule is not None]

    def ok_rows(self) -> Rows:
        """Returns the rows that have a feature in every view, ascending."""
        return rows_in_all(*(array.ok_rows() for array in self.arrays))

    def crops(self, locations: Sequence[ImageLocation], epochs: Rows) -> list[Crop]:
        """Returns the box and flip that the teacher saw of every image in the view of its epoch."""
        places = zip(locations, self._places(epochs).tolist(), strict=True)
        return [self._rules[place].crop(at.digest, width=at.width, height=at.height) for at, place in places]

    def features(self, rows: Rows, epochs: Rows) -> NDArray[np.float32]:
        """Returns the teacher's features of those views, shape (len(rows), dim), unit norm."""
        places = self._places(epochs)
        features_BD = np.empty((len(rows), self.arrays[0].recipe.dim), np.float32)
        for place in np.unique(places):
            here = places == place
            features_BD[here] = self.arrays[place].features.gather_unit(rows[here])
        return features_BD

    def not_yet_seen(self, rows: Rows, epochs: Rows) -> NDArray[np.bool_]:
        """Returns which of the images were not compared in this process in the view of their epoch."""
        places = self._places(epochs)
        unseen = np.empty(len(rows), bool)
        for place in np.unique(places):
            here = places == place
            unseen[here] = ~self._seen_of(int(place))[rows[here]]
        return unseen

    def compare(
        self, rows: Rows, epochs: Rows, checks_B4: NDArray[np.uint8], locations: Sequence[ImageLocation]
    ) -> None:
        """Compares view checks with those that were committed, and remembers the images as seen.

        Raises:
            MismatchError: the student would see other pixels than the teacher; names key, row, view and versions.
        """
        for row, place, check, location in zip(
            rows.tolist(), self._places(epochs).tolist(), checks_B4, locations, strict=True
        ):
            part, offset = divmod(row, self.arrays[place].cache.part_rows)
            committed = self._checks(place, part)[offset]
            if not np.array_equal(check, committed):
                raise self._other_pixels(row, place, bytes(check), bytes(committed), location)
            self._seen_of(place)[row] = True

    def _other_pixels(
        self, row: int, place: int, check: bytes, committed: bytes, location: ImageLocation
    ) -> MismatchError:
        array = self.arrays[place]
        then = array.recipe.tools.get("pillow", "an unknown version")
        return MismatchError(
            f"view {array.recipe.view} of {location.key!r} (row {row}) has check {check.hex()} here, the teacher saw "
            f"{committed.hex()} ({array}; Pillow {version('pillow')} now, {then} then): install the Pillow that made "
            "the view, or name the --image-array of view 0, for which the student draws its own crops"
        )

    def _places(self, epochs: Rows) -> Rows:
        return epochs % len(self.arrays)

    def _seen_of(self, place: int) -> NDArray[np.bool_]:
        if place not in self._seen:
            self._seen[place] = np.zeros(self.arrays[place].plan.row_end, bool)
        return self._seen[place]

    @cached_property
    def _checks(self):  # type: ignore[no-untyped-def]
        return lru_cache(maxsize=_PARTS_OF_CHECKS)(self._read_checks)

    def _read_checks(self, place: int, part: int) -> NDArray[np.uint8]:
        array = self.arrays[place]
        return read_checks(array.cache.layout.view_checks("image", array.name, part), array.record(part))


def views_of(config: DistillConfig, cache: Cache) -> tuple[CachedArray, Replay | None]:
    """Returns the array of view 0, and the further views that are replayed; None when the student draws its own crops.

    Without a name all further views of the teacher are replayed in turn; a named one alone.

    Raises:
        UsageError: no such array, or several teachers and no name.
        UnfinishedError: a view is not complete; shows the progress.
        MismatchError: a view has no view 0 beside it.
    """
    named = cache.array("image", config.image_array)
    arrays = [cache.array("image", name) for name in cache.arrays("image")]
    view_0 = recipe_of_view_0(named.recipe).fingerprint
    of_teacher = [array for array in arrays if recipe_of_view_0(array.recipe).fingerprint == view_0]
    base = next((array for array in of_teacher if not array.recipe.view), None)
    if base is None:
        raise MismatchError(f"{named} has no view 0 of its teacher beside it: run `pipeline extract` to make it")
    if config.image_array is None:
        chosen = sorted((a for a in of_teacher if a.recipe.view), key=lambda array: array.recipe.view)
    else:
        chosen = [named] if named.recipe.view else []
    for array in (base, *chosen):
        array.require_complete()
    return base, Replay(tuple(chosen)) if chosen else None
