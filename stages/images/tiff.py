"""Whether a TIFF holds the bytes of all its strips or tiles. Libraries fill up what is missing and say nothing."""

from collections.abc import Iterator
from typing import Any

from stages.images import fax, strips

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _STRIP_BYTES, _PLANAR = 273, 277, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _SUBSAMPLING = 322, 323, 324, 325, 530

_ROWS_PER_STRIP, _FILL_ORDER, _FAX_OPTIONS = 278, 266, (292, 293)

_UNCOMPRESSED, _JPEG = 1, 7
_YCBCR = 6
_END_OF_JPEG = b"\xff\xd9"
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def lacks_data(tags: Any, payload: bytes) -> bool:
    """Returns whether a strip or tile of the first page ends behind the file, or is missing, or ends before it is full.

    Fullness is judged of what libtiff fills up without a word: without compression by the number of bytes, in JPEG by
    the end mark, of fax data, of YCbCr and of what goes on in zeros by unpacking. Where libtiff fails, `ends_early`
    tells why.

    Args:
        tags: number of a tag -> value, as Pillow's `tag_v2` has them.
        payload: the file.
    """
    is_tiled = _TILE_OFFSETS in tags
    offsets = _numbers(tags, _TILE_OFFSETS if is_tiled else _STRIP_OFFSETS)
    counts = _numbers(tags, _TILE_BYTES if is_tiled else _STRIP_BYTES)
    # Where the header is, nothing is stored: so writers of sparse pictures mark what they leave out.
    if 0 in offsets or 0 < len(offsets) < _num_pieces(tags):
        return True
    # Old writers leave the counts out, or say 0, and readers guess them.
    if not offsets or len(counts) != len(offsets) or not all(counts):
        return False
    if any(offset + count > len(payload) for offset, count in zip(offsets, counts, strict=True)):
        return True
    compression = tags.get(_COMPRESSION, _UNCOMPRESSED)
    if compression != _UNCOMPRESSED:
        is_filled = compression in (_JPEG, *fax.COMPRESSIONS) or tags.get(_PHOTOMETRIC) == _YCBCR
        return (is_filled or _ends_in_zeros(tags, payload)) and ends_early(tags, payload)
    return sum(counts) < sum(num_bytes for _, _, num_bytes in _pieces(tags, payload))


def ends_early(tags: Any, payload: bytes) -> bool:
    """Returns whether a compressed strip or tile of the first page unpacks to less than its rows, without a fault."""
    compression = tags.get(_COMPRESSION, _UNCOMPRESSED)
    if compression == _JPEG:
        return not all(piece.rstrip(b"\x00").endswith(_END_OF_JPEG) for piece, _, _ in _pieces(tags, payload))
    if compression in fax.COMPRESSIONS:
        return any(fax.ends_early(_fax_tags(tags, rows), piece) for piece, rows, _ in _pieces(tags, payload))
    is_long = len(payload) > strips.MAX_LZW_BYTES
    return any(
        strips.ends_early(compression, piece, num_bytes, is_long=is_long)
        for piece, _, num_bytes in _pieces(tags, payload)
    )


def _pieces(tags: Any, payload: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields every strip or tile, how many rows it has, and how many bytes when it is unpacked."""
    is_tiled = _TILE_OFFSETS in tags
    offsets = _numbers(tags, _TILE_OFFSETS if is_tiled else _STRIP_OFFSETS)
    counts = _numbers(tags, _TILE_BYTES if is_tiled else _STRIP_BYTES)
    width = int(tags[_TILE_WIDTH if is_tiled else _WIDTH])
    num_rows, height = _rows_of_piece(tags), int(tags[_HEIGHT])
    of_plane = max(1, -(-height // num_rows))
    for number, (offset, count) in enumerate(zip(offsets, counts, strict=False)):
        rows = num_rows if is_tiled else min(num_rows, height - number % of_plane * num_rows)
        piece = payload[offset : offset + count]
        # JPEG has an order of its own.
        is_reversed = tags.get(_FILL_ORDER) == 2 and tags.get(_COMPRESSION) != _JPEG
        yield piece.translate(_REVERSED) if is_reversed else piece, rows, _unpacked_bytes(tags, width, rows)


def _ends_in_zeros(tags: Any, payload: bytes) -> bool:
    """Returns whether a strip ends in so many zeros that it was not written to its end; some streams go on in them."""
    return any(piece.endswith(bytes(strips.MIN_ZEROS)) for piece, _, _ in _pieces(tags, payload))


def _rows_of_piece(tags: Any) -> int:
    if _TILE_OFFSETS in tags:
        return int(tags[_TILE_HEIGHT])
    height = int(tags[_HEIGHT])
    return min(int(tags.get(_ROWS_PER_STRIP, height)), height)


def _num_pieces(tags: Any) -> int:
    """Returns how many strips or tiles a page of this size has."""
    across = -(-int(tags[_WIDTH]) // int(tags[_TILE_WIDTH])) if _TILE_OFFSETS in tags else 1
    planes = int(tags.get(_SAMPLES, 1)) if tags.get(_PLANAR, 1) == 2 else 1
    return across * -(-int(tags[_HEIGHT]) // max(1, _rows_of_piece(tags))) * planes


def _unpacked_bytes(tags: Any, width: int, rows: int) -> int:
    """Returns how many bytes so many rows have when nothing is missing and nothing is compressed."""
    samples = int(tags.get(_SAMPLES, 1))
    bits = _numbers(tags, _BITS) or [1]
    if tags.get(_PHOTOMETRIC) == _YCBCR and samples == 3 and tags.get(_PLANAR, 1) == 1:
        across, down = (int(one) for one in tags.get(_SUBSAMPLING, (2, 2)))
        return -(-width // across) * -(-rows // down) * (across * down + 2) * bits[0] // 8
    of_pixel = sum(bits) if len(bits) == samples else bits[0] * samples
    planes = samples if tags.get(_PLANAR, 1) == 2 else 1
    return -(-width * of_pixel // (8 * planes)) * rows


def _fax_tags(tags: Any, rows: int) -> dict[int, int]:
    """Returns what libtiff has to know of a strip or tile of fax data."""
    width = int(tags[_TILE_WIDTH if _TILE_OFFSETS in tags else _WIDTH])
    others = (_COMPRESSION, _PHOTOMETRIC, *_FAX_OPTIONS)
    return {_WIDTH: width, _HEIGHT: rows} | {tag: int(tags[tag]) for tag in others if tag in tags}


def _numbers(tags: Any, tag: int) -> list[int]:
    value = tags.get(tag, ())
    return [int(one) for one in (value if isinstance(value, tuple | list) else (value,))]
