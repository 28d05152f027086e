"""Image formats told from their bytes alone: which one it is, whether the file is whole, what its metadata would cost.

Nothing here decodes a pixel or trusts a file name. The rules are our own because a decoder's messages differ between
versions, and the words derived here enter a digest.
"""

import struct
import zlib

from stages.images import jpeg

ALLOWED_FORMATS = ("jpeg", "png", "webp", "bmp", "gif", "tiff")
IMAGE_EXTENSIONS = {
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "jpe": "jpeg",
    "jfif": "jpeg",
    "png": "png",
    "webp": "webp",
    "bmp": "bmp",
    "gif": "gif",
    "tif": "tiff",
    "tiff": "tiff",
    "avif": "avif",
    "heic": "heif",
    "heif": "heif",
    "jp2": "jpeg2000",
    "jxl": "jpegxl",
    "ppm": "netpbm",
    "pgm": "netpbm",
    "pbm": "netpbm",
    "pnm": "netpbm",
}
"""Extensions that make a file or tar member an image, with the format each one promises. Content decides in the end."""

MAX_METADATA_CHUNK_BYTES = 1 << 20
MAX_METADATA_BYTES = 16 << 20

_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "bigtiff"),
    (b"MM\x00+", "bigtiff"),
    (b"%!PS", "eps"),
    (b"\xc5\xd0\xd3\xc6", "eps"),
    (b"%PDF", "pdf"),
    (b"SIMPLE  =", "fits"),
    (b"8BPS", "psd"),
    (b"icns", "icns"),
    (b"\x00\x00\x01\x00", "ico"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"\xff\x0a", "jpegxl"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jpegxl"),
    (b"qoif", "qoi"),
    (b"DDS ", "dds"),
)
_INFLATED_AT_ONCE = 1 << 20
# First column and row of every pass of an interlaced PNG, and the steps to the next ones.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)
_HEIF_BRANDS = {b"avif": "avif", b"avis": "avif"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "heif"
)


