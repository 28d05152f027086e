"""A JPEG whose picture data stops early is never filled with grey, even when somebody put an end mark behind it."""

import base64
import io
import struct

import numpy as np
import pytest
from PIL import Image

from stages.images.decode import Limits, decode_image
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
    assert status(whole) == "ok"
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


def scans_of(payload: bytes) -> list[tuple[int, int]]:
    """Returns where the picture data of every scan starts and ends, in a file whose headers hold no marker."""
    scans = []
    for start in (at for at in range(len(payload)) if payload.startswith(b"\xff\xda", at)):
        data = start + 2 + struct.unpack_from(">H", payload, start + 2)[0]
        scans.append((data, next(at for at in range(data, len(payload)) if payload[at : at + 2] in ENDS_OF_SCANS)))
    return scans


ENDS_OF_SCANS = (b"\xff\xc4", b"\xff\xda", END)
ARITHMETIC = (
    "/9j/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTmCNl4x9lnN+gXz/yQALCAAQABgBAREA"
    "/8wABgAQEAX/2gAIAQEAAD8A/wAJLVhJvhULEAbxtRFDZEWKD5r/AIcdctvgqzbGTDNm7MDFa9sJMR42vpOIrRj/2Q=="
)
"""24 x 16 grey pixels, written by cjpeg -arithmetic of libjpeg-turbo 2.1.5."""
LAST_BYTES = 64
"""So much of a scan may be missing without a trace; mostly it is less than sixteen."""


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"progressive": True, "subsampling": 0}], ids=str)
@pytest.mark.parametrize("keeps_what_follows", [True, False])
def test_a_jpeg_of_which_a_scan_is_cut_inside_is_truncated(mode: str, options: dict, keeps_what_follows: bool) -> None:
    whole = photograph(mode, **options)
    scans = [scan for scan in scans_of(whole) if scan[1] - scan[0] > LAST_BYTES]
    assert len(scans) >= (3 if options else 1)
    for start, end in scans:
        for cut in (start, start + 1, (start + end) // 2, end - LAST_BYTES):
            assert status(whole[:cut] + (whole[end:] if keeps_what_follows else END)) == "img-truncated"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_progressive_jpeg_that_ends_between_two_scans_is_truncated(mode: str) -> None:
    whole = photograph(mode, progressive=True)
    for _, end in scans_of(whole)[:-1]:
        assert status(whole[:end] + END) == "img-truncated"


@pytest.mark.parametrize("options", [{}, {"quality": 100}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_a_jpeg_that_goes_on_in_zeros_is_truncated(options: dict) -> None:
    whole = photograph(**options)
    for share in (0.3, 0.6, 0.9):
        start = int(len(whole) * share)
        assert status(whole[:start] + bytes(len(whole) - start)) == "img-truncated"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_bytes_that_writers_put_between_a_scan_and_the_next_marker_are_no_fault(options: dict) -> None:
    whole = photograph(**options)
    for padding in (b"\x00", bytes(40), b"\xff\xff\xff", b"\xff\x00", b"\x00\xff\xff"):
        padded = whole
        for _, end in reversed(scans_of(whole)):
            padded = padded[:end] + padding + padded[end:]
        assert status(padded) == "ok"


def test_a_jpeg_in_arithmetic_coding_is_decoded_as_it_is() -> None:
    payload = base64.b64decode(ARITHMETIC)
    decoded = decode_image(payload, Limits())
    with Image.open(io.BytesIO(payload)) as plain:
        assert decoded.image is not None and decoded.image.tobytes() == plain.convert("RGB").tobytes()
