"""Whoever reads a feature finds out what `verify` finds out of its part, although every checksum is right."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.committed_rows import outcome_of
from cache_schema.errors import DamagedError
from cache_schema.json_file import read_sealed
from cache_schema.records import RowException
from cache_schema.verify import verify_cache
from tests.corpora.resealed import exchange, reseal, rewrite_features
from tests.corpora.tiny_cache import add_array, make_cache, unit_features


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """40 images in parts of 16 rows, the last one short; row 3 is bad."""
    return make_cache(tmp_path / "cache", num_texts=0, bad=(3,))


def read_all(cache: Cache) -> np.ndarray:
    array = Cache.open(cache.path).array("image")
    return array.features.gather(array.ok_rows())


def test_what_was_committed_is_read_as_it_was_also_from_a_short_part_and_several_chunks(tmp_path: Path) -> None:
    large = make_cache(tmp_path / "cache", num_images=3000, num_texts=0, part_rows=2048, bad=(1500, 2999))
    expected = np.delete(unit_features(3000, 8), (1500, 2999), axis=0)
    assert read_all(large).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: rows.__setitem__(5, np.nan), r"row 5 \('5'\) has status ok, no feature"),
        (lambda rows: rows.__setitem__((5, 0), np.inf), r"row 5 \('5'\) has status ok, no feature"),
        (lambda rows: rows.__setitem__(5, 0), "the feature of row 5 does not have norm 1"),
        (lambda rows: rows.__setitem__(5, rows[5] * 2), "the feature of row 5 does not have norm 1"),
        (lambda rows: rows.__setitem__(3, rows[4]), r"row 3 \('3'\) has status img-empty, a feature"),
        (lambda rows: rows.__setitem__([5, 6], rows[[6, 5]]), r"row 5 \('5'\) is not the one that was committed"),
        (lambda rows: rows.__setitem__(5, -rows[5]), r"row 5 \('5'\) is not the one that was committed"),
    ],
    ids=["lost", "infinite", "zero", "too long", "of a bad row", "two swapped", "negated"],
)
def test_a_wrong_row_under_a_resealed_record_is_refused_by_the_reader_of_any_row_of_its_part(
    cache: Cache, change: Callable[[np.ndarray], None], what: str
) -> None:
    rewrite_features(cache.array("image"), 0, change)
    reader = Cache.open(cache.path).array("image").features
    with pytest.raises(DamagedError, match=rf"{what}.* in part 0 of image array .*: run `pipeline verify`"):
        reader.gather(np.array([0]))
    assert np.isfinite(reader.gather(np.arange(16, 40))).all()
    assert verify_cache(cache.path)


@pytest.mark.parametrize("kind", ["shard", "samples", "rows"])
def test_files_of_two_parts_exchanged_under_resealed_records_are_refused_by_reader_and_verify(
    cache: Cache, kind: str
) -> None:
    exchange(cache.array("image"), kind)
    said = "sample table .* has other rows" if kind == "samples" else "part 0 of image array"
    with pytest.raises(DamagedError, match=said):
        read_all(cache)
    assert verify_cache(cache.path)


@pytest.mark.parametrize("num_rows", [15, 17], ids=["shortened", "lengthened"])
def test_a_sample_table_of_other_rows_under_a_resealed_record_is_refused(cache: Cache, num_rows: int) -> None:
    path, record = cache.layout.samples("image", 1), cache.layout.record("image", "imaginary.v0", 1)
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]).slice(0, num_rows), path)
    files = {**read_sealed(record)["files"], "samples": hashlib.sha256(path.read_bytes()).hexdigest()}
    reseal(record, files=files)
    with pytest.raises(DamagedError, match=r"sample table .*00001.parquet has other rows than the plan"):
        read_all(cache)
    assert verify_cache(cache.path)


@pytest.mark.parametrize("change", [lambda data: data[:-16], lambda data: data + data[:16], lambda data: data[::-1]])
def test_other_row_hashes_under_a_resealed_record_are_refused(cache: Cache, change: Callable[[bytes], bytes]) -> None:
    path, record = (place("image", "imaginary.v0", 1) for place in (cache.layout.row_hashes, cache.layout.record))
    data = change(path.read_bytes())
    atomic.publish_bytes(path, data)
    reseal(record, files={**read_sealed(record)["files"], "rows": hashlib.sha256(data).hexdigest()})
    with pytest.raises(DamagedError, match=r"part 1 of image array|row hashes"):
        read_all(cache)
    assert verify_cache(cache.path)


@pytest.mark.parametrize("bad", [[], [3, 7], [7]], ids=str)
def test_a_resealed_record_of_other_bad_rows_is_refused(cache: Cache, bad: list[int]) -> None:
    reseal(cache.layout.record("image", "imaginary.v0", 0), bad=bad)
    with pytest.raises(DamagedError, match=r"row \d .* has status .* and its record says"):
        Cache.open(cache.path).array("image").features.gather(np.array([0]))
    assert verify_cache(cache.path)


@pytest.mark.parametrize("crcs", [[], [1, 2]], ids=str)
def test_a_resealed_record_of_another_number_of_chunks_is_refused(cache: Cache, crcs: list[int]) -> None:
    reseal(cache.layout.record("image", "imaginary.v0", 0), chunk_crc32c=crcs)
    with pytest.raises(DamagedError, match=f"has checksums of {len(crcs)} chunks instead of 1"):
        read_all(cache)
    assert verify_cache(cache.path)


def test_an_outcome_is_the_samples_own_or_what_the_array_says_beyond_it(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=0, num_texts=0)
    add_array(cache, "text", unit_features(6, 8), bad=(1,), not_finite=(4,))
    array = Cache.open(cache.path).array("text")
    table, record = cache.samples("text", 0), array.record(0)
    assert record.exceptions == (RowException(4, "feature-not-finite", ""),)
    expected = [(i, str(i), "ok", "") for i in range(6)]
    expected[1], expected[4] = (1, "1", "img-empty", "planted"), (4, "4", "feature-not-finite", "")
    assert outcome_of(table, record) == expected
    assert outcome_of(table.slice(3, 3), record, 3) == expected[3:]
