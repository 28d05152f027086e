"""A TIFF that lacks the bytes of a strip is truncated, whatever its reader makes of it; a whole one never is."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from stages.images.decode import Limits, decode_image
from tests.corpora.pictures import encoded, noise

STRIP_OFFSETS, STRIP_BYTES = 273, 279
ANY = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16")
WRITTEN = {
    **dict.fromkeys(("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "lzma", "zstd"), ANY),
    "jpeg": ("L", "RGB", "CMYK", "YCbCr"),
    **dict.fromkeys(("group3", "group4", "tiff_ccitt"), ("1",)),
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


def place_of(data: bytes, wanted: int) -> tuple[str, int]:
    """Returns the form and the place of the numbers of a tag in the first directory."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (num_entries,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * num_entries, 12):
        tag, kind, count = struct.unpack_from("<HHI", data, entry)
        if tag == wanted:
            form = f"<{count}{'H' if kind == 3 else 'I'}"
            return form, struct.unpack_from("<I", data, entry + 8)[0] if struct.calcsize(form) > 4 else entry + 8
    raise AssertionError(wanted)


def numbers_of(data: bytes, tag: int) -> list[int]:
    return list(struct.unpack_from(place_of(data, tag)[0], data, place_of(data, tag)[1]))


def with_numbers(data: bytes, tag: int, numbers: list[int]) -> bytes:
    form, place = place_of(data, tag)
    return data[:place] + struct.pack(form, *numbers) + data[place + struct.calcsize(form) :]


def with_halved_strips(data: bytes) -> bytes:
    """Returns a TIFF whose strips are half as long as they were, by the counts of its directory."""
    return with_numbers(data, STRIP_BYTES, [count // 2 for count in numbers_of(data, STRIP_BYTES)])


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
    assert status == "img-truncated"


FAX = [(picture, name) for picture in ("noise", "white", "black") for name in ("group3", "group4", "tiff_ccitt")]


# What libtiff writes in the last one it cannot read back, unless it is plain.
@pytest.mark.parametrize(("picture", "compression"), [*FAX, ("white", "tiff_raw_16"), ("black", "tiff_raw_16")])
def test_fax_data_is_whole_with_all_its_rows_whatever_they_show(picture: str, compression: str) -> None:
    image = noise(61, 90).convert("1") if picture == "noise" else Image.new("1", (61, 90), picture == "white")
    whole = encoded(image, "TIFF", compression=compression)
    assert decode_image(whole, Limits()).status == "ok"
    assert decode_image(with_halved_strips(whole), Limits()).status == "img-truncated"


@pytest.mark.parametrize("picture", ["noise", "white", "black"])
def test_fax_data_of_group_4_needs_no_end_mark(picture: str) -> None:
    image = noise(61, 90).convert("1") if picture == "noise" else Image.new("1", (61, 90), picture == "white")
    data = encoded(image, "TIFF", compression="group4")
    (count,) = numbers_of(data, STRIP_BYTES)
    # The mark is 24 bits that end in the last byte or the one before.
    assert decode_image(with_numbers(data, STRIP_BYTES, [count - 2]), Limits()).status == "ok"


@pytest.mark.parametrize(
    "compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "group3", "group4"]
)
def test_a_compressed_tiff_that_goes_on_in_zeros_is_truncated(compression: str) -> None:
    data = tiff("1" if compression.startswith("group") else "RGB", compression, (300, 300))
    start, count = numbers_of(data, STRIP_OFFSETS)[-1], numbers_of(data, STRIP_BYTES)[-1]
    kept = start + count - 2000
    zeros = data[:kept] + bytes(2000) + data[start + count :]
    assert count > 3000 and decode_image(data, Limits()).status == "ok"
    assert decode_image(zeros, Limits()).status == "img-truncated"


@pytest.mark.parametrize(
    "compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "jpeg", "group4"]
)
def test_bits_in_the_other_order_are_read_in_it(compression: str) -> None:
    image = noise(64, 300).convert("1" if compression == "group4" else "L")
    data = encoded(image, "TIFF", compression=compression, tiffinfo={266: 2})
    assert numbers_of(data, 266) == [2] and decode_image(data, Limits()).status == "ok"
    assert decode_image(with_halved_strips(data), Limits()).status == "img-truncated"


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
def test_a_damaged_strip_is_not_called_truncated(compression: str) -> None:
    data = bytearray(tiff("RGB", compression, (64, 300)))
    start = numbers_of(bytes(data), STRIP_OFFSETS)[0]
    data[start + 5 : start + 60] = bytes(range(200, 255))
    assert decode_image(bytes(data), Limits()).status in ("ok", "img-corrupt")


def tiled(compression: int, num_tiles: int = 4, *, halved: int | None = None, absent: int | None = None) -> bytes:
    """Returns a grey TIFF of 32 x 32 pixels in four tiles, of which all, or one half, or one not, is stored."""
    tiles = [np.full((16, 16), 40 + number, np.uint8).tobytes() for number in range(num_tiles)]
    stored = [zlib.compress(tile, 0) if compression == 8 else tile for tile in tiles]
    counts = [len(tile) // 2 if number == halved else len(tile) for number, tile in enumerate(stored)]
    places = {322: (16,), 323: (16,), 256: (32,), 257: (32,), 258: (8,), 259: (compression,), 262: (1,), 277: (1,)}
    start = 8 + 2 + 12 * (len(places) + 2) + 4 + 8 * num_tiles
    offsets = [start + sum(map(len, stored[:number])) for number in range(num_tiles)]
    if absent is not None:
        offsets[absent] = counts[absent] = 0
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, *value) for tag, value in sorted(places.items()))
    lists = start - 8 * num_tiles
    entries += struct.pack("<HHII", 324, 4, num_tiles, lists) + struct.pack(
        "<HHII", 325, 4, num_tiles, lists + 4 * num_tiles
    )
    head = b"II*\x00" + struct.pack("<IH", 8, len(places) + 2) + entries + bytes(4)
    return head + struct.pack(f"<{2 * num_tiles}I", *offsets, *counts) + b"".join(stored)


@pytest.mark.parametrize("compression", [1, 8], ids=["uncompressed", "deflate"])
def test_a_tile_that_is_halved_or_not_there_is_missing(compression: int) -> None:
    assert decode_image(tiled(compression), Limits()).status == "ok"
    for missing in ({"halved": 0}, {"halved": 3}, {"num_tiles": 3}, {"absent": 1}):
        assert decode_image(tiled(compression, **missing), Limits()).status == "img-truncated", missing


def test_strips_that_lie_behind_the_end_of_the_file_are_missing() -> None:
    data = tiff("RGB", "raw", (40, 33))
    assert decode_image(data[:-100], Limits()).status == "img-truncated"


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "group4"])
def test_of_several_pages_the_first_is_what_counts(compression: str) -> None:
    pages = [noise(64, 300, seed).convert("1") for seed in range(2)]
    data = encoded(pages[0], "TIFF", compression=compression, save_all=True, append_images=pages[1:])
    cut = decode_image(with_halved_strips(data), Limits())
    assert decode_image(data, Limits()).reason == "first-frame" and cut.status == "img-truncated"
