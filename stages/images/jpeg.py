"""Tells whole JPEGs from cut ones: libjpeg fills missing data with grey, and Pillow keeps its warning.

Source: ITU-T T.81, annex B (markers) and annex G (progression); libjpeg-turbo's jdhuff.c, which leaves the blocks of a
scan that ended early at zero.
"""

import io
import re
import struct
from collections.abc import Iterator

from PIL import Image, ImageChops

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SCAN, _END = 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_NUM_COEFFICIENTS = 64
_MID_GREY = (127, 128)
# Decoded as picture data if there is room for it: no byte of it is a marker, and no two neighbours repeat.
_FILLER = bytes((37 * number) % 251 for number in range(1, 512))


def reaches_its_end(payload: bytes) -> bool:
    """Returns whether the end mark of the first picture in `payload` is there."""
    return _end_of(payload) is not None


def lacks_scans(payload: bytes) -> bool:
    """Returns whether a colour, or a band of frequencies of a progressive picture, has no scan of its own."""
    components: tuple[int, ...] = ()
    progressive = False
    finished: set[tuple[int, int]] = set()
    for marker, body, _ in _segments(payload):
        if marker in _FRAMES and len(body) >= 6:
            progressive = marker in _PROGRESSIVE
            components = tuple(body[6 + 3 * number] for number in range(body[5]) if 6 + 3 * number < len(body))
        elif marker == _SCAN and body and len(body) >= 4 + 2 * body[0]:
            first, last, precision = body[1 + 2 * body[0] : 4 + 2 * body[0]]
            if not progressive:
                first, last, precision = 0, _NUM_COEFFICIENTS - 1, 0
            if precision & 0x0F == 0:
                seen = [body[1 + 2 * number] for number in range(body[0])]
                finished |= {(one, band) for one in seen for band in range(first, last + 1)}
    return any((one, band) not in finished for one in components for band in range(_NUM_COEFFICIENTS))


def ends_early(payload: bytes, image: Image.Image) -> bool:
    """Returns whether the picture data of `payload` stops before the last rows of `image`, its decoded picture.

    Rows without data decode to mid-grey. Where the last pixel is mid-grey, bytes are put before the end mark and the
    picture is decoded once more: a whole picture does not change by them, one that lacks data does.
    """
    last = image.getpixel((image.width - 1, image.height - 1))
    if not all(level in _MID_GREY for level in (last if isinstance(last, tuple) else (last,))):
        return False
    end = _end_of(payload)
    if end is None:
        return True
    with Image.open(io.BytesIO(payload[:end] + _FILLER + payload[end:]), formats=["JPEG"]) as again:
        again.load()
        return again.mode != image.mode or ImageChops.difference(again, image).getbbox() is not None


def _end_of(payload: bytes) -> int | None:
    """Returns where the end mark of the first picture is."""
    return next((position for marker, _, position in _segments(payload) if marker == _END), None)


def _segments(payload: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yields (marker, body, position) of every segment up to the end mark; picture data is skipped over."""
    position = 2
    while found := _MARKER.search(payload, position):
        marker = payload[found.start() + 1]
        position = found.end()
        if marker in (0x01, 0xD8):
            continue
        if marker == _END:
            yield marker, b"", found.start()
            return
        if position + 2 > len(payload):
            return
        (length,) = struct.unpack_from(">H", payload, position)
        yield marker, payload[position + 2 : position + length], found.start()
        position += length
