"""Features are found by their keys over several files, and a key decides where its hash does not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import RefusedError, UsageError
from stages.feature_files import FeatureFile, ScannedFeatures, expand_features
from stages.feature_files.by_key import FeatureIndex
from stages.files.keys import hash_of_key
from tests.corpora.foreign_features import keys_of, sentences_of, vectors, write_feature_tsv, write_npy, write_parquet

Scanned = tuple[FeatureFile, ScannedFeatures]


def scanned(path: Path) -> Scanned:
    (file,) = expand_features(f"{path}{'?key_column=key' if path.suffix == '.npy' else ''}", "image")
    return file, file.scan()


def npy(folder: Path, keys: list[str], seed: int = 0) -> Scanned:
    return scanned(write_npy(folder / "f.npy", keys, sentences_of(len(keys)), vectors(len(keys), seed=seed)))


@pytest.fixture
def three(tmp_path: Path) -> tuple[list[Scanned], dict[str, np.ndarray]]:
    """Three files of three formats, and what stands in them under every key."""
    features = [vectors(count, seed=count) for count in (5, 7, 1)]
    keys = [keys_of(5), keys_of(7, 100), ["图像/é.jpg"]]
    files = [
        scanned(write_npy(tmp_path / "a.npy", keys[0], sentences_of(5), features[0])),
        scanned(write_parquet(tmp_path / "b.parquet", keys[1], sentences_of(7), features[1])),
        scanned(write_feature_tsv(tmp_path / "c.feat.tsv", keys[2], features[2])),
    ]
    rows = {key: row for names, part in zip(keys, features, strict=True) for key, row in zip(names, part, strict=True)}
    return files, rows


def test_every_feature_is_found_in_any_order_and_across_files(
    three: tuple[list[Scanned], dict[str, np.ndarray]],
) -> None:
    files, expected = three
    index = FeatureIndex(files)
    assert len(index) == 13
    for seed in range(3):
        keys = np.random.default_rng(seed).permutation(list(expected)).tolist()
        rows = index.read(keys)
        assert [row.key for row in rows if row] == keys
        assert all(np.array_equal(row.values, expected[row.key]) for row in rows if row)
    assert index.example() in expected


def test_keys_that_are_not_there_are_none_between_those_that_are(
    three: tuple[list[Scanned], dict[str, np.ndarray]],
) -> None:
    files, expected = three
    index = FeatureIndex(files)
    keys = ["none", "k0003", "", "图像/é.jpg", "k0999", "k0102", "k0003"]
    rows = index.read(keys)
    assert [row and row.key for row in rows] == [None, "k0003", None, "图像/é.jpg", None, "k0102", "k0003"]
    assert rows[5] is not None and np.array_equal(rows[5].values, expected["k0102"])
    assert index.read([]) == [] and index.read(["none"]) == [None]


def test_numbers_are_found_for_hashes_as_a_set_finds_them(three: tuple[list[Scanned], dict]) -> None:
    files, expected = three
    index = FeatureIndex(files)
    there = [hash_of_key(key) for key in expected]
    asked = [0, *there, 2**64 - 1, *(value + 1 for value in there), *(value - 1 for value in there)]
    numbers = index.find(np.array(asked, np.uint64))
    assert numbers.dtype == np.int64
    assert [number >= 0 for number in numbers] == [value in set(there) for value in asked]
    assert sorted(numbers[numbers >= 0].tolist()) == list(range(13))
    assert index.find(np.zeros(0, np.uint64)).tolist() == []


def test_an_index_of_no_files_finds_nothing() -> None:
    index = FeatureIndex([])
    assert len(index) == 0 and index.read(["a", "b"]) == [None, None]
    assert index.find(np.array([0, 7], np.uint64)).tolist() == [-1, -1]


def test_two_keys_of_one_hash_are_not_taken_for_each_other(tmp_path: Path) -> None:
    file, scan = npy(tmp_path, ["a", "b", "c"])
    hashes = scan.key_hashes.copy()
    hashes[1] = hash_of_key("another key")
    index = FeatureIndex([(file, replace(scan, key_hashes=hashes))])
    assert [row and row.key for row in index.read(["another key", "c", "a"])] == [None, "c", "a"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_key_in_two_files_is_refused_and_both_are_named(order: tuple[int, ...], tmp_path: Path) -> None:
    made = [npy(tmp_path / name, keys) for name, keys in (("a", ["1", "2"]), ("b", ["3"]), ("c", ["2", "4"]))]
    first, second = [made[at][0].uri for at in order if at != 1]
    said = (
        rf"key '2' has a feature in {first} and another one in {second}: keys must be unique among files that are "
        r"imported together; rename one, or import the files one after the other"
    )
    with pytest.raises(RefusedError, match=said):
        FeatureIndex([made[at] for at in order])


def test_a_file_without_keys_is_a_usage_error_that_names_it_and_the_option(tmp_path: Path) -> None:
    keyed = npy(tmp_path / "a", ["1"])
    write_npy(tmp_path / "b" / "f.npy", ["1"], ["s"], vectors(1))
    (file,) = expand_features(str(tmp_path / "b" / "f.npy"), "text")
    said = rf"the rows of {file.uri} have no keys, .*name their column with \?key_column=NAME, or leave out --texts"
    with pytest.raises(UsageError, match=said):
        FeatureIndex([keyed, (file, file.scan())])


def test_a_file_that_holds_none_of_the_keys_is_not_read(
    three: tuple[list[Scanned], dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    (keyed, *others), _ = three
    index = FeatureIndex([keyed, *others])
    for file, _ in others:
        monkeypatch.setattr(type(file), "read", lambda *_: pytest.fail("it was read"))
    assert [row and row.key for row in index.read(["k0001", "none", "k0004"])] == ["k0001", None, "k0004"]
