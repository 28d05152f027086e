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
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_EMPTY_INTERVAL = re.compile(rb"\xff[\xd0-\xd7]\xff[\xd0-\xd7]")
_SETS_INTERVAL = b"\xff\xdd\x00\x04"
_SCAN, _END, _RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
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


def lacks_intervals(payload: bytes) -> bool:
    """Returns whether a scan has fewer restart intervals than its picture, or an empty one: libjpeg fills them.

    A picture without restart marks has one interval, whose end nothing tells.
    """
    if _SETS_INTERVAL not in payload:
        return False
    interval = num_marks = start = 0
    frame: bytes = b""
    for marker, body, position in _segments(payload):
        if num_marks:
            data = payload[start:position]
            if len(_RESTART.findall(data)) < num_marks or _EMPTY_INTERVAL.search(data):
                return True
            num_marks = 0
        if marker == _RESTART_INTERVAL and len(body) >= 2:
            (interval,) = struct.unpack_from(">H", body)
        elif marker in _FRAMES and len(body) >= 6 + 3 * body[5]:
            frame = body
        elif marker == _SCAN and interval and frame and body:
            num_marks = -(-_units_of_scan(frame, body) // interval) - 1
            start = position + 4 + len(body)
    return False


def _units_of_scan(frame: bytes, scan: bytes) -> int:
    """Returns the number of coded units (MCU) of a scan; 1 where the frame does not tell its height."""
    height, width, num_components = struct.unpack_from(">HHB", frame, 1)
    if not height:
        return 1
    sampling = {frame[6 + 3 * at]: divmod(frame[7 + 3 * at], 16) for at in range(num_components)}
    most_x, most_y = (max(1, *(pair[axis] for pair in sampling.values()), 1) for axis in (0, 1))
    if scan[0] != 1:
        return -(-width // (8 * most_x)) * -(-height // (8 * most_y))
    x, y = sampling.get(scan[1], (most_x, most_y))
    # A scan of one colour is coded block by block, of the blocks that hold picture.
    columns, rows = -(-width * x // most_x), -(-height * y // most_y)
    return -(-columns // 8) * -(-rows // 8)


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
