"""A TIFF that lacks the bytes of a strip is truncated, whatever its reader makes of it; a whole one never is."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from stages.images.decode import Limits, decode_image
from tests.corpora.pictures import noise

STRIP_BYTES = 279
ANY = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16")
WRITTEN = {
    **dict.fromkeys(("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma"), ANY),
    "jpeg": ("L", "RGB", "CMYK"),
    **dict.fromkeys(("group3", "group4"), ("1",)),
}
"""Compression -> the modes that Pillow writes with it."""


def tiff(mode: str, compression: str, size: tuple[int, int]) -> bytes:
    """Returns a TIFF that Pillow wrote."""
    picture = noise(*size)
    grey = np.asarray(picture.convert("L")).astype(np.uint16)
    image = Image.fromarray(grey * 257) if mode == "I;16" else picture.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression=compression)
    return buffer.getvalue()


def with_halved_strips(data: bytes) -> bytes:
    """Returns a TIFF whose strips are half as long as they were, by the counts of its directory."""
    halved = bytearray(data)
    (directory,) = struct.unpack_from("<I", data, 4)
    (num_entries,) = struct.unpack_from("<H", data, directory)
    for number in range(num_entries):
        entry = directory + 2 + 12 * number
        tag, kind, count = struct.unpack_from("<HHI", data, entry)
        if tag == STRIP_BYTES:
            form, size = {3: ("<H", 2), 4: ("<I", 4)}[kind]
            (start,) = struct.unpack_from("<I", data, entry + 8) if size * count > 4 else (entry + 8,)
            for place in range(start, start + size * count, size):
                struct.pack_into(form, halved, place, struct.unpack_from(form, data, place)[0] // 2)
    return bytes(halved)


@pytest.mark.parametrize("size", [(40, 33), (64, 300)])
@pytest.mark.parametrize(("compression", "mode"), [(name, mode) for name, modes in WRITTEN.items() for mode in modes])
def test_a_whole_tiff_is_ok_and_one_with_halved_strips_is_not(
    mode: str, compression: str, size: tuple[int, int]
) -> None:
    data = tiff(mode, compression, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_image(data, Limits()).status == "ok"
        status = decode_image(with_halved_strips(data), Limits()).status
    if compression in ("raw", "jpeg"):
        assert status == "img-truncated"
    elif compression not in ("group3", "group4") and mode != "YCbCr":
        # libtiff itself fails; of fax data and YCbCr it fills what is missing, and nothing in the file tells.
        assert status in ("img-truncated", "img-corrupt")


def test_strips_that_lie_behind_the_end_of_the_file_are_missing() -> None:
    data = tiff("RGB", "raw", (40, 33))
    assert decode_image(data[:-100], Limits()).status == "img-truncated"
