"""Pictures of a set become unit rows with their labels and keys; what cannot be read leaves no gap and no wrong row."""

from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import RefusedError, UsageError
from stages.evaluate.data import open_evaluation_set
from stages.evaluate.encode import LabelledFeatures, encode_set
from stages.images.preprocess import Preprocess
from tests.corpora.held_out import write_evaluation_set
from tests.corpora.pictures import encoded, jpeg, noise

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 1.0)
BAD = {2: b"no picture", 3: b"", 6: jpeg(32, 32)[:200]}
GOOD = [number for number in range(9) if number not in BAD]


class Colours:
    """An image side whose feature is the mean colour; notes the size of every batch."""

    preprocess = Preprocess(size=(32, 32), mean=MEAN, std=STD)

    def __init__(self, spoil: float = 1.0) -> None:
        self.batches: list[tuple[int, ...]] = []
        self._spoil = spoil

    def encode_images(self, pixels_BCHW: np.ndarray) -> np.ndarray:
        assert pixels_BCHW.dtype == np.float32
        self.batches.append(pixels_BCHW.shape)
        return pixels_BCHW.mean(axis=(2, 3)) * np.float32(self._spoil)


def write_set(folder: Path, bad: dict[int, bytes]) -> Path:
    """Writes nine pictures of the size that the model sees in two tars, number n of class n % 3."""
    pictures = [bad.get(number, encoded(noise(32, 32, number), "PNG")) for number in range(9)]
    samples = [(f"p{number}.png", payload, number % 3) for number, payload in enumerate(pictures)]
    return write_evaluation_set(folder, ["a", "b", "c"], ["a {c}"], [samples[:5], samples[5:]])


def encode(images: Colours, path: Path, *, batch_size: int = 2, done: list[int] | None = None) -> LabelledFeatures:
    seen = [] if done is None else done
    data = open_evaluation_set(path)
    return encode_set(images, data, batch_size=batch_size, decode_workers=0, progress=seen.append)


def by_hand(numbers: list[int]) -> np.ndarray:
    rows = []
    for number in numbers:
        pixels = np.asarray(noise(32, 32, number)).astype(np.float64) / 255
        colour = ((pixels - MEAN) / STD).mean(axis=(0, 1))
        rows.append(colour / np.linalg.norm(colour))
    return np.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 1000])
def test_rows_labels_and_keys_stay_together_whatever_the_batch_and_whatever_is_unreadable(
    tmp_path: Path, batch_size: int
) -> None:
    found = encode(Colours(), write_set(tmp_path / "set", BAD), batch_size=batch_size)
    np.testing.assert_allclose(found.image_ND, by_hand(GOOD), atol=1e-5)
    assert found.image_ND.dtype == np.float32 and found.labels_N.dtype == np.int64
    assert found.labels_N.tolist() == [number % 3 for number in GOOD]
    assert found.keys == tuple(f"{number // 5}/p{number}" for number in GOOD)
    assert list(found.unreadable) == ["0/p2", "0/p3", "1/p6"]


def test_unreadable_pictures_say_why(tmp_path: Path) -> None:
    unreadable = encode(Colours(), write_set(tmp_path / "set", BAD)).unreadable
    assert all(said.startswith("img-") for said in unreadable.values())
    assert unreadable["0/p2"].startswith("img-unknown-format") and unreadable["0/p3"].startswith("img-empty")


def test_batches_hold_readable_pictures_alone_and_none_is_empty(tmp_path: Path) -> None:
    images = Colours()
    encode(images, write_set(tmp_path / "set", BAD), batch_size=2)
    # Numbers 2 and 3 make a batch of their own.
    assert images.batches == [(2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32), (1, 3, 32, 32)]


def test_progress_counts_every_picture_that_was_seen_also_the_unreadable(tmp_path: Path) -> None:
    done: list[int] = []
    encode(Colours(), write_set(tmp_path / "set", BAD), batch_size=4, done=done)
    assert done == [4, 8, 9]


@pytest.mark.parametrize("spoil", [np.nan, np.inf, 0.0])
def test_a_feature_that_cannot_be_compared_is_refused_by_the_first_key_of_its_batch(
    tmp_path: Path, spoil: float
) -> None:
    said = r"^the model gives no usable feature for a picture from '0/p0' on: its weights, precision or device"
    with pytest.raises(RefusedError, match=said):
        encode(Colours(spoil), write_set(tmp_path / "set", {}))


def test_a_set_without_a_readable_picture_is_a_usage_error_with_the_number(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", dict.fromkeys(range(9), b"no picture"))
    with pytest.raises(UsageError) as refusal:
        encode(Colours(), path)
    assert str(refusal.value) == f"{path} holds no readable picture (9 unreadable): check its tars"
