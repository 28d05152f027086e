"""Pictures to train on are the bytes that the teacher saw, and which ones is decided before a step is made."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, PipelineError, UnfinishedError, UsageError
from cache_schema.json_file import read_sealed, seal
from cache_schema.stored_pixels import stored_pixels
from stages.distill.payloads import Originals, SmallPictures, pixels_to_train_on
from tests.corpora.extracts import extract, extract_config
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import picture, write_sources


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `plain`, a cache of originals, and `stored`, one with their pixels, 20 on the shorter side."""
    folder = tmp_path_factory.mktemp("corpus")
    sources = write_sources(folder, num_images=20, num_texts=4)
    extract(extract_config(folder / "plain", *sources))
    extract(extract_config(folder / "stored", *sources, store_pixels=20))
    return folder


def test_an_original_is_the_file_of_its_row_in_any_order(made: Path) -> None:
    originals, rows = Originals(), np.array([17, 0, 5, 17])
    for row, location in zip(rows.tolist(), Cache.open(made / "plain").locations(rows), strict=True):
        payload = originals.payload(row, location)
        assert payload == (made / "pictures" / location.key).read_bytes()
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(payload))), np.asarray(picture(row)[0]))


def test_an_original_that_changed_is_refused_with_both_digests_and_a_way_out(made: Path, tmp_path: Path) -> None:
    (location,) = Cache.open(made / "plain").locations(np.array([3]))
    folder = shutil.copytree(made / "pictures", tmp_path / "pictures")
    path = folder / location.key
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    seen, then = (hashlib.blake2b(payload, digest_size=16).hexdigest()[:12] for payload in (path.read_bytes(), data))
    with pytest.raises(MismatchError) as refusal:
        Originals().payload(3, replace(location, uri=str(folder)))
    assert str(refusal.value) == (
        f"{location.key!r} in {folder} has digest {seen}, the teacher saw {then}: restore the original, or extract the "
        "changed source into a new cache"
    )


def test_an_original_that_is_gone_is_an_error_for_people(made: Path, tmp_path: Path) -> None:
    (location,) = Cache.open(made / "plain").locations(np.array([3]))
    folder = shutil.copytree(made / "pictures", tmp_path / "pictures")
    (folder / location.key).unlink()
    with pytest.raises(PipelineError, match=location.key.replace(".", r"\.")):
        Originals().payload(3, replace(location, uri=str(folder)))


def test_a_source_is_opened_once_for_all_its_rows(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.distill import payloads

    opened: list[str] = []

    def noted(uri: str, *rest: object) -> object:
        opened.append(uri)
        return open_source(uri, *rest)

    open_source = payloads.open_source
    monkeypatch.setattr(payloads, "open_source", noted)
    originals = Originals()
    for row, location in enumerate(Cache.open(made / "plain").locations(np.arange(8))):
        originals.payload(row, location)
    assert opened == [str(made / "pictures")]


def small_of(cache: Cache) -> SmallPictures:
    pixels = stored_pixels(cache)
    assert pixels is not None
    return SmallPictures(pixels)


def test_a_stored_picture_is_a_small_jpeg_of_the_size_that_is_promised(made: Path) -> None:
    cache = Cache.open(made / "stored")
    small = small_of(cache)
    (location,) = cache.locations(np.array([6]))
    image = Image.open(io.BytesIO(small.payload(6, location)))
    assert image.format == "JPEG" and image.size == small.size(40, 40) == (20, 20)
    shrunk = picture(6)[0].resize((20, 20), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(image, np.int64) - np.asarray(shrunk, np.int64)).mean() < 12
    assert [small.size(*size) for size in ((80, 40), (40, 60), (10, 90))] == [(40, 20), (20, 30), (10, 90)]


def test_a_stored_picture_of_another_original_is_refused(made: Path) -> None:
    cache = Cache.open(made / "stored")
    other, _ = cache.locations(np.array([6, 7]))
    with pytest.raises(DamagedError):
        small_of(cache).payload(7, other)


@pytest.mark.parametrize(
    ("cache", "asked", "stored"),
    [
        ("plain", "auto", False),
        ("plain", "originals", False),
        ("stored", "auto", True),
        ("stored", "originals", False),
        ("stored", "stored", True),
    ],
)
def test_without_views_stored_pixels_are_read_where_they_are_unless_originals_are_asked_for(
    made: Path, cache: str, asked: str, stored: bool
) -> None:
    config = distill_config(made / cache, made / "run", pictures=asked)
    found = pixels_to_train_on(config, Cache.open(made / cache), None)
    assert (found is not None) == stored
    assert found is None or dict(found.recipe.rule)["side"] == 20


def test_stored_pixels_that_are_not_there_are_a_usage_error(made: Path) -> None:
    config = distill_config(made / "plain", made / "run", pictures="stored")
    with pytest.raises(UsageError) as refusal:
        pixels_to_train_on(config, Cache.open(made / "plain"), None)
    assert str(refusal.value) == (
        f"cache {made / 'plain'} stores no pixels: run `pipeline extract --store-pixels 256`, or drop it"
    )


def test_unfinished_pixels_are_passed_over_unless_they_are_asked_for(made: Path, tmp_path: Path) -> None:
    cache = Cache.open(shutil.copytree(made / "stored", tmp_path / "cache"))
    cache.layout.pixels_record(1).unlink()

    def found(asked: str) -> object:
        return pixels_to_train_on(distill_config(cache.path, tmp_path / "run", pictures=asked), cache, None)

    assert found("auto") is None and found("originals") is None
    with pytest.raises(UnfinishedError, match=r"1 of 2 parts have them \(missing: 1\): run `pipeline extract` again"):
        found("stored")


def test_a_damaged_description_of_the_pixels_is_never_taken_for_none(made: Path, tmp_path: Path) -> None:
    cache = Cache.open(shutil.copytree(made / "stored", tmp_path / "cache"))
    cache.layout.pixels_json.write_text(json.dumps({"format": 1}))
    with pytest.raises(DamagedError):
        pixels_to_train_on(distill_config(cache.path, tmp_path / "run"), cache, None)


def test_a_rule_of_a_later_version_is_refused_before_a_size_is_promised(made: Path, tmp_path: Path) -> None:
    cache = Cache.open(shutil.copytree(made / "stored", tmp_path / "cache"))
    value = {name: kept for name, kept in read_sealed(cache.layout.pixels_json).items() if name != "sha256"}
    value["rule"] = {**value["rule"], "codec": "avif"}
    atomic.publish_json(cache.layout.pixels_json, seal(value))
    with pytest.raises(PipelineError, match=r"stored pixels have the rule .*avif.*"):
        small_of(cache).size(40, 40)
