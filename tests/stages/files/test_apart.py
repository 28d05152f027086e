"""Places are told apart as the file system sees them, whatever they are called."""

from pathlib import Path

import pytest

from cache_schema.cache import create_cache
from cache_schema.errors import UsageError
from stages.files.apart import require_outside_caches, require_outside_sources


def test_a_place_inside_a_cache_is_refused_by_name_through_a_link_and_however_deep(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 8).path
    (tmp_path / "link").symlink_to(cache)
    for inside in (
        cache / "run",
        tmp_path / "link" / "run",
        cache / "a" / "b" / "c",
        tmp_path / "x" / ".." / "cache" / "d",
    ):
        with pytest.raises(UsageError, match=r"--out .* lies inside the cache .*/cache, .*: name a folder outside it"):
            require_outside_caches(inside, "--out")


def test_a_place_beside_or_around_a_cache_is_fine(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 8).path
    for place in (cache, tmp_path, tmp_path / "cache-2", tmp_path / "run", cache / ".." / "run"):
        require_outside_caches(place, "--out")


def test_a_place_inside_a_folder_that_is_read_or_is_one_is_refused(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (tmp_path / "link").symlink_to(pictures)
    for inside in (pictures, pictures / "cache", tmp_path / "link" / "cache"):
        with pytest.raises(UsageError, match=r"--cache .* lies inside .*pictures, which is read: "):
            require_outside_sources(inside, "--cache", [str(tmp_path / "other"), str(pictures)])


def test_files_and_addresses_hold_no_place(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    read = [str(tmp_path / "a.tar"), "https://example.org/a.tar", str(tmp_path / "cache-of-pictures")]
    require_outside_sources(tmp_path / "cache", "--cache", read)
