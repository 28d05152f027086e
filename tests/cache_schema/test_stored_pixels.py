"""The stored pixels of a cache are found by row, counted part by part, and checked against the samples."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import google_crc32c
import pytest

from cache_schema import atomic, pixels
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, UnfinishedError
from cache_schema.json_file import read_sealed, seal
from cache_schema.pixels import PixelRow, PixelsOfPart, PixelsRecipe
from cache_schema.samples import digest_of
from cache_schema.sha256 import sha256_of_file
from cache_schema.stored_pixels import StoredPixels, stored_pixels, verify_pixels
from tests.corpora.damaged_files import DAMAGE, flip_bit
from tests.corpora.tiny_cache import make_cache

RECIPE = PixelsRecipe({"side": 64}, {}, "9" * 64, {})
BAD = (1, 20)


def rows_of_part(cache: Cache, part: int) -> list[PixelRow]:
    """Returns pixels of the samples of `tests.corpora.tiny_cache`: number and row are the same there."""
    planned = cache.plan("image").part(part)
    numbers = range(planned.first_row, planned.first_row + planned.num_rows)
    return [PixelRow(digest_of(b"image %d" % i), None if i in BAD else b"jpeg %d" % i) for i in numbers]


def store(cache: Cache, part: int, rows: list[PixelRow] | None = None, recipe: PixelsRecipe = RECIPE) -> None:
    plan = cache.plan("image")
    pixels.publish_pixels_recipe(cache.layout, RECIPE, fence=None)
    pixels.commit_pixels(
        cache.layout,
        recipe,
        part,
        rows_of_part(cache, part) if rows is None else rows,
        part_fingerprint=plan.part_fingerprint(plan.part(part)),
        fence=None,
    )


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """40 images in parts of 16, 16 and 8, two of them bad, all of them with pixels."""
    made = make_cache(tmp_path / "cache", num_images=40, num_texts=0, part_rows=16, bad=BAD)
    for part in range(3):
        store(made, part)
    return made


def opened(cache: Cache) -> StoredPixels:
    found = stored_pixels(Cache.open(cache.path))
    assert found is not None
    return found


def problems(cache: Cache) -> list[tuple[str, str, int | None]]:
    found: list[tuple[str, str, int | None]] = []
    verify_pixels(Cache.open(cache.path), lambda where, what, part: found.append((where.name, what, part)))
    return found


def test_a_cache_without_pixels_has_none_and_nothing_is_wrong_with_it(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_texts=0)
    assert stored_pixels(cache) is None
    assert problems(cache) == []


def test_every_ok_row_gives_its_jpeg_across_all_parts(cache: Cache) -> None:
    found = opened(cache)
    good = [row for row in range(40) if row not in BAD]
    assert [found.jpeg(row, digest_of(b"image %d" % row)) for row in good] == [b"jpeg %d" % row for row in good]
    assert found.pending() == []
    found.require_complete()


@pytest.mark.parametrize("row", BAD)
def test_a_bad_row_and_another_original_are_errors_and_never_a_picture(cache: Cache, row: int) -> None:
    with pytest.raises(DamagedError, match="has no picture"):
        opened(cache).jpeg(row, digest_of(b"image %d" % row))
    with pytest.raises(DamagedError, match="was made from the original"):
        opened(cache).jpeg(row + 1, digest_of(b"image %d" % row))


def test_records_count_rows_and_pictures_of_every_part(cache: Cache) -> None:
    assert [(r.part, r.num_rows, r.num_pictures) for r in opened(cache).records()] == [
        (0, 16, 15),
        (1, 16, 15),
        (2, 8, 8),
    ]


def test_parts_without_pixels_are_pending_in_order_and_said_with_the_progress(cache: Cache) -> None:
    for part in (0, 2):
        cache.layout.pixels_record(part).unlink()
    found = opened(cache)
    assert found.committed == {1}
    assert [part.number for part in found.pending()] == [0, 2]
    said = r"stored pixels of .*cache are unfinished: 1 of 3 parts have them \(missing: 0, 2\): run `pipeline extract`"
    with pytest.raises(UnfinishedError, match=said):
        found.require_complete()
    assert found.jpeg(17, digest_of(b"image 17")) == b"jpeg 17"
    with pytest.raises(DamagedError, match=r"00000\.json is missing"):
        found.jpeg(0, digest_of(b"image 0"))


def test_at_most_ten_missing_parts_are_named(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=12, num_texts=0, part_rows=1)
    store(cache, 11)
    with pytest.raises(UnfinishedError, match=r"1 of 12 parts have them \(missing: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\):"):
        opened(cache).require_complete()


def test_a_record_of_other_pixels_than_the_recipe_is_refused_with_both_fingerprints(cache: Cache) -> None:
    other = replace(RECIPE, rule={"side": 128})
    store(cache, 1, recipe=other)
    said = rf"00001\.json has fingerprint {other.fingerprint[:12]}, pixels\.json {RECIPE.fingerprint[:12]}"
    with pytest.raises(MismatchError, match=said):
        opened(cache).records()


@pytest.mark.parametrize("change", [{"num_rows": 15}, {"part_fingerprint": "0" * 64}], ids=str)
def test_a_record_of_other_rows_than_the_plan_is_refused(cache: Cache, change: dict) -> None:
    path = cache.layout.pixels_record(0)
    atomic.publish_json(path, seal({**read_sealed(path), **change}))
    with pytest.raises(DamagedError, match=r"00000\.json is of other rows than the plan: run `pipeline verify`"):
        opened(cache).record(0)


def test_a_record_of_a_part_that_was_never_planned_is_refused(cache: Cache) -> None:
    path = cache.layout.pixels_record(0)
    atomic.publish_json(cache.layout.pixels_record(3), seal({**read_sealed(path), "part": 3}))
    with pytest.raises(DamagedError, match=r"00003\.json is of other rows than the plan"):
        opened(cache).record(3)


def test_nothing_is_wrong_with_pixels_that_are_as_they_were_committed(cache: Cache) -> None:
    assert problems(cache) == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_to_a_file_is_reported_with_its_part_and_the_others_are_not(cache: Cache, damage: str) -> None:
    DAMAGE[damage](cache.layout.pixels(1))
    assert [(where, part) for where, _, part in problems(cache)] == [("00001.arrow", 1)]


def test_a_changed_byte_that_no_row_shows_is_found_by_the_hash_of_the_file(cache: Cache) -> None:
    path = cache.layout.pixels(2)
    flip_bit(path, at=6)  # between the magic word and the schema there are two bytes that nobody reads
    with pytest.raises(DamagedError, match=r"00002\.arrow are not the pixels that were committed"):
        opened(cache).jpeg(39, digest_of(b"image 39"))
    ((where, what, part),) = problems(cache)
    assert (where, part) == ("00002.arrow", 2) and "are not the pixels that were committed" in what


def test_another_picture_under_its_own_checksum_is_refused_before_one_of_its_part_is_given(cache: Cache) -> None:
    path = cache.layout.pixels(1)
    data = path.read_bytes()
    right, wrong = b"jpeg 17", b"jpeg 71"
    crcs = [google_crc32c.value(jpeg).to_bytes(4, "little") for jpeg in (right, wrong)]
    assert data.count(right) == data.count(crcs[0]) == 1
    path.write_bytes(data.replace(right, wrong).replace(*crcs))
    stored = PixelsOfPart(path, opened(cache).record(1))
    assert stored.picture(17 - 16, digest_of(b"image 17")) == wrong, "the row by itself is right"
    with pytest.raises(DamagedError, match=r"00001\.arrow are not the pixels that were committed"):
        opened(cache).jpeg(16, digest_of(b"image 16"))
    assert [part for _, _, part in problems(cache)] == [1]


def test_a_missing_recipe_is_reported_where_there_are_pixels(cache: Cache) -> None:
    cache.layout.pixels_json.unlink()
    assert problems(cache) == [
        ("pixels.json", "is missing: nobody knows how the stored pixels were made", None),
    ]


def test_a_damaged_recipe_is_one_problem_of_the_whole(cache: Cache) -> None:
    DAMAGE["half"](cache.layout.pixels_json)
    ((where, what, part),) = problems(cache)
    assert (where, part) == ("pixels.json", None) and "is damaged" in what


@pytest.mark.parametrize("number", [0, 1])
def test_a_picture_of_a_bad_row_or_none_of_an_ok_one_is_reported(cache: Cache, number: int) -> None:
    rows = rows_of_part(cache, 0)
    rows[number] = replace(rows[number], jpeg=None if rows[number].jpeg else b"jpeg")
    store(cache, 0, rows)
    status = "img-empty" if number in BAD else "ok"
    name = digest_of(b"image %d" % number).hex()[:12]
    assert problems(cache) == [("00000.arrow", f"have a row that is not of the sample {name} ({status})", 0)]


@pytest.mark.parametrize("digest", [None, bytes(16)])
def test_a_picture_made_from_other_bytes_is_reported(cache: Cache, digest: bytes | None) -> None:
    rows = rows_of_part(cache, 2)
    rows[3] = replace(rows[3], digest=digest)
    store(cache, 2, rows)
    ((where, what, part),) = problems(cache)
    assert (where, part) == ("00002.arrow", 2)
    assert what == f"have a row that is not of the sample {digest_of(b'image 35').hex()[:12]} (ok)"


def test_a_record_that_counts_other_pictures_is_reported(cache: Cache) -> None:
    path = cache.layout.pixels_record(0)
    atomic.publish_json(path, seal({**read_sealed(path), "num_pictures": 16}))
    assert problems(cache) == [("00000.arrow", "do not hold the 16 pictures of their record", 0)]


def test_pixels_of_a_part_whose_samples_are_damaged_or_uncommitted_are_checked_by_themselves(cache: Cache) -> None:
    DAMAGE["one byte short"](cache.layout.samples("image", 0))
    cache.layout.record("image", "imaginary.v0", 1).unlink()
    assert problems(cache) == []
    DAMAGE["one bit flipped"](cache.layout.pixels(1))
    assert [part for _, _, part in problems(cache)] == [1]


def test_threads_that_ask_for_one_part_at_a_time_read_its_file_once(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, stored = [], stored_pixels(cache)

    def slowly(path: Path) -> str:
        read.append(path)
        time.sleep(0.1)
        return sha256_of_file(path)

    monkeypatch.setattr(pixels, "sha256_of_file", slowly)
    assert stored is not None
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda row: stored.jpeg(row, digest_of(b"image %d" % row)), (0, 2, 3, 4))
        assert list(found) == [b"jpeg 0", b"jpeg 2", b"jpeg 3", b"jpeg 4"]
    assert read == [cache.layout.pixels(0)]
