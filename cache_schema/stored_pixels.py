"""The stored pixels of a whole cache: what is committed, one JPEG by its row, and whether all of it is right."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from threading import Lock

from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, RefusedError, UnfinishedError, UsageError
from cache_schema.pixels import VERIFY, PixelsOfPart, PixelsRecipe, PixelsRecord, read_pixels_recipe, read_pixels_record
from cache_schema.plan import Part, Plan
from cache_schema.records import committed_parts
from cache_schema.samples import OK


class StoredPixels:
    """The stored pixels of an open cache; see `stored_pixels`."""

    def __init__(self, cache: Cache, recipe: PixelsRecipe) -> None:
        self.cache = cache
        self.recipe = recipe
        self._parts: dict[int, PixelsOfPart] = {}
        self._opening: dict[int, Lock] = {}

    def __str__(self) -> str:
        return f"stored pixels of {self.cache.path}"

    @cached_property
    def plan(self) -> Plan:
        return self.cache.plan("image")

    @cached_property
    def committed(self) -> frozenset[int]:
        """Numbers of the parts that have a record."""
        layout = self.cache.layout
        return self.plan.recorded(committed_parts(layout.all_pixels), lambda part: read_pixels_record(layout, part))

    def record(self, part: int) -> PixelsRecord:
        """Returns the record of a committed part, checked against recipe and plan; raises `DamagedError`."""
        record = read_pixels_record(self.cache.layout, part)
        planned = self.plan.part(part) if part < self.plan.num_parts else None
        if planned is None or not self.plan.is_of_part(planned, record.num_rows, record.part_fingerprint):
            raise DamagedError(f"{self.cache.layout.pixels_record(part)} is of other rows than the plan: {VERIFY}")
        if record.fingerprint != self.recipe.fingerprint:
            raise MismatchError(
                f"{self.cache.layout.pixels_record(part)} has fingerprint {record.fingerprint[:12]}, pixels.json "
                f"{self.recipe.fingerprint[:12]}: {VERIFY}"
            )
        return record

    def records(self) -> list[PixelsRecord]:
        """Returns the records of all committed parts, in part order; errors as `record`."""
        return [self.record(part) for part in sorted(self.committed)]

    def pending(self) -> list[Part]:
        """Returns the planned parts without pixels, in order."""
        return [part for part in self.plan.parts() if part.number not in self.committed]

    def require_complete(self) -> None:
        """Raises `UnfinishedError` with the progress when a planned part has no pixels."""
        if pending := self.pending():
            raise UnfinishedError(
                f"the {self} are unfinished: {len(self.committed)} of {self.plan.num_parts} parts have them (missing: "
                f"{', '.join(str(part.number) for part in pending[:10])}): run `pipeline extract` again to finish them"
            )

    def jpeg(self, row: int, digest: bytes) -> bytes:
        """Returns the JPEG of an ok image row, made from the original with that `digest`.

        The first row of a part that is asked for costs a read of its whole file, once, whatever the number of threads.

        Raises:
            DamagedError: it is missing, not what was stored, or made from other bytes.
        """
        part, offset = divmod(row, self.cache.part_rows)
        if part not in self._parts:
            with self._opening.setdefault(part, Lock()):
                self._open(part)
        return self._parts[part].picture(offset, digest)

    def _open(self, part: int) -> None:
        if part not in self._parts:
            stored = PixelsOfPart(self.cache.layout.pixels(part), self.record(part))
            # A picture cannot be told from another of the same original by its row alone.
            stored.require_committed()
            self._parts[part] = stored


def stored_pixels(cache: Cache) -> StoredPixels | None:
    """Returns the stored pixels of `cache`, None when it stores none; raises `DamagedError` for a bad pixels.json."""
    recipe = read_pixels_recipe(cache.layout)
    return None if recipe is None else StoredPixels(cache, recipe)


def verify_pixels(cache: Cache, note: Callable[[Path, str, int | None], None]) -> None:
    """Calls `note` with (where, what, part) for everything that is wrong with the stored pixels of `cache`.

    Checks the SHA-256 of every file, the crc32c of every JPEG, and that exactly the images that could be decoded have
    one, made from the bytes that the sample table names.
    """
    layout = cache.layout
    try:
        pixels = stored_pixels(cache)
    except (RefusedError, UsageError) as error:
        note(layout.pixels_json, str(error), None)
        return
    if pixels is None:
        if committed_parts(layout.all_pixels):
            note(layout.pixels_json, "is missing: nobody knows how the stored pixels were made", None)
        return
    for part in sorted(pixels.committed):
        try:
            for what in _problems_of_part(pixels, part):
                note(layout.pixels(part), what, part)
        except (RefusedError, UsageError) as error:
            note(layout.pixels(part), str(error), part)


def _problems_of_part(pixels: StoredPixels, part: int) -> Iterator[str]:
    record, path = pixels.record(part), pixels.cache.layout.pixels(part)
    stored = PixelsOfPart(path, record)
    stored.require_committed()
    rows = [stored.row(offset) for offset in range(record.num_rows)]
    if sum(row.jpeg is not None for row in rows) != record.num_pictures:
        yield f"do not hold the {record.num_pictures} pictures of their record"
    try:
        samples = pixels.cache.samples("image", part)
    except (DamagedError, UnfinishedError):
        # A problem of the arrays, reported there.
        return
    for row, digest, status in zip(rows, *(samples.column(c).to_pylist() for c in ("digest", "status")), strict=True):
        if (row.jpeg is not None) != (status == OK) or row.digest != digest:
            yield f"have a row that is not of the sample {digest.hex()[:12] if digest else '-'} ({status})"
