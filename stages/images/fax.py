"""Whether the fax data of a TIFF covers its rows. libtiff leaves the rows white or black that it has no data for.

Source: ITU-T T.4 and T.6; libtiff's tif_fax3.c, which stops reading at the last row.
"""

import io
import random
import struct
from collections.abc import Iterator

from PIL import Image

from stages.images.strips import MIN_ZEROS

COMPRESSIONS = (2, 3, 4, 32771)
_GROUP_4 = 4
_END_OF_ROW = f"{1:012b}"
_END_OF_BLOCK = _END_OF_ROW * 2
_NO_WHITE, _TWO_WHITE, _TWO_BLACK = "00110101", "0111", "11"
_FILLER_ROWS, _FILLER_BYTES = 8, 512


def ends_early(tags: dict[int, int], piece: bytes) -> bool:
    """Returns whether a strip of fax data ends before its last row.

    More data behind a strip that covers its rows changes no pixel. A strip of group 4 with its end mark is whole.

    Args:
        tags: width, height (of the strip) and what else libtiff has to know of it, by the numbers of the tags.
        piece: the strip, whose bytes begin with their highest bits.
    """
    if tags[259] == _GROUP_4 and _has_end_mark(piece):
        return False
    plain = _pixels_of(tags, piece)
    # Data that goes on in zeros was not written to its end.
    written = piece.rstrip(b"\x00")
    starts = (piece, written) if len(piece) - len(written) >= MIN_ZEROS else (piece,)
    return any(_pixels_of(tags, start + filler) != plain for start in starts for filler in _fillers())


def _has_end_mark(piece: bytes) -> bool:
    bits = "".join(f"{byte:08b}" for byte in piece.rstrip(b"\x00")[-5:])
    return bits.rstrip("0").endswith(_END_OF_BLOCK)


def _fillers() -> Iterator[bytes]:
    """Yields bytes that no reader takes for white rows only, or for black ones: rows with stripes, and random ones."""
    for start in ("", _END_OF_ROW, _END_OF_ROW + "1"):
        row = start + _NO_WHITE + (_TWO_BLACK + _TWO_WHITE) * 16
        yield int(row * 8 * _FILLER_ROWS, 2).to_bytes(len(row) * _FILLER_ROWS, "big")
    for seed in range(2):
        yield random.Random(seed).randbytes(_FILLER_BYTES)


def _pixels_of(tags: dict[int, int], piece: bytes) -> bytes | None:
    """Returns the pixels of a TIFF of one strip; None where libtiff fails."""
    values = {**tags, 258: 1, 277: 1, 278: tags[257], 279: len(piece)}
    start = 8 + 2 + 12 * (len(values) + 1) + 4
    values[273] = start
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    head = b"II*\x00" + struct.pack("<IH", 8, len(values)) + entries + bytes(4)
    try:
        with Image.open(io.BytesIO(head + piece), formats=["TIFF"]) as image:
            return image.tobytes()
    except (OSError, SyntaxError, ValueError):
        return None
