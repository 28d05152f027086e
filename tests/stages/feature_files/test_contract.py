"""What every format of features promises; a new line in `FORMATS` needs an example and is then tested too."""

import contextlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import PipelineError, RefusedError, UsageError
from pipeline.commands.import_ import command
from stages.feature_files import FORMATS, FeatureFile, expand_features, open_features, states_of
from stages.files.keys import hash_of_key
from tests.corpora.foreign_features import EXAMPLES, keys_of, unit, vectors

NUM_ROWS = 13


@pytest.fixture(params=list(EXAMPLES))
def format_name(request: pytest.FixtureRequest) -> str:
    return request.param


def written(format_name: str, folder: Path, num_rows: int = NUM_ROWS, *, seed: int = 0) -> FeatureFile:
    uri = EXAMPLES[format_name](folder, "image", keys_of(num_rows), vectors(num_rows, seed=seed))
    (file,) = expand_features(uri, "image")
    return file


def test_every_format_has_an_example_and_is_named_in_the_help() -> None:
    assert set(EXAMPLES) == set(FORMATS)
    assert all(name in (command.epilog or "") for name in FORMATS)


def test_the_format_in_the_registry_is_the_format_of_the_class() -> None:
    assert {name: features.format for name, features in FORMATS.items()} == {name: name for name in FORMATS}


def test_a_scan_knows_keys_width_and_places_of_every_row(format_name: str, tmp_path: Path) -> None:
    scan = written(format_name, tmp_path).scan()
    assert scan.dim == 8 and scan.places.dtype == np.int64 and len(scan.places) == NUM_ROWS
    assert scan.key_hashes.tolist() == [hash_of_key(key) for key in keys_of(NUM_ROWS)]


def test_rows_are_found_by_their_places_in_any_order(format_name: str, tmp_path: Path) -> None:
    file = written(format_name, tmp_path)
    scan = file.scan()
    order = [7, 3, 3, 12, 0, 8, 9]
    rows = file.read(scan.places[order].tolist())
    assert [row.key for row in rows] == [keys_of(NUM_ROWS)[at] for at in order]
    for row, expected in zip(rows, vectors(NUM_ROWS)[order], strict=True):
        assert row.status == "ok"
        np.testing.assert_allclose(unit(row.values[None])[0], unit(expected[None])[0], atol=1e-3)


def test_a_stream_can_start_at_every_row_and_ends_with_the_file(format_name: str, tmp_path: Path) -> None:
    file = written(format_name, tmp_path)
    places = file.scan().places.tolist()
    for first in range(NUM_ROWS):
        rows = list(file.stream(first, NUM_ROWS - first, places[first]))
        assert [row.key for row in rows] == keys_of(NUM_ROWS)[first:]
        assert [row.place for row in rows] == places[first:]
    assert list(file.stream(0, 0, 0)) == []


def test_the_fingerprint_is_the_same_until_the_content_changes(format_name: str, tmp_path: Path) -> None:
    before = written(format_name, tmp_path / "a").scan().fingerprint
    assert written(format_name, tmp_path / "b").scan().fingerprint == before
    assert written(format_name, tmp_path / "c", seed=1).scan().fingerprint != before
    assert written(format_name, tmp_path / "d", NUM_ROWS - 1).scan().fingerprint != before


def test_a_file_opened_again_by_its_path_is_the_same(format_name: str, tmp_path: Path) -> None:
    file = written(format_name, tmp_path)
    again = open_features(file.uri, file.format, "image", file.options)
    assert again.scan().fingerprint == file.scan().fingerprint
    assert states_of(again) == states_of(file) and all(states_of(file).values())


def test_a_file_cut_anywhere_is_refused(format_name: str, tmp_path: Path) -> None:
    file = written(format_name, tmp_path)
    for path in map(Path, file.paths):
        whole = path.read_bytes()
        for num_bytes in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:num_bytes])
            with pytest.raises((RefusedError, UsageError), match=path.name):
                file.scan()
        path.write_bytes(whole)
    assert file.scan().dim == 8


def test_changed_bytes_are_refused_in_words_or_read(format_name: str, tmp_path: Path) -> None:
    file = written(format_name, tmp_path)
    rng = random.Random(0)
    for path in map(Path, file.paths):
        whole = path.read_bytes()
        for _ in range(80):
            changed = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            path.write_bytes(changed)
            with contextlib.suppress(PipelineError):
                scan = file.scan()
                assert len(list(file.stream(0, len(scan.places), 0))) == len(file.read(scan.places.tolist()))
        path.write_bytes(whole)


def test_a_key_that_stands_twice_is_refused_with_both_places(format_name: str, tmp_path: Path) -> None:
    keys = keys_of(NUM_ROWS)
    keys[11] = keys[4]
    (file,) = expand_features(EXAMPLES[format_name](tmp_path, "image", keys, vectors(NUM_ROWS)), "image")
    with pytest.raises(RefusedError, match=r"key 'k0004' stands in (row 4|line 5) and again in (row 11|line 12)"):
        file.scan()


def test_a_file_that_is_gone_is_refused_and_named(format_name: str, tmp_path: Path) -> None:
    file = written(format_name, tmp_path)
    Path(file.uri).unlink()
    with pytest.raises(RefusedError, match=Path(file.uri).name):
        file.scan()


def test_unknown_formats_and_options_are_usage_errors(format_name: str, tmp_path: Path) -> None:
    file = written(format_name, tmp_path)
    with pytest.raises(UsageError, match=f"unknown option of {format_name} features 'colour'"):
        expand_features(f"{format_name}:{file.uri}?colour=red", "image")
    with pytest.raises(UsageError, match="unknown format of features 'pickle'"):
        open_features(file.uri, "pickle", "image", {})


def test_reading_features_needs_no_torch() -> None:
    code = "import sys, stages.imported.job; print(sorted({'torch', 'ray', 'faiss'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
