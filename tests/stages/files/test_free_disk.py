"""The disk of a cache is that of the nearest folder that is there."""

import os
import shutil
from pathlib import Path

import pytest

from stages.files.free_disk import free_bytes


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    paths: list[Path] = []
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: paths.append(path) or usage(path))
    return paths


def test_a_cache_to_come_is_judged_by_the_folder_it_will_be_in(tmp_path: Path, asked: list[Path]) -> None:
    (tmp_path / "there").mkdir()
    for cache in (tmp_path / "there", tmp_path / "there" / "a" / "b" / "c"):
        status = os.statvfs(tmp_path)
        assert free_bytes(cache) == pytest.approx(status.f_bavail * status.f_frsize, abs=1 << 30)
    assert asked == [tmp_path / "there"] * 2


def test_a_relative_path_starts_from_the_working_folder(
    tmp_path: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_bytes(Path("runs/a")) > 0 and free_bytes(Path("")) > 0
    assert asked == [tmp_path] * 2


def test_a_link_leads_to_the_disk_behind_it_and_one_that_leads_nowhere_to_its_own(
    tmp_path: Path, asked: list[Path]
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "broken").symlink_to(tmp_path / "gone" / "far")
    assert free_bytes(tmp_path / "link" / "cache") > 0 and free_bytes(tmp_path / "broken" / "cache") > 0
    assert asked == [tmp_path / "link", tmp_path]
