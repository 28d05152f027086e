"""Formats are told from files that Pillow wrote, a cut file is not whole, and metadata is never unpacked at length."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from stages.images.formats import (
    ALLOWED_FORMATS,
    IMAGE_EXTENSIONS,
    MAX_METADATA_CHUNK_BYTES,
    check_png,
    format_of,
    is_misnamed,
    is_whole,
    tiff_has_second_page,
)
from tests.corpora.pictures import encoded, noise, png, png_chunk

PILLOW_NAMES = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tiff"}
OTHERS = {"PPM": "netpbm", "ICO": "ico", "EPS": "eps", "PDF": "pdf", "JPEG2000": "jpeg2000"}
END = png_chunk(b"IEND", b"")
NO_HEADER = ("img-corrupt", "png that does not start with its header chunk")


def grey(width: int = 9, height: int = 7) -> Image.Image:
    return Image.fromarray(np.arange(width * height, dtype=np.uint8).reshape(height, width))


@pytest.mark.parametrize("name", [*PILLOW_NAMES, *OTHERS, "DDS"])
def test_a_file_that_pillow_wrote_is_told_by_its_first_bytes(name: str) -> None:
    payload = encoded(noise(32, 32), name)
    expected = {**PILLOW_NAMES, **OTHERS, "DDS": "dds"}[name]
    assert format_of(payload) == expected and format_of(payload[:64]) == expected
    assert (expected in ALLOWED_FORMATS) == (name in PILLOW_NAMES)


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b"", None),
        (b"P", None),
        (b"P7", None),
        (b"P7\n", "netpbm"),
        (b"P8\n", None),
        (b"PK\x03\x04", None),
        (b"\xff\xd8", None),
        (b"GIF88a", None),
        (b"II+\x00\x08\x00", "bigtiff"),
        (b"MM\x00+\x00\x08", "bigtiff"),
        (b"RIFF\x00\x00\x00\x00WAVE", None),
        (b"BM" + bytes(12) + struct.pack("<I", 40), "bmp"),
        (b"BM" + bytes(12) + struct.pack("<I", 41), None),
        (b"BM" + bytes(12) + b"\x28\x00\x00", None),
        (b"\x00\x00\x00\x1cftypheic", "heif"),
        (b"\x00\x00\x00\x1cftypavis", "avif"),
        (b"\x00\x00\x00\x1cftypmp42", None),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jpegxl"),
        (b"\xef\xbb\xbf \n<svg xmlns=''>", "svg"),
        (b"<?xml version='1.0'?>\n<svg/>", "svg"),
        (b"<!-- drawn --><svg/>", "svg"),
        (b"<?xml version='1.0'?><rss/>", None),
        (b"<html><svg/></html>", None),
        (b"<?xml?>" + b" " * 1024 + b"<svg/>", None),
    ],
)
def test_beginnings_that_nobody_writes_with_pillow(payload: bytes, name: str | None) -> None:
    assert format_of(payload) == name


def test_a_name_lies_only_when_it_and_the_bytes_are_of_two_known_formats() -> None:
    payload = encoded(noise(8, 8), "PNG")
    names = ("a.png", "a.jpg", "A.JPEG", "d.png/a.gif", "a.jpg.png", "a.txt", "png", "a", ".jpg")
    assert [name for name in names if is_misnamed(name, payload)] == ["a.jpg", "A.JPEG", "d.png/a.gif", ".jpg"]
    assert not is_misnamed("a.jpg", b"no picture"), "that is another fault"
    assert all(
        is_misnamed(f"a.{extension}", payload) != (name == "png") for extension, name in IMAGE_EXTENSIONS.items()
    )


@pytest.mark.parametrize("name", PILLOW_NAMES)
def test_a_file_is_whole_with_all_its_bytes_and_with_more_and_not_when_cut(name: str) -> None:
    payload = encoded(noise(40, 30), name)
    kind = PILLOW_NAMES[name]
    assert is_whole(kind, payload) and is_whole(kind, payload + bytes(10))
    starts = next(at for at in range(1, 64) if format_of(payload[:at]) == kind)
    # Behind its pixels a TIFF may hold tags that nobody needs; a GIF that is cut at a semicolon has an end mark.
    cuts = range(starts, len(payload) - (200 if name == "TIFF" else 1), 7)
    whole = [at for at in cuts if is_whole(kind, payload[:at])]
    assert [at for at in whole if name != "GIF" or payload[at - 1 : at] != b";"] == []


def tiff(order: str, *entries: tuple[int, int, tuple[int, ...]], next_page: int = 0, body: bytes = bytes(100)) -> bytes:
    """Returns a TIFF put together by hand: its directory, long values and then `body`."""
    directory, outside = struct.pack(f"{order}H", len(entries)), b""
    start = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, values in entries:
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", start + len(outside))
            outside += packed
        else:
            place = packed.ljust(4, b"\x00")
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + place
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(f"{order}I", 8)
    return head + directory + struct.pack(f"{order}I", next_page) + outside + body


@pytest.mark.parametrize("order", ["<", ">"], ids=["little endian", "big endian"])
@pytest.mark.parametrize("kind", [3, 4], ids=["short", "long"])
@pytest.mark.parametrize("tags", [(273, 279), (324, 325)], ids=["strips", "tiles"])
@pytest.mark.parametrize("num_pieces", [1, 2, 3])
def test_a_tiff_is_whole_when_its_last_piece_is_there(order: str, kind: int, tags: tuple, num_pieces: int) -> None:
    def made(offset: int, length: int) -> bytes:
        offsets, lengths = (10,) * (num_pieces - 1) + (offset,), (5,) * (num_pieces - 1) + (length,)
        return tiff(order, (tags[0], kind, offsets), (256, 5, (1,)), (tags[1], kind, lengths))

    size = len(made(0, 0))
    assert is_whole("tiff", made(size - 50, 50)) and is_whole("tiff", made(0, size))
    assert not is_whole("tiff", made(size - 50, 51)) and not is_whole("tiff", made(size + 1, 0))


def test_a_tiff_whose_directory_is_not_there_or_counts_without_end_is_not_whole() -> None:
    whole = tiff("<", (273, 4, (0,)), (279, 4, (4,)))
    assert is_whole("tiff", whole)
    for damaged in (whole[:6], whole[:9], whole[:20], whole[:4] + b"\xff" * 4 + whole[8:]):
        assert not is_whole("tiff", damaged) and not tiff_has_second_page(damaged)
    endless = bytearray(whole)
    endless[14:18] = b"\xff\xff\xff\x7f"
    assert not is_whole("tiff", bytes(endless))


def test_a_second_page_is_seen_as_pillow_writes_it() -> None:
    buffer = io.BytesIO()
    grey().save(buffer, "TIFF", save_all=True, append_images=[grey()])
    assert tiff_has_second_page(buffer.getvalue()) and not tiff_has_second_page(encoded(grey(), "TIFF"))
    for order in "<>":
        assert tiff_has_second_page(tiff(order, (256, 3, (1,)), next_page=9))
        assert not tiff_has_second_page(tiff(order, (256, 3, (1,))))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_a_png_of_pillow_is_ok_and_cut_anywhere_truncated(mode: str) -> None:
    image = Image.fromarray(np.ones((5, 4), np.uint16)) if mode == "I;16" else noise(20, 9).convert(mode)
    payload = encoded(image, "PNG")
    assert check_png(payload) == check_png(payload + b"anything") == ("ok", "")
    assert {check_png(payload[:at])[0] for at in range(8, len(payload))} == {"img-truncated"}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n", ("img-truncated", "png without its end chunk")),
        (png(4, 4)[: -len(END)], ("img-truncated", "png without its end chunk")),
        (png(4, 4)[:-6], ("img-truncated", "png without its end chunk")),
        (png(4, 4)[: -len(END) - 1], ("img-truncated", "png chunk past the end of the file")),
        (b"\x89PNG\r\n\x1a\n" + END, NO_HEADER),
        (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IDAT", bytes(13)) + END, NO_HEADER),
        (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", bytes(12)) + END, NO_HEADER),
        (png(0, 4), ("img-corrupt", "png without width or height")),
        (png(4, 0), ("img-corrupt", "png without width or height")),
        (png(4, 4, color_type=3), ("img-corrupt", "png without its palette")),
        (png(4, 4, png_chunk(b"PLTE", bytes(3)), color_type=3), ("ok", "")),
        (png(4, 4).replace(b"IDAT", b"IDAU"), ("img-corrupt", "png chunk with a wrong checksum")),
        (png(4, 4, png_chunk(b"teXt", bytes(5 << 20))), ("ok", "")),
        (png(4, 4, png_chunk(b"tEXt", b"parameters\x00" + bytes(20 << 20))), ("ok", "")),
        (png(4, 4, png_chunk(b"iTXt", b"parameters\x00\x00\x00\x00\x00" + b"a" * (20 << 20))), ("ok", "")),
    ],
)
def test_a_png_is_judged_by_its_chunks(payload: bytes, expected: tuple[str, str]) -> None:
    assert check_png(payload) == expected


def metadata(name: bytes, num_bytes: int) -> bytes:
    """Returns a chunk that inflates to so many zeros."""
    between = {b"zTXt": b"\x00", b"iCCP": b"\x00", b"iTXt": b"\x01\x00en\x00Titel\x00"}[name]
    return png_chunk(name, b"title\x00" + between + zlib.compress(bytes(num_bytes)))


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_metadata_may_inflate_to_one_mib_a_chunk_and_is_not_inflated_further(name: bytes) -> None:
    refused = ("img-metadata", "png metadata that inflates past its limit")
    assert check_png(png(4, 4, metadata(name, MAX_METADATA_CHUNK_BYTES))) == ("ok", "")
    assert check_png(png(4, 4, metadata(name, MAX_METADATA_CHUNK_BYTES + 1))) == refused
    bomb = png(4, 4, metadata(name, 16 << 20))
    tracemalloc.start()
    assert check_png(bomb) == refused
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MAX_METADATA_CHUNK_BYTES


def test_metadata_may_inflate_to_sixteen_mib_in_all() -> None:
    chunks = [metadata(b"zTXt", 1 << 20)] * 16
    assert check_png(png(4, 4, *chunks))[0] == "ok"
    assert check_png(png(4, 4, *chunks, metadata(b"iTXt", 1)))[0] == "img-metadata"


@pytest.mark.parametrize(
    "body", [b"", b"no end of the key", b"key\x00", b"key\x00\x00no zlib", b"key\x00\x01\x00en\x00t\x00no zlib"]
)
@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_metadata_that_cannot_be_inflated_costs_its_own_bytes(name: bytes, body: bytes) -> None:
    assert check_png(png(4, 4, png_chunk(name, body))) == ("ok", "")
    is_plain = name == b"iTXt" and body.startswith(b"key\x00\x00")
    long = check_png(png(4, 4, png_chunk(name, body.ljust((1 << 20) + 1, b"x"))))[0]
    assert long == ("ok" if is_plain else "img-metadata")
