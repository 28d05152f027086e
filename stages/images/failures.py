"""Whether a picture that could not be decoded ends early. A decoder says that it failed, and not what it lacked."""

import io
import struct
from collections.abc import Callable
from typing import Any

from PIL import Image

from stages.images import tiff

_GROWN_BYTES = 1 << 20
_BMP_RLE = (1, 2)


def ends_early(format_name: str, payload: bytes) -> bool:
    """Returns whether the data of a picture that could not be decoded ends before the picture is full.

    Raises whatever Pillow meets where the file is damaged in its head, too.
    """
    check = _CHECKS.get(format_name)
    return check is not None and check(payload)


def _tiff_ends_early(payload: bytes) -> bool:
    with Image.open(io.BytesIO(payload), formats=["TIFF"]) as image:
        tags = image.tag_v2  # type: ignore[attr-defined]
        return tiff.lacks_data(tags, payload) or tiff.ends_early(tags, payload)


def _gif_ends_early(payload: bytes) -> bool:
    """Asks the decoder: it wants more where data ends, and stops where data is wrong."""
    with Image.open(io.BytesIO(payload), formats=["GIF"]) as image:
        codec, extents, offset, arguments = image.tile[0]
        image.load_prepare()
        decoder: Any = Image._getdecoder(image.mode, codec, arguments, image.decoderconfig)
        try:
            decoder.setimage(image.im, extents)
            return bool(decoder.decode(payload[offset:])[0] >= 0)
        finally:
            decoder.cleanup()


def _bmp_ends_early(payload: bytes) -> bool:
    """Counts the rows that are there, whatever size the header claims.

    Reading run lengths fails only where they lack pixels.
    """
    (start, header_bytes) = struct.unpack_from("<II", payload, 10)
    if header_bytes == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", payload, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", payload, 18)
    if compression in _BMP_RLE:
        return True
    return bool(len(payload) - start < (width * bits + 31) // 32 * 4 * abs(height))


def _webp_ends_early(payload: bytes) -> bool:
    """Puts zeros behind the picture data: data that is short, and not damaged, is a picture then.

    Animations are not asked.
    """
    position = 12
    while position + 8 <= len(payload):
        name, num_bytes = struct.unpack_from("<4sI", payload, position)
        data = payload[position + 8 : position + 8 + num_bytes]
        if name in (b"VP8 ", b"VP8L"):
            grown = data + bytes(_GROWN_BYTES - len(data) % 2)
            body = b"WEBP" + payload[12:position] + name + struct.pack("<I", len(grown)) + grown
            with Image.open(io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body), formats=["WEBP"]) as image:
                image.load()
            return True
        if name == b"ANMF":
            return False
        position += 8 + num_bytes + num_bytes % 2
    return True


_CHECKS: dict[str, Callable[[bytes], bool]] = {
    "bmp": _bmp_ends_early,
    "gif": _gif_ends_early,
    "tiff": _tiff_ends_early,
    "webp": _webp_ends_early,
}
