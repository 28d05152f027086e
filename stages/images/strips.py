"""How far the compressed strips and tiles of a TIFF reach, told without a picture: libtiff says only that one failed.

Source: TIFF 6.0, sections 9 (PackBits) and 13 (LZW); RFC 1950 (deflate), RFC 8878 (Zstandard); libtiff's tif_lzma.c.
"""

import lzma
import struct
import zlib
from collections.abc import Callable

MIN_ZEROS = 1024
"""So many zero bytes at its end, and a stream is taken for one that was not written to its end."""

MAX_LZW_BYTES = 8 << 20

_LZW = 5
_CLEAR, _END, _MAX_CODES = 256, 257, 4096


def ends_early(compression: int, piece: bytes, num_bytes: int, *, is_long: bool = False) -> bool:
    """Returns whether a strip ends before `num_bytes` are unpacked from it; False where it is damaged, or unknown.

    LZW of a long picture, which costs half a second for every MiB, is asked for its end mark only.

    Args:
        compression: the value of the tag.
        piece: the strip or tile, whose bytes begin with their highest bits.
        num_bytes: what it unpacks to when it is whole.
        is_long: whether the strips of the picture have more than `MAX_LZW_BYTES` together.
    """
    if compression == _LZW and is_long:
        return not _has_lzw_end(piece)
    check = _CHECKS.get(compression)
    if check is None:
        return False
    written = piece.rstrip(b"\x00")
    return check(written if len(piece) - len(written) >= MIN_ZEROS else piece, num_bytes)


def _deflate_ends_early(piece: bytes, num_bytes: int) -> bool:
    try:
        return len(zlib.decompressobj().decompress(piece, num_bytes)) < num_bytes
    except zlib.error:
        return False


def _lzma_ends_early(piece: bytes, num_bytes: int) -> bool:
    try:
        return len(lzma.LZMADecompressor().decompress(piece, num_bytes)) < num_bytes
    except lzma.LZMAError:
        return False


def _packbits_ends_early(piece: bytes, num_bytes: int) -> bool:
    total = position = 0
    while total < num_bytes:
        if position >= len(piece):
            return True
        control = piece[position]
        if control < 128:
            total += min(control + 1, len(piece) - position - 1)
            position += 2 + control
        elif control == 128:
            position += 1
        else:
            total += 257 - control if position + 1 < len(piece) else 0
            position += 2
    return False


def _lzw_ends_early(piece: bytes, num_bytes: int) -> bool:
    if len(piece) > 1 and piece[0] == 0 and piece[1] & 1:
        # As it was before TIFF 6.0, with its bits in the other order.
        return False
    # Of every code, how many bytes it stands for.
    lengths = [1] * 258
    window = num_bits = total = previous = 0
    width = 9
    for byte in piece:
        window = (window << 8 | byte) & 0xFFFFFF
        num_bits += 8
        if num_bits < width:
            continue
        num_bits -= width
        code = window >> num_bits & (1 << width) - 1
        if code == _END:
            break
        if code == _CLEAR:
            del lengths[258:]
            width, previous = 9, 0
            continue
        if previous and len(lengths) < _MAX_CODES:
            lengths.append(previous + 1)
            # One code earlier than the table is full, as TIFF has it.
            width = min(12, (len(lengths) + 1).bit_length())
        if code >= len(lengths):
            return False
        previous = lengths[code]
        total += previous
        if total >= num_bytes:
            return False
    return True


def _has_lzw_end(piece: bytes) -> bool:
    """Returns whether the last bits, before zeros that fill a byte, may be the end mark; one in 256 others may, too."""
    bits = int.from_bytes(piece.rstrip(b"\x00")[-4:], "big")
    return bits > 0 and bits // (bits & -bits) & 0x1FF == _END


def _zstandard_ends_early(piece: bytes, num_bytes: int) -> bool:
    del num_bytes  # A frame tells where it ends.
    if piece[:4] != b"\x28\xb5\x2f\xfd"[: len(piece)]:
        return False
    if len(piece) < 5:
        return True
    descriptor = piece[4]
    is_single = descriptor >> 5 & 1
    position = 6 - is_single + (0, 1, 2, 4)[descriptor & 3] + (is_single, 2, 4, 8)[descriptor >> 6]
    is_last = 0
    while not is_last:
        if position + 3 > len(piece):
            return True
        (header,) = struct.unpack("<I", piece[position : position + 3] + b"\x00")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == 1 else size)
    return position > len(piece)


_CHECKS: dict[int, Callable[[bytes, int], bool]] = {
    _LZW: _lzw_ends_early,
    8: _deflate_ends_early,
    32773: _packbits_ends_early,
    32946: _deflate_ends_early,
    34925: _lzma_ends_early,
    50000: _zstandard_ends_early,
}
