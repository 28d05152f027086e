"""`pipeline gc` removes what no record names, says how much that was, and touches nothing else."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.corpora.command_line import only_error
from tests.corpora.folders import contents_of
from tests.corpora.tiny_cache import make_cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A finished cache in a folder with a blank in its name."""
    return make_cache(tmp_path / "a cache", num_images=20, num_texts=20).path


def test_a_clean_cache_stays_as_it_is(invoke: Callable[..., Result], cache: Path) -> None:
    before = contents_of(cache)
    result = invoke("gc", cache)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "removed 0 files, 0 bytes",
        f"next: pipeline verify {shlex.quote(str(cache))}",
    ]
    assert contents_of(cache) == before


def test_what_an_interrupted_write_left_is_removed_and_counted_and_nothing_else(
    invoke: Callable[..., Result], cache: Path
) -> None:
    record = cache / "text" / "arrays" / "imaginary.v0" / "records" / "00001.json"
    whole = contents_of(cache)
    record.unlink()
    result = invoke("gc", cache, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    gone = [name for name in whole if name not in contents_of(cache) and not name.endswith("records/00001.json")]
    assert said["cache"] == str(cache) and said["removed_files"] == len(gone) > 0 and said["removed_bytes"] > 0
    assert all(name.startswith("text") for name in gone)
    assert contents_of(cache).items() <= whole.items()
    assert invoke("verify", cache, "--quiet").exit_code == 0, "what is left is right"
    assert json.loads(invoke("gc", cache, "--json").stdout)["removed_files"] == 0


def test_what_is_no_cache_is_refused_and_left_alone(invoke: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"x")
    result = invoke("gc", tmp_path / "photos")
    assert result.exit_code == 2 and str(tmp_path / "photos") in only_error(result)
    assert (tmp_path / "photos" / "1.jpg").read_bytes() == b"x"
    shutil.rmtree(tmp_path / "photos")
    assert invoke("gc", tmp_path / "photos").exit_code == 2 and not (tmp_path / "photos").exists()
