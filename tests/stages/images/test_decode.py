"""What every picture of the bad-input list gets, and what the good ones look like."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from stages.images.crops import Crop
from stages.images.decode import Limits, decode_image
from tests.corpora.pictures import encoded, jpeg, noise, png, png_chunk

LIMITS = Limits()


def status_of(payload: bytes, limits: Limits = LIMITS) -> str:
    decoded = decode_image(payload, limits)
    assert (decoded.image is None) == (decoded.status != "ok")
    return decoded.status


def pixels_of(payload: bytes) -> np.ndarray:
    image = decode_image(payload, LIMITS).image
    assert image is not None and image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"", "img-empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "img-unknown-format"),
        (np.random.default_rng(0).bytes(4096), "img-unknown-format"),
        (b"just text", "img-unknown-format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "img-format-not-allowed"),
        (b"%PDF-1.7\n", "img-format-not-allowed"),
        (b"SIMPLE  =                    T", "img-format-not-allowed"),
        (b"8BPS\x00\x01", "img-format-not-allowed"),
        (b"icns\x00\x00\x00\x08", "img-format-not-allowed"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "img-format-not-allowed"),
        (encoded(noise(8, 8), "PPM"), "img-format-not-allowed"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00", "img-format-not-allowed"),
        (b"\xff\xd8\xff", "img-truncated"),
        (b"\x89PNG\r\n\x1a\n", "img-truncated"),
        (png(0, 10), "img-corrupt"),
        (png(10, 10, pixels=b"\x00" * 5), "img-truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:12]),
)
def test_bytes_that_are_no_picture_get_a_status(payload: bytes, status: str) -> None:
    if status == "img-truncated" and len(payload) > 8:
        # Whole chunks whose pixel data is too short: the file is whole, the picture is not.
        assert status_of(payload) in ("img-truncated", "img-corrupt")
    else:
        assert status_of(payload) == status


@pytest.mark.parametrize("forced", [False, True], ids=["flag off", "flag forced on"])
@pytest.mark.parametrize("percent", [10, 50, 90, 99])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_cut_jpeg_is_truncated(
    percent: int, forced: bool, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = jpeg(200, 150, **options)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", forced)
    assert status_of(whole) == "ok"
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", forced)
    assert status_of(whole[: len(whole) * percent // 100]) == "img-truncated"


@pytest.mark.parametrize("format_name", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("percent", [30, 90])
def test_a_cut_file_of_any_format_is_truncated(format_name: str, percent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(noise(60, 40), format_name)
    assert status_of(whole) == "ok"
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert status_of(whole[: len(whole) * percent // 100]) == "img-truncated"


def test_a_jpeg_with_a_thumbnail_inside_is_still_truncated_when_cut() -> None:
    thumbnail = jpeg(32, 32)
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = jpeg(200, 150)
    with_thumbnail = whole[:2] + segment + whole[2:]
    assert status_of(with_thumbnail) == "ok"
    assert status_of(with_thumbnail[: 2 + len(segment) + 200]) == "img-truncated"


def test_a_png_chunk_with_a_wrong_checksum_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = bytearray(encoded(noise(30, 30), "PNG"))
    payload[payload.index(b"IDAT") + 20] ^= 1
    assert status_of(bytes(payload)) == "img-corrupt"
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert status_of(bytes(payload)) == "img-corrupt"


def shortened(payload: bytes, num_bytes: int) -> bytes:
    """Returns a PNG of whole chunks and a whole stream, of which the last `num_bytes` of its rows were left out."""
    at = payload.index(b"IDAT") - 4
    end = payload.index(b"IEND") - 4
    (length,) = struct.unpack(">I", payload[at : at + 4])
    assert at + 12 + length == end, "one chunk"
    rows = zlib.decompress(payload[at + 8 : at + 8 + length])
    return payload[:at] + png_chunk(b"IDAT", zlib.compress(rows[: len(rows) - num_bytes])) + payload[end:]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("num_bytes", [1, 300])
def test_a_png_whose_whole_stream_ends_before_its_last_row_is_truncated(mode: str, num_bytes: int) -> None:
    image = Image.fromarray(np.ones((90, 60), np.uint16)) if mode == "I;16" else noise(60, 90).convert(mode)
    whole = encoded(image, "PNG")
    assert status_of(whole) == status_of(shortened(whole, 0)) == "ok"
    assert status_of(shortened(whole, num_bytes)) == "img-truncated"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_whose_whole_stream_ends_between_two_rows_is_truncated(mode: str) -> None:
    image = Image.fromarray(np.ones((90, 60), np.uint16)) if mode == "I;16" else noise(60, 90).convert(mode)
    bits = {"1": 1, "L": 8, "LA": 16, "P": 8, "RGB": 24, "RGBA": 32, "I;16": 16}[mode]
    row_bytes = 1 + -(-60 * bits // 8)
    whole = encoded(image, "PNG")
    assert {status_of(shortened(whole, missing * row_bytes)) for missing in range(1, 91)} == {"img-truncated"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 33)])
def test_a_png_that_ends_in_black_or_in_nothing_at_all_is_ok(mode: str, size: tuple[int, int]) -> None:
    black = np.zeros(size[::-1], np.uint16)
    image = Image.fromarray(black) if mode == "I;16" else Image.new(mode, size)
    assert status_of(encoded(image, "PNG")) == "ok"


def test_an_interlaced_png_is_whole_with_all_its_passes_only() -> None:
    for width, height in ((1, 1), (2, 1), (1, 2), (5, 3), (9, 17)):
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        sizes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in passes]
        rows = b"".join((b"\x00" + b"\x07" * 3 * w) * h for w, h in sizes if w)
        head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))

        def made(data: bytes, head: bytes = head) -> bytes:
            return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")

        assert np.array_equal(pixels_of(made(rows)), np.full((height, width, 3), 7))
        assert {status_of(made(rows[:end])) for end in range(len(rows))} == {"img-truncated"}


def test_a_bmp_with_a_negative_width_is_corrupt() -> None:
    payload = bytearray(encoded(noise(10, 10), "BMP"))
    payload[18:22] = struct.pack("<i", -10)
    assert status_of(bytes(payload)) in ("img-corrupt", "img-too-many-pixels")


def test_a_damaged_restart_interval_never_raises() -> None:
    payload = bytearray(jpeg(120, 90))
    start = payload.index(b"\xff\xda") + 60
    payload[start : start + 30] = b"\xff\xd3" * 15
    assert status_of(bytes(payload)) in ("ok", "img-corrupt")


def test_pixel_bombs_are_refused_from_their_header() -> None:
    claims = png(30_000, 30_000)
    decoded = decode_image(claims, LIMITS)
    assert (decoded.status, decoded.reason) == ("img-too-many-pixels", "over 64000000")
    small_file = png(13_000, 13_000, color_type=0, pixels=bytes(1000))
    assert len(small_file) < 20_000
    decoded = decode_image(small_file, LIMITS)
    assert (decoded.status, decoded.reason) == ("img-too-many-pixels", "over 64000000")
    jpeg_claims = bytearray(jpeg(16, 16))
    at = jpeg_claims.index(b"\xff\xc0") + 5
    jpeg_claims[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    assert status_of(bytes(jpeg_claims)) == "img-too-many-pixels"


def test_metadata_that_inflates_past_its_limit_is_refused_and_stays_small() -> None:
    bomb = zlib.compress(bytes(64 << 20))
    for chunk in (
        png_chunk(b"zTXt", b"Comment\x00\x00" + bomb),
        png_chunk(b"iTXt", b"Comment\x00\x01\x00en\x00\x00" + bomb),
        png_chunk(b"iCCP", b"profile\x00\x00" + bomb),
    ):
        payload = png(4, 4, chunk, pixels=(b"\x00" + bytes(12)) * 4)
        assert status_of(payload) == "img-metadata"
    many = [png_chunk(b"zTXt", b"k%d\x00\x00" % n + zlib.compress(bytes(1 << 20))) for n in range(20)]
    assert status_of(png(4, 4, *many, pixels=(b"\x00" + bytes(12)) * 4)) == "img-metadata"


def test_damaged_or_huge_exif_is_ignored() -> None:
    plain = jpeg(40, 30)
    for body in (b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", b"Exif\x00\x00" + b"\xff" * 65_000):
        segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        assert np.array_equal(pixels_of(plain[:2] + segment + plain[2:]), pixels_of(plain))
    recursive = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + struct.pack(">HHHIII", 1, 0x8769, 4, 1, 8, 8)
    segment = b"\xff\xe1" + struct.pack(">H", len(recursive) + 2) + recursive
    assert np.array_equal(pixels_of(plain[:2] + segment + plain[2:]), pixels_of(plain))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format_name: str, orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = (250, 10, 10)
    turn_back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    stored = Image.fromarray(np.ascontiguousarray(turn_back(upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format_name == "JPEG" else {}
    options |= {"lossless": True} if format_name == "WEBP" else {}
    decoded = decode_image(encoded(stored, format_name, exif=exif, **options), LIMITS)
    assert decoded.image is not None
    assert (decoded.width, decoded.height) == decoded.image.size == (24, 16)
    assert np.abs(np.asarray(decoded.image).astype(int) - upright).max() <= 12


def test_transparency_is_composited_on_white() -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, :2, 3] = 0
    pixels[:, 2:4, 3] = 128
    pixels[:, 4:, 3] = 255
    alpha = pixels[..., 3:].astype(float) / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    for payload in (encoded(Image.fromarray(pixels), "PNG"), encoded(Image.fromarray(pixels), "WEBP", lossless=True)):
        assert np.abs(pixels_of(payload) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_becomes_white(mode: str) -> None:
    image = Image.new("RGB", (6, 1200), (0, 0, 0)).convert(mode)
    transparent = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    assert (pixels_of(encoded(image, "PNG", transparency=transparent)) == 255).all()


def test_grey_and_one_bit_pictures_are_converted() -> None:
    grey = noise(20, 10).convert("L")
    assert np.array_equal(pixels_of(encoded(grey, "PNG")), np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    bits = grey.convert("1")
    assert np.array_equal(pixels_of(encoded(bits, "PNG"))[..., 0], np.asarray(bits) * np.uint8(255))


def test_sixteen_bits_keep_their_high_byte() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 11), dtype=np.uint16)
    payload = encoded(Image.fromarray(values), "PNG")
    assert np.array_equal(pixels_of(payload)[..., 1], (values >> 8).astype(np.uint8))
    colours = np.random.default_rng(1).integers(0, 65536, (5, 4, 3), dtype=np.uint16).astype(">u2")
    rows = b"".join(b"\x00" + row.tobytes() for row in colours)
    assert np.array_equal(pixels_of(png(4, 5, depth=16, pixels=rows)), (colours >> 8).astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_float_and_32_bit_pictures_are_set_aside(dtype: type) -> None:
    payload = encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF")
    assert status_of(payload) == "img-mode-not-allowed"


def test_cmyk_is_converted_by_the_recorded_rule() -> None:
    cmyk = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    ink = cmyk.astype(float) / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    tiff = encoded(Image.fromarray(cmyk, mode="CMYK"), "TIFF")
    assert np.abs(pixels_of(tiff) - expected).max() <= 2


def test_an_adobe_cmyk_jpeg_is_not_inverted() -> None:
    almost_white = Image.new("CMYK", (16, 16), (0, 0, 0, 10))
    payload = encoded(almost_white, "JPEG", quality=95)
    assert b"Adobe" in payload
    assert pixels_of(payload).min() > 230


def test_an_adobe_ycck_jpeg_is_converted_by_the_same_rule() -> None:
    # On disk Y = 150 and Cb = Cr = 128, which is C = M = Y = 255 - 150, and K = 250; all inverted, as Adobe does.
    stored = bytearray(encoded(Image.new("CMYK", (16, 16), (105, 127, 127, 5)), "JPEG", quality=100))
    stored[stored.index(b"Adobe") + 11] = 2
    ink, black = 150 / 255, 5 / 255
    assert np.abs(pixels_of(bytes(stored)) - 255 * (1 - ink) * (1 - black)).max() <= 3


def test_tiny_and_many_frames_are_noted() -> None:
    assert decode_image(encoded(noise(1, 1), "PNG"), LIMITS).reason == "tiny"
    frames = [noise(20, 20, seed) for seed in range(3)]
    for format_name in ("GIF", "TIFF", "WEBP", "MPO"):
        payload = encoded(frames[0], format_name, save_all=True, append_images=frames[1:])
        decoded = decode_image(payload, LIMITS)
        assert (decoded.status, decoded.reason) == ("ok", "first-frame"), format_name
        assert decoded.image is not None
        assert np.abs(np.asarray(decoded.image).astype(int) - np.asarray(frames[0])).mean() < 30


def test_a_flipped_bit_that_still_decodes_is_ok() -> None:
    payload = bytearray(jpeg(64, 64))
    payload[len(payload) // 2] ^= 1
    assert status_of(bytes(payload)) in ("ok", "img-corrupt")


def test_forty_megapixels_decode() -> None:
    flat = encoded(Image.new("RGB", (8000, 5000), (10, 200, 30)), "JPEG")
    decoded = decode_image(flat, LIMITS)
    assert (decoded.status, decoded.width, decoded.height) == ("ok", 8000, 5000)


def test_a_reduced_jpeg_keeps_its_full_size_on_record_and_enough_pixels() -> None:
    payload = jpeg(800, 600)
    half = decode_image(payload, LIMITS, reduce_for=(Crop(0, 0, 1, 1), (224, 224)))
    assert half.image is not None and half.image.size == (400, 300)
    assert (half.width, half.height) == (800, 600)
    full = decode_image(payload, LIMITS, reduce_for=(Crop(0.5, 0.5, 0.3, 0.3), (224, 224)))
    assert full.image is not None and full.image.size == (800, 600)


def test_reasons_never_hold_an_address_or_a_library_message() -> None:
    payloads = [b"", b"x", jpeg()[:300], png(0, 1), png(30_000, 30_000), encoded(noise(9, 9), "GIF")[:100]]
    for payload in payloads:
        reason = decode_image(payload, LIMITS).reason
        assert reason == decode_image(bytes(bytearray(payload)), LIMITS).reason
        assert "0x" not in reason and "/" not in reason and len(reason) < 60


def test_random_damage_never_raises() -> None:
    rng = np.random.default_rng(0)
    originals = [encoded(noise(40, 30), name) for name in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]
    for attempt in range(300):
        payload = bytearray(originals[attempt % len(originals)])
        for place in rng.integers(0, len(payload), 4):
            payload[place] = rng.integers(0, 256)
        decode_image(bytes(payload), Limits(max_pixels=1_000_000))


def test_decoding_leaves_no_open_file_behind() -> None:
    image = decode_image(jpeg(), LIMITS).image
    assert image is not None
    image.resize((3, 3))
    assert getattr(image, "fp", None) is None or isinstance(image.fp, io.BytesIO)


def test_a_limit_that_a_library_sets_for_pillow_makes_no_picture_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1)
    assert status_of(jpeg(60, 40)) == "ok"
