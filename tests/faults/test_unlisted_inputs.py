"""Inputs that nobody listed: each gets a status of ours within its limits, and no neighbour of it changes."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from stages.images.decode import Limits, decode_image
from stages.images.pool import DecodePool
from stages.images.prepare import CropPreparation
from stages.images.preprocess import Preprocess
from tests.corpora.pictures import encoded, jpeg, noise, png, png_chunk

PREPROCESS = Preprocess((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "shortest")


def many_scans(num_scans: int) -> bytes:
    """Returns a progressive JPEG whose last scan comes again and again; every one of them is decoded."""
    whole = encoded(Image.new("RGB", (3000, 3000), (90, 20, 60)), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    return whole[:start] + whole[start:-2] * num_scans + b"\xff\xd9"


def looping_tiff() -> bytes:
    """Returns a TIFF whose first directory names itself as the next."""
    payload = bytearray(encoded(noise(20, 20), "TIFF"))
    (first,) = struct.unpack("<I", payload[4:8])
    (num_entries,) = struct.unpack("<H", payload[first : first + 2])
    at = first + 2 + 12 * num_entries
    payload[at : at + 4] = struct.pack("<I", first)
    return bytes(payload)


def giant_strip_tiff() -> bytes:
    """Returns a TIFF that claims a strip of 4 GB."""
    payload = bytearray(encoded(noise(20, 20), "TIFF"))
    (first,) = struct.unpack("<I", payload[4:8])
    (num_entries,) = struct.unpack("<H", payload[first : first + 2])
    for entry in range(first + 2, first + 2 + 12 * num_entries, 12):
        if struct.unpack("<H", payload[entry : entry + 2])[0] == 279:
            payload[entry + 8 : entry + 12] = b"\xff\xff\xff\xff"
    return bytes(payload)


def gif_of(width: int, height: int) -> bytes:
    payload = bytearray(encoded(noise(8, 8), "GIF"))
    payload[6:10] = struct.pack("<HH", width, height)
    return bytes(payload)


UNLISTED: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "a JPEG with a zip behind it": (lambda: jpeg() + b"PK\x03\x04" + bytes(500), ("ok",)),
    "two JPEGs joined": (lambda: jpeg(seed=1) + jpeg(seed=2), ("ok",)),
    "a PNG with a script behind it": (lambda: encoded(noise(9, 9), "PNG") + b"<script>x</script>", ("ok",)),
    "a gzip of a JPEG": (lambda: gzip.compress(jpeg()), ("img-unknown-format",)),
    "a JPEG in base64": (lambda: b"/9j/4AAQSkZJRgABAQAAAQABAAD", ("img-unknown-format",)),
    "a byte order mark before a PNG": (lambda: b"\xef\xbb\xbf" + encoded(noise(9, 9), "PNG"), ("img-unknown-format",)),
    "a git-lfs pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", ("img-unknown-format",)),
    "a TIFF whose directory names itself": (looping_tiff, ("ok", "img-corrupt")),
    "a TIFF with a strip of 4 GB": (giant_strip_tiff, ("ok", "img-corrupt", "img-truncated")),
    "a GIF with a frame larger than its screen": (lambda: gif_of(4, 4), ("ok", "img-corrupt")),
    "a GIF with a giant screen": (lambda: gif_of(65535, 65535), ("img-too-many-pixels",)),
    "a PNG whose data inflates past its pixels": (
        lambda: png(8, 8, pixels=(b"\x00" + bytes(24)) * 8 + bytes(50 << 20)),
        ("ok", "img-corrupt", "img-metadata"),
    ),
    "a PNG with an unknown critical chunk": (
        lambda: png(8, 8, png_chunk(b"ABCD", b"x"), pixels=(b"\x00" + bytes(24)) * 8),
        ("ok", "img-corrupt"),
    ),
    "a PNG with a palette too short": (
        lambda: png(8, 8, png_chunk(b"PLTE", b"\x00" * 3), color_type=3, pixels=(b"\x00" + b"\x05" * 8) * 8),
        ("ok", "img-corrupt"),
    ),
    "a PNG without data": (lambda: png(8, 8), ("img-corrupt", "img-truncated")),
    "a JPEG of 65,500 by 1": (lambda: jpeg(65_500, 1), ("ok", "img-too-many-pixels")),
    "a WebP whose header claims too little": (
        lambda: (data := encoded(noise(30, 30), "WEBP"))[:4] + struct.pack("<I", 20) + data[8:],
        ("ok", "img-corrupt", "img-truncated"),
    ),
    "a BMP that claims a header of 4 GB": (
        lambda: (data := encoded(noise(9, 9), "BMP"))[:14] + b"\xff\xff\xff\xff" + data[18:],
        ("img-corrupt", "img-unknown-format"),
    ),
    "an animated PNG": (
        lambda: encoded(noise(9, 9), "PNG", save_all=True, append_images=[noise(9, 9, 1)]),
        ("ok",),
    ),
    "zeros as long as a photograph": (lambda: bytes(200_000), ("img-unknown-format",)),
    "zlib of nothing": (lambda: zlib.compress(b""), ("img-unknown-format",)),
}


@pytest.mark.parametrize("name", UNLISTED.keys())
def test_an_unlisted_picture_gets_a_status_of_ours(name: str) -> None:
    make, statuses = UNLISTED[name]
    decoded = decode_image(make(), Limits())
    assert decoded.status in statuses
    assert (decoded.image is None) == (decoded.status != "ok")


def test_unlisted_pictures_change_no_neighbour() -> None:
    good = [jpeg(40, 30, seed) for seed in range(len(UNLISTED))]
    plan = CropPreparation(PREPROCESS)
    jobs = [
        (payload, None)
        for pair in zip(good, (make() for make, _ in UNLISTED.values()), strict=True)
        for payload in pair
    ]
    with DecodePool(1, plan) as pool:
        found = list(pool.map(jobs))[::2]
    for payload, prepared in zip(good, found, strict=True):
        assert prepared.pixels is not None
        assert np.array_equal(prepared.pixels, plan.prepare(payload, None).pixels)


@pytest.mark.slow
def test_a_progressive_jpeg_of_ten_thousand_scans_times_out_alone() -> None:
    plan = CropPreparation(PREPROCESS, Limits(seconds=1.0))
    payloads = [jpeg(seed=1), many_scans(10_000), jpeg(seed=2)]
    assert len(payloads[1]) < 64 << 20
    with DecodePool(1, plan) as pool:
        found = list(pool.map([(payload, None) for payload in payloads]))
    assert [prepared.status for prepared in found] == ["ok", "img-timeout", "ok"]


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (17, 17, 17)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_of_one_colour_is_ok(colour: tuple[int, int, int], form: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(buffer, form)
    prepared = CropPreparation(PREPROCESS).prepare(buffer.getvalue(), None)
    assert prepared.status == "ok" and prepared.pixels is not None
    assert np.abs(prepared.pixels.astype(int) - colour).max() <= 4
