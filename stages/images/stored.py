"""Stores a picture once more as a small JPEG, so that training needs neither the original nor a slow decode."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from PIL import Image

from cache_schema.errors import RefusedError
from cache_schema.json_file import Json
from stages.images.preprocess import INTERPOLATIONS

_LONGEST_SIDE = 65_500
"""A little less than the longest side that a JPEG can have."""


@dataclass(frozen=True)
class PixelRule:
    """The rule by which an upright RGB picture becomes its stored JPEG.

    Attributes:
        side: pixels of the shorter side afterwards; smaller pictures keep their size.
        quality: the quality of the JPEG, in libjpeg's measure.
        subsampling: the subsampling of its colours.
        interpolation: the interpolation of the resize, a name of `INTERPOLATIONS`.
    """

    side: int
    quality: int = 90
    subsampling: str = "4:2:0"
    interpolation: str = "bicubic"

    def to_json(self) -> dict[str, Json]:
        """Returns the JSON form; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> "PixelRule":
        """Returns the rule with that JSON form; raises `RefusedError` when it is none of ours."""
        fields = set(cls.__dataclass_fields__)
        if set(value) != fields or value["interpolation"] not in INTERPOLATIONS:
            raise RefusedError(
                f"stored pixels have the rule {dict(value)}, this version knows {', '.join(sorted(fields))}: upgrade"
            )
        return cls(**value)

    def stored_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns (width, height) of the stored picture, from those of the upright original."""
        factor = min(1.0, self.side / min(width, height), _LONGEST_SIDE / max(width, height))
        return max(1, round(width * factor)), max(1, round(height * factor))

    def encode(self, image: Image.Image) -> bytes:
        """Returns the JPEG of an upright RGB picture."""
        size = self.stored_size(*image.size)
        small = image if image.size == size else image.resize(size, INTERPOLATIONS[self.interpolation])
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=self.quality, subsampling=self.subsampling)
        return buffer.getvalue()
