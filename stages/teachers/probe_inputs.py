"""The 16 pictures and 16 sentences that every teacher is asked about, the same on every machine."""

import hashlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

NUM_PROBES = 16

PROBE_TEXTS = (
    "a photo of a cat",
    "A Photo Of A DOG!",
    "two red apples and 17 green pears on a wooden table",
    "a sketch",
    "snow",
    "the quick brown fox jumps over the lazy dog, again and again",
    "ein Haus am See, früh am Morgen",
    "東京の夜景",
    "une crème brûlée à 4,50 €",
    "итальянский город ночью",
    "emoji: 🚀🐙 and symbols: © ± ½ → ∞",
    "e-mail me at someone@example.org or see https://example.org/?q=1&r=2",
    "It's 5 o'clock; we're late, don't wait — I'll come!",
    "&lt;b&gt;bold&lt;/b&gt; &amp; <i>tags</i>",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "a very long description of a market street with many stalls " * 12,
)


@cache
def probe_images() -> tuple[NDArray[np.uint8], ...]:
    """Returns 16 RGB pictures, uint8 HWC, of different sizes around 256 × 320, made by integer arithmetic alone."""
    return tuple(_probe_image(number) for number in range(NUM_PROBES))


def _probe_image(number: int) -> NDArray[np.uint8]:
    height, width = 256 - 8 * (number % 5), 320 - 16 * (number % 3)
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    noise = _noise(number, height * width * 3).reshape(height, width, 3).astype(np.int64)
    step = 4 + 3 * number
    checker = ((y // step + x // step) % 2)[..., None] * np.array([255, 128, 64])
    gradient = np.stack(
        [y * 255 // (height - 1), x * 255 // (width - 1), (x + y) * 255 // (height + width - 2)], axis=-1
    )
    rings = (((y - height // 2) ** 2 + (x - width // 2) ** 2) // (16 * (number + 2)) % 256)[..., None]
    kinds = (
        gradient,
        checker,
        noise,
        (gradient + checker) // 2,
        (rings + gradient) // 2,
        255 - gradient,
        rings + 0 * gradient,
    )
    picture = (3 * kinds[number % len(kinds)] + noise * (number % 4) // 3) // (3 + (number % 4) // 3)
    return np.clip(np.roll(picture, number, axis=-1), 0, 255).astype(np.uint8)


def _noise(number: int, num_bytes: int) -> NDArray[np.uint8]:
    blocks = -(-num_bytes // 64)
    data = b"".join(hashlib.blake2b(f"{number}/{block}".encode()).digest() for block in range(blocks))
    return np.frombuffer(data, np.uint8)[:num_bytes]
