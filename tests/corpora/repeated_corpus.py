"""Pictures and sentences of which some repeat others, byte for byte or nearly, and a cache of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from cache_schema.cache import Cache
from tests.corpora.extracts import extracted_cache
from tests.corpora.pictures import encoded
from tests.corpora.small_corpus import picture

SENTENCES = (
    "a red disc",
    "a blue disc",
    " a red disc  ",
    "a red disc",
    "",
    "a green square",
    "a blue disc",
    "A red disc",
)


def repeated_cache(folder: Path) -> Cache:
    """Returns a cache of 24 pictures and eight sentences under `folder`.

    Of the pictures 3 have the same bytes as another, and 2 differ from another only in JPEG quality; 00 and 23 are
    empty, and take no part.
    """
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(18):
        (pictures / f"{number:02d}.jpg").write_bytes(_jpeg(number, quality=95))
    for copy, original, quality in ((18, 2, 95), (19, 2, 95), (20, 17, 95), (21, 5, 80), (22, 6, 80)):
        (pictures / f"{copy}.jpg").write_bytes(_jpeg(original, quality=quality))
    for number in (0, 23):
        (pictures / f"{number:02d}.jpg").write_bytes(b"")
    (folder / "sentences.txt").write_text("\n".join(SENTENCES) + "\n")
    return extracted_cache(folder / "cache", pictures, folder / "sentences.txt", part_rows=8)


def _jpeg(number: int, *, quality: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
    image = Image.blend(picture(number)[0], Image.fromarray(noise).resize((40, 40)), 0.7)
    return encoded(image, "JPEG", quality=quality)
