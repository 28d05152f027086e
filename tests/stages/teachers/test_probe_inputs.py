"""The probes are the same on every machine: stored probes of old caches are compared with them."""

import hashlib

import numpy as np

from stages.teachers.probe_inputs import NUM_PROBES, PROBE_TEXTS, probe_images

SHA256_OF_TEXTS = "af5e51142a61e5f55b0699ca6a1253d51f64beb86bc3af5cff64bd78b426ae0f"
SHA256_OF_IMAGES = "4f6b28a433e59ff314b4001d80e2ffe697f37c46e407e3674eb0c9bf39c65307"


def test_sentences_never_change() -> None:
    assert len(PROBE_TEXTS) == NUM_PROBES == 16
    assert hashlib.sha256("\n".join(PROBE_TEXTS).encode()).hexdigest() == SHA256_OF_TEXTS


def test_pictures_never_change() -> None:
    digest = hashlib.sha256()
    for image in probe_images():
        digest.update(repr(image.shape).encode() + image.tobytes())
    assert digest.hexdigest() == SHA256_OF_IMAGES


def test_pictures_are_rgb_of_several_sizes_with_both_kinds_of_aspect_rounding() -> None:
    images = probe_images()
    assert len(images) == NUM_PROBES
    assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in images)
    assert [image.shape[:2] for image in images[:6]] == [
        (256, 320),
        (248, 304),
        (240, 288),
        (232, 320),
        (224, 304),
        (256, 288),
    ]


def test_channels_differ_so_that_swapped_colours_show() -> None:
    for image in probe_images():
        assert (image[..., 0] != image[..., 2]).mean() > 0.4


def test_sentences_reach_beyond_ascii_case_and_77_tokens() -> None:
    assert any(not text.isascii() for text in PROBE_TEXTS) and any(text != text.lower() for text in PROBE_TEXTS)
    assert max(len(text.split()) for text in PROBE_TEXTS) > 77


def test_pictures_are_made_once() -> None:
    assert probe_images() is probe_images()
