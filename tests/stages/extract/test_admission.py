"""A worker takes part only where it sees the cache that is written, with the packages of the run."""

from pathlib import Path

import pytest

from cache_schema.atomic import Fence
from cache_schema.cache import create_cache
from cache_schema.errors import EnvironmentProblem, LockedError, MismatchError
from cache_schema.lock import WriterLock
from stages.extract import admission
from stages.extract.admission import check_admission, package_versions


def test_worker_beside_the_lock_with_the_same_packages_is_admitted(tmp_path: Path) -> None:
    with WriterLock(tmp_path / "lock.json", "cache") as lock:
        check_admission(lock.fence, package_versions())


def test_cache_folder_that_is_not_there_names_the_node_and_says_to_mount_it(tmp_path: Path) -> None:
    fence = Fence(tmp_path / "elsewhere" / "lock.json", "token")
    with pytest.raises(EnvironmentProblem, match=r"elsewhere is not visible on node \S+: mount"):
        check_admission(fence, package_versions())


def test_folder_of_the_same_name_without_the_lock_of_the_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "SECONDS_TO_SEE_THE_LOCK", 0.1)
    with pytest.raises(EnvironmentProblem, match="is not the one that this run writes"):
        check_admission(Fence(tmp_path / "lock.json", "token"), package_versions())


def test_cache_without_any_lock_is_one_whose_lock_was_lost_and_no_wrong_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "SECONDS_TO_SEE_THE_LOCK", 0.1)
    cache = create_cache(tmp_path / "cache", 8)
    with cache.lock() as taken_over:
        pass
    with pytest.raises(LockedError, match=r"^the lock was lost: .*lock\.json is no longer held .*it is gone"):
        check_admission(taken_over.fence, package_versions())


def test_lock_that_another_run_took_is_refused(tmp_path: Path) -> None:
    with WriterLock(tmp_path / "lock.json", "cache") as lock, pytest.raises(LockedError, match="no longer held"):
        check_admission(Fence(lock.path, "another token"), package_versions())


@pytest.mark.parametrize("package", ["torch", "pillow", "numpy", "open_clip_torch", "vlm-distill", "cache format"])
def test_another_version_of_a_package_is_refused_with_both_versions(tmp_path: Path, package: str) -> None:
    with WriterLock(tmp_path / "lock.json", "cache") as lock:
        there = package_versions()
        with pytest.raises(MismatchError) as refusal:
            check_admission(lock.fence, {**there, package: "0.0.1"})
    assert f"{package} {there[package]} there, 0.0.1 where the run was started" in str(refusal.value)
    assert "install the same environment on all nodes" in str(refusal.value)
