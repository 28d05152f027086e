"""From untrusted bytes to an upright RGB picture, or to a status and a reason in fixed words.

Statuses and reasons enter the logical digest of a cache, so they are our own words, never a library's message.
`DECODE_RULES` records every choice that changes pixels.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from stages.images import jpeg, tiff
from stages.images.crops import Crop
from stages.images.failures import ends_early
from stages.images.formats import (
    ALLOWED_FORMATS,
    check_png,
    format_of,
    is_whole,
    png_lacks_rows,
    tiff_has_second_page,
)
from stages.images.preprocess import crop_box

# What Pillow warns about is judged here (sizes, truncation) or harmless (odd EXIF), and would tear progress bars.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

DECODE_RULES = {
    "formats": ", ".join(ALLOWED_FORMATS),
    "frames": "the first one",
    "orientation": "EXIF applied; unreadable EXIF ignored",
    "transparency": "composited on white",
    "cmyk": "Pillow's conversion, Adobe inversion undone, profile ignored",
    "16-bit": "high byte",
    "32-bit": "refused",
    "profiles": "ignored",
}

TOO_MANY_PIXELS = "img-too-many-pixels"

_PILLOW_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION_TAG = 0x0112
_STRIP_ROWS = 512
_PILLOW: tuple[tuple[Any, str, object], ...] = (
    (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
    (Image, "MAX_IMAGE_PIXELS", 1024 * 1024 * 1024 // 4 // 3),
    (PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 20),
    (PngImagePlugin, "MAX_TEXT_MEMORY", 64 << 20),
    (GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_AFTER_FIRST),
    (TiffImagePlugin, "READ_LIBTIFF", False),
)
"""Module, name and value. Source: the defaults of Pillow 13.0."""
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Limits:
    """The limits of one input: one that costs more is set aside.

    Attributes:
        max_pixels: width times height claimed by the header; checked before any pixel is decoded.
        max_resized_pixels: likewise after the resize that precedes the crop, which a very long picture inflates.
        seconds: wall time of one payload in a decode process; not enforced when decoding inline.
        memory_bytes: data a decode process may allocate (Linux only; not enforced when decoding inline).
        tiny_side: an ok picture with a side shorter than this gets the note `tiny`.
        max_text_bytes: longest text, before any cleaning.
    """

    max_pixels: int = 64_000_000
    max_resized_pixels: int = 16_000_000
    seconds: float = 20.0
    memory_bytes: int = 2 << 30
    tiny_side: int = 8
    max_text_bytes: int = 65_536


@dataclass(frozen=True)
class Decoded:
    """An upright RGB picture, or None with the status and reason why there is none.

    `width` and `height` are those of the upright picture at full size, 0 where the header was not readable.
    For an ok picture `reason` holds notes in a fixed order (`tiny`, `first-frame`), separated by a space.
    """

    image: Image.Image | None
    status: str = "ok"
    reason: str = ""
    width: int = 0
    height: int = 0


def decode_image(payload: bytes, limits: Limits, *, reduce_for: tuple[Crop, tuple[int, int]] | None = None) -> Decoded:
    """Returns the upright RGB picture in `payload`, or its status: never raises for bad bytes.

    Args:
        payload: the bytes of the file; its name plays no part.
        limits: sizes are checked before anything is decoded. The time limit is kept by `DecodePool`, not here.
        reduce_for: a crop and the (height, width) it will be resized to. A JPEG may then be decoded at a half, a
            quarter or an eighth of its size, as long as the crop keeps that many pixels. Changes pixels a little:
            for training crops only.
    """
    if not payload:
        return Decoded(None, "img-empty", "no bytes")
    name = format_of(payload)
    if name is None:
        return Decoded(None, "img-unknown-format", "no known image signature")
    if name not in ALLOWED_FORMATS:
        return Decoded(None, "img-format-not-allowed", name)
    if name == "png":
        status, reason = check_png(payload)
        if status != "ok":
            return Decoded(None, status, reason)
    set_pillow()
    width = height = 0
    try:
        with Image.open(io.BytesIO(payload), formats=[name.upper()]) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                return Decoded(None, TOO_MANY_PIXELS, f"over {limits.max_pixels}", width, height)
            return _decode_opened(image, payload, limits, reduce_for)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Decoded(None, TOO_MANY_PIXELS, f"over {limits.max_pixels}", width, height)
    except MemoryError:
        return Decoded(None, "img-memory", name, width, height)
    except Exception:  # noqa: BLE001
        # Pillow's plugins raise whatever their parsers meet: OSError, SyntaxError, ValueError, struct.error, KeyError.
        is_cut = not is_whole(name, payload) or _ends_early(name, payload)
        status = "img-truncated" if is_cut else "img-corrupt"
        return Decoded(None, status, name, width, height)


def set_pillow() -> None:
    """Sets what any library may set for the whole process, and decides which pictures are whole, or too large."""
    for module, name, value in _PILLOW:
        setattr(module, name, value)


def _decode_opened(
    image: ImageFile.ImageFile, payload: bytes, limits: Limits, reduce_for: tuple[Crop, tuple[int, int]] | None
) -> Decoded:
    width, height = image.size
    if image.mode not in _PILLOW_MODES + _SIXTEEN_BIT_MODES:
        return Decoded(None, "img-mode-not-allowed", f"pixel mode {image.mode}", width, height)
    notes = []
    if min(width, height) < limits.tiny_side:
        notes.append("tiny")
    if _has_more_frames(image, payload):
        notes.append("first-frame")
    if reduce_for is not None and image.format == "JPEG":
        _draft(image, *reduce_for)
    # Asked before the pixels are there: Pillow forgets the tags with them.
    lacks_tiff_data = image.format == "TIFF" and tiff.lacks_data(image.tag_v2, payload)  # type: ignore[attr-defined]
    # A reduced one was whole when the teacher saw it, and still has the bytes of then.
    if image.format in ("JPEG", "MPO") and reduce_for is None and not jpeg.load_whole(image, payload):
        return Decoded(None, "img-truncated", "jpeg", width, height)
    image.load()
    if image.format == "PNG" and _may_lack_rows(image) and png_lacks_rows(payload):
        return Decoded(None, "img-truncated", "png", width, height)
    if image.format == "TIFF" and lacks_tiff_data:
        return Decoded(None, "img-truncated", "tiff", width, height)
    if image.format == "TIFF":
        # Pillow turns a TIFF upright while loading it.
        width, height = image.size
    transpose = _TRANSPOSES.get(_orientation_of(image))
    if transpose in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
    ):
        width, height = height, width
    rgb = _to_rgb(image)
    if transpose is not None:
        rgb = rgb.transpose(transpose)
    return Decoded(rgb, "ok", " ".join(notes), width, height)


def _ends_early(name: str, payload: bytes) -> bool:
    """Returns whether a picture that could not be decoded ends early; one that is damaged as well does not."""
    try:
        return ends_early(name, payload)
    except Exception:  # noqa: BLE001
        # As above: tags and headers hold whatever the file says, zeros, or text in place of numbers.
        return False


def _may_lack_rows(image: Image.Image) -> bool:
    """Returns whether the data of a decoded PNG may have ended early: Pillow takes a stream that ends between rows.

    Rows without data stay zero. An interlaced picture may lack others than its last one.
    """
    if image.info.get("interlace"):
        return True
    last = image.crop((0, image.height - 1, image.width, image.height))
    return last.getbbox(alpha_only=False) is None


def _has_more_frames(image: Image.Image, payload: bytes) -> bool:
    if image.format == "TIFF":
        # Pillow would walk the whole chain of directories to count them.
        return tiff_has_second_page(payload)
    if image.format == "GIF":
        # Pillow would read every frame to count them.
        return bool(getattr(image, "is_animated", False))
    return getattr(image, "n_frames", 1) > 1


def _draft(image: Image.Image, crop: Crop, size: tuple[int, int]) -> None:
    """Lets the JPEG decoder skip detail that the crop, resized to (height, width), would throw away."""
    upright_width, upright_height = image.size
    if _orientation_of(image) >= 5:
        upright_width, upright_height = upright_height, upright_width
    left, top, right, bottom = crop_box(crop, upright_width, upright_height)
    for factor in (8, 4, 2):
        if (right - left) // factor >= size[1] and (bottom - top) // factor >= size[0]:
            image.draft(None, (image.size[0] // factor, image.size[1] // factor))
            return


def _orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001
        # A damaged EXIF block says nothing about the pixels.
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSES else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT_MODES:
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, (255, 255, 255))
    for top in range(0, image.height, _STRIP_ROWS):
        # In strips, because a second full-size copy in RGBA would double the memory of a large palette picture.
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))
        rgba = strip if strip.mode == "RGBA" else strip.convert("RGBA")
        white.paste(rgba, (0, top), mask=rgba)
    return white