def format_of(payload: bytes) -> str | None:
    """Returns the lower-case name of the image format that the first bytes announce, or None when they announce none.

    The name may be one that is not in `ALLOWED_FORMATS`.
    """
    for magic, name in _MAGIC:
        if payload.startswith(magic):
            return name
    if payload[:4] == b"RIFF" and payload[8:12] == b"WEBP":
        return "webp"
    if payload[:2] == b"BM" and len(payload) >= 18 and struct.unpack_from("<I", payload, 14)[0] in _BMP_HEADER_BYTES:
        return "bmp"
    if payload[4:8] == b"ftyp" and payload[8:12] in _HEIF_BRANDS:
        return _HEIF_BRANDS[payload[8:12]]
    if payload[:1] == b"P" and payload[1:2] in b"1234567" and payload[2:3] in (b"\n", b" ", b"\t", b"\r", b"#"):
        return "netpbm"
    head = payload[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!DOCTYPE svg", b"<!--")) and b"<svg" in head):
        return "svg"
    return None


def is_misnamed(name: str, payload: bytes) -> bool:
    """Returns whether the extension of `name` promises another known image format than `payload` starts with."""
    promised = IMAGE_EXTENSIONS.get(name.rpartition(".")[2].lower())
    found = format_of(payload)
    return promised is not None and found is not None and promised != found


def is_whole(format_name: str, payload: bytes) -> bool:
    """Returns whether `payload`, of a known allowed format, holds its end mark (or all the bytes its header claims)."""
    if format_name == "jpeg":
        return jpeg.reaches_its_end(payload)
    if format_name == "png":
        return check_png(payload)[0] != "img-truncated" and not png_lacks_rows(payload)
    if format_name == "webp":
        return len(payload) >= 8 + struct.unpack_from("<I", payload, 4)[0]
    if format_name == "gif":
        return payload.rstrip(b"\x00").endswith(b";")
    if format_name == "bmp":
        return len(payload) >= struct.unpack_from("<I", payload, 2)[0]
    return _tiff_reaches_its_end(payload)


def check_png(payload: bytes) -> tuple[str, str]:
    """Returns (status, reason) from the chunk structure of a PNG: `("ok", "")` when it is whole and harmless.

    Walks the chunks without decoding pixels: a chunk that runs past the end, or on in zeros, or a missing end chunk is
    `img-truncated`; a bad checksum or an impossible header `img-corrupt`; compressed metadata that would grow past
    `MAX_METADATA_CHUNK_BYTES` (or `MAX_METADATA_BYTES` in all) `img-metadata`.
    """
    position, metadata_bytes, needs_palette = 8, 0, False
    while True:
        if position + 12 > len(payload):
            return "img-truncated", "png without its end chunk"
        length, name = struct.unpack_from(">I4s", payload, position)
        end = position + 12 + length
        if position == 8 and (name != b"IHDR" or length != 13):
            return "img-corrupt", "png that does not start with its header chunk"
        if end > len(payload):
            return "img-truncated", "png chunk past the end of the file"
        body = memoryview(payload)[position + 8 : end - 4]
        if zlib.crc32(body, zlib.crc32(name)) != struct.unpack_from(">I", payload, end - 4)[0]:
            if end - 4 >= len(payload.rstrip(b"\x00")):
                return "img-truncated", "png chunk that goes on in zeros"
            return "img-corrupt", "png chunk with a wrong checksum"
        if name == b"IHDR":
            if 0 in struct.unpack_from(">II", body):
                return "img-corrupt", "png without width or height"
            needs_palette = body[9] == 3
        needs_palette = needs_palette and name != b"PLTE"
        if name == b"IDAT" and needs_palette:
            return "img-corrupt", "png without its palette"
        if name in (b"zTXt", b"iTXt", b"iCCP"):
            grown = _inflated_bytes(bytes(body), name)
            metadata_bytes += grown
            if grown > MAX_METADATA_CHUNK_BYTES or metadata_bytes > MAX_METADATA_BYTES:
                return "img-metadata", "png metadata that inflates past its limit"
        if name == b"IEND":
            return "ok", ""
        position = end


def png_lacks_rows(payload: bytes) -> bool:
    """Returns whether the picture data of a PNG, whose chunks are whole, ends before its last row.

    Data that is no picture data at all is damaged and lacks nothing.
    """
    try:
        return _lacks_rows(payload)
    except (zlib.error, struct.error, KeyError):
        return False


def _lacks_rows(payload: bytes) -> bool:
    missing, inflate, position = 1, zlib.decompressobj(), 8
    while missing > 0:
        length, name = struct.unpack_from(">I4s", payload, position)
        body = payload[position + 8 : position + 8 + length]
        if name == b"IHDR":
            missing = _png_bytes(body)
        elif name == b"IEND":
            return True
        elif name == b"IDAT":
            while body and missing > 0 and not inflate.eof:
                missing -= len(inflate.decompress(body, _INFLATED_AT_ONCE))
                body = inflate.unconsumed_tail
        position += 12 + length
    return False


def _png_bytes(header: bytes) -> int:
    """Returns how many bytes the rows of a PNG have before they are deflated, with the byte before each."""
    width, height, depth, color_type, _, _, is_interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    total = 0
    for left, top, right, down in _ADAM7 if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def tiff_has_second_page(payload: bytes) -> bool:
    """Returns whether the first directory of a TIFF names another one."""
    order = "<" if payload[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}I", payload, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", payload, directory)
        return struct.unpack_from(f"{order}I", payload, directory + 2 + 12 * num_entries)[0] != 0
    except struct.error:
        return False


def _inflated_bytes(body: bytes, name: bytes) -> int:
    """Returns how many bytes a metadata chunk inflates to, counting no further than just past the limit."""
    fields = body.split(b"\x00", 1)
    if len(fields) < 2:
        return len(body)
    compressed = fields[1][1:]
    if name == b"iTXt":
        if fields[1][:1] == b"\x00":
            # Plain text costs what the file costs: programs that make pictures keep megabytes of parameters there.
            return 0
        if fields[1][:1] != b"\x01":
            return len(body)
        compressed = fields[1][2:].split(b"\x00", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(compressed, MAX_METADATA_CHUNK_BYTES + 1))
    except zlib.error:
        return len(body)


def _tiff_reaches_its_end(payload: bytes) -> bool:
    """Looks at the first directory only: its place, and the places of its strips or tiles."""
    order = "<" if payload[:2] == b"II" else ">"
    values: dict[int, tuple[int, ...]] = {}
    try:
        (directory,) = struct.unpack_from(f"{order}I", payload, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", payload, directory)
        for entry in range(num_entries):
            tag, kind, count = struct.unpack_from(f"{order}HHI", payload, directory + 2 + 12 * entry)
            if tag not in (273, 279, 324, 325) or kind not in (3, 4):
                continue
            place = directory + 2 + 12 * entry + 8
            item, item_bytes = ("H", 2) if kind == 3 else ("I", 4)
            if count * item_bytes > 4:
                (place,) = struct.unpack_from(f"{order}I", payload, place)
            if place + count * item_bytes > len(payload):
                return False
            values[tag] = struct.unpack_from(f"{order}{count}{item}", payload, place)
    except struct.error:
        return False
    offsets = values.get(273) or values.get(324) or ()
    lengths = values.get(279) or values.get(325) or ()
    return all(offset + length <= len(payload) for offset, length in zip(offsets, lengths, strict=False))
