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


def marks_of(payload: bytes) -> list[int]:
    """Returns where the restart marks of the first scan are."""
    first = payload.index(b"\xff\xda")
    end = next(
        at for at in range(first + 2, len(payload)) if payload[at - 1] == 0xFF and payload[at] in (0xC4, 0xD9, 0xDA)
    )
    return [at for at in range(first, end) if payload[at] == 0xFF and 0xD0 <= payload[at + 1] <= 0xD7]


RESTARTS = [
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 3},
    {"restart_marker_blocks": 7, "subsampling": 0},
    {"restart_marker_rows": 1, "progressive": True},
    {"restart_marker_blocks": 5, "progressive": True, "subsampling": 1},
]


@pytest.mark.parametrize("size", [(120, 160), (121, 163), (1, 1), (17, 8)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", RESTARTS, ids=str)
def test_a_whole_jpeg_with_restart_marks_is_ok(size: tuple[int, int], mode: str, options: dict) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
    assert status(encoded(image, "JPEG", **options)) == "ok"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", RESTARTS, ids=str)
def test_a_jpeg_that_lacks_restart_intervals_is_truncated_wherever_they_were(mode: str, options: dict) -> None:
    whole = photograph(mode, **options)
    marks = marks_of(whole)
    last = whole.rindex(END)
    for first, end in ((1, 2), (len(marks) // 2, len(marks) // 2 + 1), (len(marks) // 3, 2 * len(marks) // 3)):
        assert status(whole[: marks[first]] + whole[marks[end] :]) == "img-truncated"
        assert status(whole[: marks[first] + 2] + whole[marks[first + 1] :]) == "img-truncated"
    assert status(whole[: marks[len(marks) // 2]] + whole[last:]) == "img-truncated"
