"""Small pictures and damaged ones, made on the spot, and folders of them."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Returns a smooth RGB picture with some noise, so that resizing it badly shows."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    return Image.fromarray((smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    """Returns the bytes of a file of `image`; `options` are Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def jpeg(width: int = 64, height: int = 48, seed: int = 0, **options: object) -> bytes:
    """Returns a JPEG of noise."""
    return encoded(noise(width, height, seed), "JPEG", **options)


def write_pictures(
    folder: Path,
    num_pictures: int,
    *,
    sizes: Sequence[tuple[int, int]],
    format_name: str = "PNG",
    bad: Mapping[int, bytes] | None = None,
    **options: object,
) -> Path:
    """Writes pictures of noise, no two alike, and returns `folder`.

    Args:
        folder: made here.
        num_pictures: how many; number 7 is called 007.png or 007.jpg.
        sizes: (width, height) of the pictures, in turn.
        format_name: PNG or JPEG.
        bad: number -> what its file holds in place of a picture.
        options: Pillow's, for every picture.
    """
    folder.mkdir(parents=True)
    extension = {"PNG": "png", "JPEG": "jpg"}[format_name]
    for number in range(num_pictures):
        payload = encoded(noise(*sizes[number % len(sizes)], number), format_name, **options)
        (folder / f"{number:03d}.{extension}").write_bytes((bad or {}).get(number, payload))
    return folder


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Returns a chunk of a PNG with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes, color_type: int = 2, depth: int = 8, pixels: bytes = b"") -> bytes:
    """Returns a PNG put together by hand, so that its header may claim what it likes."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + b"".join(chunks) + png_chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")
