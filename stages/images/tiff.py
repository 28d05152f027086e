"""Whether a TIFF holds the bytes of all its strips or tiles. Libraries fill up what is missing and say nothing."""

from typing import Any

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _STRIP_BYTES, _PLANAR = 273, 277, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _SUBSAMPLING = 322, 323, 324, 325, 530

_UNCOMPRESSED, _JPEG = 1, 7
_YCBCR = 6
_END_OF_JPEG = b"\xff\xd9"


def lacks_data(tags: Any, payload: bytes) -> bool:
    """Returns whether a strip or tile of the first page ends behind the file, or before it is full.

    Fullness is judged where bytes tell it: without compression by their number, in JPEG by its end mark.

    Args:
        tags: number of a tag -> value, as Pillow's `tag_v2` has them.
        payload: the file.
    """
    is_tiled = _TILE_OFFSETS in tags
    offsets = _numbers(tags, _TILE_OFFSETS if is_tiled else _STRIP_OFFSETS)
    counts = _numbers(tags, _TILE_BYTES if is_tiled else _STRIP_BYTES)
    # Old writers leave the counts out, or say 0, and readers guess them.
    if not offsets or len(counts) != len(offsets) or not all(counts):
        return False
    if any(offset + count > len(payload) for offset, count in zip(offsets, counts, strict=True)):
        return True
    compression = tags.get(_COMPRESSION, _UNCOMPRESSED)
    if compression == _JPEG:
        pieces = (payload[offset : offset + count] for offset, count in zip(offsets, counts, strict=True))
        return not all(piece.rstrip(b"\x00").endswith(_END_OF_JPEG) for piece in pieces)
    if compression != _UNCOMPRESSED or _is_subsampled(tags):
        return False
    return sum(counts) < _full_bytes(tags, len(offsets), is_tiled=is_tiled)


def _full_bytes(tags: Any, num_pieces: int, *, is_tiled: bool) -> int:
    """Returns how many bytes all strips or tiles have together when nothing is missing and nothing is compressed."""
    samples = int(tags.get(_SAMPLES, 1))
    bits = _numbers(tags, _BITS) or [1]
    of_pixel = sum(bits) if len(bits) == samples else bits[0] * samples
    planes = samples if tags.get(_PLANAR, 1) == 2 else 1
    if is_tiled:
        row_bytes = -(-int(tags[_TILE_WIDTH]) * of_pixel // (8 * planes))
        return num_pieces * row_bytes * int(tags[_TILE_HEIGHT])
    row_bytes = -(-int(tags[_WIDTH]) * of_pixel // (8 * planes))
    return row_bytes * int(tags[_HEIGHT]) * planes


def _is_subsampled(tags: Any) -> bool:
    return bool(tags.get(_PHOTOMETRIC) == _YCBCR and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1))


def _numbers(tags: Any, tag: int) -> list[int]:
    value = tags.get(tag, ())
    return [int(one) for one in (value if isinstance(value, tuple | list) else (value,))]
