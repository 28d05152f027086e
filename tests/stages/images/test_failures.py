"""A picture whose data ends early is truncated although its file is closed as a whole one is; a damaged one is not."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from stages.images.decode import Limits, decode_image
from tests.corpora.pictures import encoded, noise


def status(payload: bytes) -> str:
    return decode_image(payload, Limits()).status


def gif_data(payload: bytes) -> tuple[int, bytes]:
    """Returns where the picture data of a GIF starts, and the data without the lengths of its blocks."""
    with Image.open(io.BytesIO(payload)) as image:
        start = position = image.tile[0].offset  # type: ignore[attr-defined]
    data = b""
    while length := payload[position]:
        data += payload[position + 1 : position + 1 + length]
        position += 1 + length
    return start, data


def gif_of(head: bytes, data: bytes) -> bytes:
    blocks = (data[at : at + 255] for at in range(0, len(data), 255))
    return head + b"".join(bytes([len(block)]) + block for block in blocks) + b"\x00;"


def test_a_gif_whose_data_is_short_is_truncated() -> None:
    whole = encoded(noise(60, 40), "GIF")
    start, data = gif_data(whole)
    assert status(gif_of(whole[:start], data)) == "ok"
    for share in (0, 0.1, 0.5, 0.9):
        assert status(gif_of(whole[:start], data[: int(len(data) * share)])) == "img-truncated"
    damaged = data[:200] + bytes(255 - byte for byte in data[200:260]) + data[260:]
    assert status(gif_of(whole[:start], damaged)) == "img-corrupt"


def test_a_gif_whose_stream_says_too_early_that_it_ends_is_truncated() -> None:
    whole = encoded(noise(60, 40), "GIF")
    start, _ = gif_data(whole)

    def stream(num_pixels: int) -> bytes:
        # Codes of nine bits only, as the table is cleared before it grows.
        codes = [code for at in range(0, num_pixels, 100) for code in (256, *[7] * min(100, num_pixels - at))] + [257]
        bits = sum(code << 9 * number for number, code in enumerate(codes))
        return bits.to_bytes(-(-9 * len(codes) // 8), "little")

    assert status(gif_of(whole[:start], stream(2400))) == "ok"
    for num_pixels in (60, 1200, 2399):
        assert status(gif_of(whole[:start], stream(num_pixels))) == "img-truncated"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_bmp_whose_header_claims_the_size_that_was_left_is_truncated(mode: str, share: float) -> None:
    whole = encoded(noise(61, 40).convert(mode), "BMP")
    (start,) = struct.unpack_from("<I", whole, 10)
    cut = whole[: start + int((len(whole) - start) * share)]
    assert status(whole) == "ok"
    assert status(cut[:2] + struct.pack("<I", len(cut)) + cut[6:]) == "img-truncated"


def bmp_in_runs(num_rows: int) -> bytes:
    """Returns a BMP of 40 x 20 pixels of one colour in run lengths, of which so many rows are there."""
    # Pixel by pixel, so that half of it is longer than all of it without compression.
    palette, data = bytes(1024), (bytes([1, 3]) * 40 + b"\x00\x00") * num_rows
    head = struct.pack("<IiiHHIIiiII", 40, 40, 20, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(data), 0, 0, 1078) + head + palette + data


def test_a_bmp_in_run_lengths_that_lacks_rows_is_truncated() -> None:
    assert status(bmp_in_runs(20)) == "ok" and status(bmp_in_runs(20) + b"\x00\x01") == "ok"
    assert status(bmp_in_runs(10)) == status(bmp_in_runs(10) + b"\x00\x01") == "img-truncated"


def webp_of(name: bytes, data: bytes) -> bytes:
    body = b"WEBP" + name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("is_lossless", [False, True], ids=["lossy", "lossless"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_webp_whose_sizes_are_those_that_were_left_is_truncated(is_lossless: bool, share: float) -> None:
    whole = encoded(noise(160, 140), "WEBP", lossless=is_lossless)
    name, num_bytes = struct.unpack_from("<4sI", whole, 12)
    data = whole[20 : 20 + num_bytes]
    assert status(webp_of(name, data)) == "ok"
    cut = webp_of(name, data[: int(num_bytes * share)])
    assert status(cut) == "img-truncated"
    # The file as long as it says, and its chunk shorter than it says.
    assert status(cut[:16] + struct.pack("<I", num_bytes) + cut[20:]) == "img-truncated"


def test_a_webp_that_is_damaged_in_its_head_is_corrupt() -> None:
    whole = bytearray(encoded(noise(60, 40), "WEBP"))
    whole[23:26] = b"\xff\xff\xff"
    assert status(bytes(whole)) == "img-corrupt"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_png_that_goes_on_in_zeros_is_truncated(share: float) -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)), "PNG")
    start = int(len(whole) * share)
    assert status(whole[:start] + bytes(len(whole) - start)) == "img-truncated"
    assert status(whole[:start] + bytes(100) + whole[start + 100 :]) == "img-corrupt"
