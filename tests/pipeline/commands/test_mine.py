"""`pipeline mine` finds for every row of one array the nearest of another, and refuses what names none."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from cache_schema.cache import Cache
from cache_schema.neighbours import NeighboursReader
from tests.corpora.command_line import only_error
from tests.corpora.tiny_cache import add_array, make_cache, unit_features


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """40 images, one of them bad, and 60 sentences; no index."""
    return make_cache(tmp_path / "a cache", bad=(5,)).path


def mine(invoke: Callable[..., Result], cache: Path, *more: object) -> Result:
    return invoke("mine", "--cache", cache, "--name", "near", "--quiet", *more)


def nearest_by_numpy(cache: Path, k: int) -> np.ndarray:
    """Returns the cosines of the `k` nearest sentences of every ok image, by brute force."""
    opened = Cache.open(cache)
    images, texts = (
        opened.array(modality).features.gather(opened.array(modality).ok_rows()).astype(np.float64)
        for modality in ("image", "text")
    )
    return -np.sort(-(images @ texts.T), axis=1)[:, :k]


def test_the_neighbours_are_those_of_a_brute_force_search(invoke: Callable[..., Result], cache: Path) -> None:
    result = mine(invoke, cache, "--k", 4, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["cache"], said["name"], said["k"]) == (str(cache), "near", 4)
    assert said["next"] == f"pipeline distill --cache {shlex.quote(str(cache))} --out RUN --negatives mined:near"
    found = NeighboursReader(Cache.open(cache), "near")
    ok = Cache.open(cache).array("image").ok_rows()
    np.testing.assert_allclose(found.scores(ok), nearest_by_numpy(cache, 4), atol=2e-3)


def test_people_get_the_same_in_lines_and_what_to_do_next(invoke: Callable[..., Result], cache: Path) -> None:
    result = mine(invoke, cache, "--k", 2)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {"name: near", "k: 2", f"cache: {cache}"} <= set(lines) and not any("{" in line for line in lines)
    assert lines[-1].endswith("--negatives mined:near") and "_" not in "".join(
        line.split(":")[0] for line in lines[:-1]
    )


def test_an_array_is_named_by_its_modality_or_by_its_name(invoke: Callable[..., Result], cache: Path) -> None:
    add_array(
        Cache.open(cache), "image", unit_features(40, 8, seed=7), name="second.v0", bad=(5,), teacher={"name": "second"}
    )
    ambiguous = mine(invoke, cache)
    assert ambiguous.exit_code == 2 and "second.v0" in only_error(ambiguous)
    assert mine(invoke, cache, "--from", "image/imaginary.v0", "--to", "text/imaginary.v0").exit_code == 0
    absent = mine(invoke, cache, "--from", "image/none")
    assert absent.exit_code == 2 and "none" in only_error(absent)


@pytest.mark.parametrize("flag", ["--from", "--to"])
@pytest.mark.parametrize(
    ("array", "guess"),
    [("imag", " (did you mean 'image'?)"), ("zzz", ""), ("/x", ""), ("Image/x", " (did you mean 'image'?)")],
)
def test_what_names_no_array_is_refused_with_the_forms(
    invoke: Callable[..., Result], cache: Path, flag: str, array: str, guess: str
) -> None:
    result = mine(invoke, cache, flag, array)
    assert result.exit_code == 2
    assert only_error(result) == f"error: {flag} {array!r} names no array{guess}: write image, text or image/ARRAY"
