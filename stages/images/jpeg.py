"""Tells whole JPEGs from cut ones: libjpeg fills missing data with grey, and Pillow keeps its warning.

Source: ITU-T T.81, annex B (markers) and annex G (progression); libjpeg-turbo's jdhuff.c, which leaves the blocks of a
scan that ended early at zero.
"""

import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from PIL import Image, ImageFile

Segment = tuple[int, bytes, int]
"""Marker, body and the place in the file."""

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_EMPTY_INTERVAL = re.compile(rb"\xff[\xd0-\xd7]\xff[\xd0-\xd7]")
_SETS_INTERVAL = b"\xff\xdd\x00\x04"
_SCAN, _END, _RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}
_NUM_COEFFICIENTS = 64
# Eight bytes of ones: as many as libjpeg reads ahead, and no code word begins with them, so that they fill few blocks.
_FILLER = b"\xff\x00" * 8
# A byte, and the beginning of what may be a marker: too little to read ahead.
_PROBE = b"\x00\xff"


def reaches_its_end(payload: bytes) -> bool:
    """Returns whether the end mark of the first picture in `payload` is there."""
    return any(marker == _END for marker, _, _ in _segments(payload))


def _lacks_scans(segments: list[Segment]) -> bool:
    """Returns whether a colour, or a band of frequencies of a progressive picture, has no scan of its own."""
    components: tuple[int, ...] = ()
    progressive = False
    # Bit n of a colour stands for its frequency n.
    finished: dict[int, int] = {}
    for marker, body, _ in segments:
        if marker in _FRAMES and len(body) >= 6:
            progressive = marker in _PROGRESSIVE
            components = tuple(body[6 + 3 * number] for number in range(body[5]) if 6 + 3 * number < len(body))
        elif marker == _SCAN and body and len(body) >= 4 + 2 * body[0]:
            first, last, precision = body[1 + 2 * body[0] : 4 + 2 * body[0]]
            if not progressive:
                first, last, precision = 0, _NUM_COEFFICIENTS - 1, 0
            if precision & 0x0F == 0 and first <= last:
                band = (1 << last + 1) - (1 << first)
                for number in range(body[0]):
                    one = body[1 + 2 * number]
                    finished[one] = finished.get(one, 0) | band
    every = (1 << _NUM_COEFFICIENTS) - 1
    return any(finished.get(one, 0) & every != every for one in components)


def _lacks_intervals(segments: list[Segment], payload: bytes) -> bool:
    """Returns whether a scan has fewer restart intervals than its picture, or an empty one: libjpeg fills them.

    Intervals in front of marks are not measured, the last one is, as the end of its scan.
    """
    if _SETS_INTERVAL not in payload:
        return False
    interval = num_marks = start = 0
    frame: bytes = b""
    for marker, body, position in segments:
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


def load_whole(image: ImageFile.ImageFile, payload: bytes) -> bool:
    """Decodes the pixels of `image`, opened from `payload`, and returns whether nothing of the picture is missing.

    libjpeg fills what is missing, and keeps its warning. It is fed up to the end of a scan, and then bytes that are no
    marker: behind a full scan it skips them all, in one that lacks data it waits for more. A scan that lacks no more
    than its last bytes is filled by ours, and taken. Arithmetic coding ends with zeros that writers leave out, so that
    nothing tells what is missing.

    Raises:
        OSError: the data is damaged, or ends before the picture and its end mark. The picture is then not loaded.
    """
    segments = list(_segments(payload))
    codec, extents, _, arguments = image.tile[0]
    image.load_prepare()
    decoder: Any = Image._getdecoder(image.mode, codec, arguments, image.decoderconfig)
    try:
        decoder.setimage(image.im, extents)
        if not _fill(decoder, segments, payload):
            return False
    finally:
        decoder.cleanup()
    image.tile = []
    return not _lacks_scans(segments) and not _lacks_intervals(segments, payload)


def _fill(decoder: Any, segments: list[Segment], payload: bytes) -> bool:
    """Gives a picture to Pillow's decoder scan by scan; returns False at the first that is too short."""
    view, start = memoryview(payload), 0
    for end in _ends_of_scans(segments):
        num_used, error = decoder.decode(view[start:end])
        if num_used >= 0:
            # What it has not used is part of a block, or of the marker that began this stretch.
            rest = payload[start + num_used : end] + _FILLER
            num_used, error = decoder.decode(rest)
            if 0 <= num_used < len(rest):
                return False
        if num_used >= 0:
            num_used, error = decoder.decode(_PROBE)
            if num_used == 0:
                return False
        if num_used < 0:
            return _is_done(error)
        # The last byte of the probe is kept by neither side.
        start = end
    has_end = bool(segments) and segments[-1][0] == _END
    num_used, error = decoder.decode(view[start : len(payload if has_end else payload.rstrip(b"\x00"))])
    if num_used >= 0:
        raise OSError("the data ends before the picture")
    return _is_done(error)


def _is_done(error: int) -> bool:
    if error < 0:
        raise OSError(f"the decoder failed with {error}")
    return True


def _ends_of_scans(segments: list[Segment]) -> list[int]:
    """Returns where the picture data of every scan ends, which is at the next marker."""
    if any(marker in _ARITHMETIC for marker, _, _ in segments):
        return []
    return [after[2] for (marker, _, _), after in pairwise(segments) if marker == _SCAN]


def _segments(payload: bytes) -> Iterator[Segment]:
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
