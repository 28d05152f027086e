"""A JPEG whose picture data stops early is never filled with grey, even when somebody put an end mark behind it."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from stages.images.decode import Limits, decode_image
from stages.images.jpeg import lacks_scans
from tests.corpora.pictures import encoded

END = b"\xff\xd9"


def photograph(mode: str = "RGB", **options: object) -> bytes:
    y, x = np.mgrid[0:120, 0:160]
    pixels = np.stack([x, y, x + y], axis=-1).astype(np.uint8) ^ np.random.default_rng(0).integers(0, 32, (120, 160, 3))
    return encoded(Image.fromarray(pixels.astype(np.uint8)).convert(mode), "JPEG", **options)


def status(payload: bytes) -> str:
    return decode_image(payload, Limits()).status


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"quality": 30}], ids=str)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_jpeg_with_an_end_mark_behind_it_is_truncated(mode: str, options: dict, share: float) -> None:
    whole = photograph(mode, **options)
    assert status(whole) == "ok"
    assert status(whole[: int(len(whole) * share)] + END) in ("img-truncated", "img-corrupt")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_progressive_jpeg_without_its_later_scans_is_truncated(share: float) -> None:
    whole = photograph(progressive=True)
    assert status(whole) == "ok" and not lacks_scans(whole)
    assert status(whole[: int(len(whole) * share)] + END) == "img-truncated"


def test_a_jpeg_whose_header_claims_more_rows_than_it_has_is_truncated() -> None:
    claimed = bytearray(photograph())
    frame = claimed.index(b"\xff\xc0")
    claimed[frame + 5 : frame + 7] = struct.pack(">H", 4000)
    assert status(bytes(claimed)) == "img-truncated"


@pytest.mark.parametrize("level", [0, 126, 127, 128, 129, 255])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_picture_of_one_level_is_whole(level: int, mode: str, progressive: bool) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (65, 33), level if mode == "L" else (level,) * 3).save(buffer, "JPEG", progressive=progressive)
    assert status(buffer.getvalue()) == "ok"
    assert status(buffer.getvalue() + b"what follows the picture" * 9 + END) == "ok"


def test_bytes_that_no_marker_describes_never_raise() -> None:
    rng = np.random.default_rng(1)
    whole = photograph()
    for _ in range(300):
        changed = bytearray(whole)
        for place in rng.integers(2, len(whole), 4):
            changed[place] = rng.integers(0, 256)
        lacks_scans(bytes(changed))
        assert status(bytes(changed)).startswith(("ok", "img-"))
