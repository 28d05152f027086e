"""The environment changes nothing: locale, time zone, umask, home, odd paths, links and working directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache_schema.verify import verify_cache
from tests.corpora.extracts import digests_of
from tests.corpora.processes import environment
from tests.corpora.small_corpus import write_least_sources
from tests.corpora.stub_teacher import STUB

SOURCES = ["--images", "pictures", "--texts", "sentences.txt"]
ENVIRONMENTS = {
    "plain": {},
    "C locale": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "a locale that is not UTF-8": {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    "far east": {"TZ": "Asia/Tokyo"},
    "before Greenwich": {"TZ": "America/Los_Angeles"},
    "no home": {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"},
    "hash seed": {"PYTHONHASHSEED": "7"},
    "optimised": {"PYTHONOPTIMIZE": "1"},
    "warnings are errors of others": {"PYTHONWARNINGS": "default"},
}


def write_odd_corpus(folder: Path) -> Path:
    write_least_sources(folder)
    os.rename(folder / "pictures" / "0005.png", folder / "pictures" / "größe 5 日本.png")
    with open(folder / "sentences.txt", "ab") as file:
        file.write("ein Satz über Größe, 日本語 🚀\n".encode())
    return folder


def digests(
    folder: Path, cache: Path, *, umask: int = 0o022, sources: list[str] = SOURCES, **env: str
) -> dict[str, str]:
    """Extracts from within `folder`, verifies, and returns the digests."""
    args = ["extract", "--cache", str(cache), "--teacher", STUB, *sources, "--part-rows", "8", "--no-index"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *args],
        cwd=folder,
        env=environment(**env),
        capture_output=True,
        umask=umask,
    )
    assert done.returncode == 0, done.stderr
    path = folder / cache
    assert verify_cache(path) == []
    return digests_of(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_corpus(tmp_path_factory.mktemp("environments") / "corpus")


@pytest.fixture(scope="module")
def expected(corpus: Path) -> dict[str, str]:
    return digests(corpus, Path("expected"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS.keys())
def test_the_digest_is_the_same_in_every_environment(corpus: Path, expected: dict[str, str], name: str) -> None:
    assert digests(corpus, Path("caches") / name, **ENVIRONMENTS[name]) == expected


@pytest.mark.slow
def test_the_digest_is_the_same_under_a_strict_umask_and_nobody_else_may_read(
    corpus: Path, expected: dict[str, str]
) -> None:
    assert digests(corpus, Path("private"), umask=0o077) == expected
    assert {path.stat().st_mode & 0o077 for path in (corpus / "private").rglob("*")} == {0}


@pytest.mark.slow
def test_the_digest_is_the_same_at_odd_paths_behind_links_and_from_elsewhere(
    corpus: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    odd = write_odd_corpus(tmp_path / "ein Ordner, größer 日本 'q' \"d\" {0..1} [x] ?a=b\n#")
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    absolute = ["--images", str(odd / "pictures"), "--texts", str(odd / "sentences.txt")]
    assert digests(tmp_path, tmp_path / "link", sources=absolute) == expected
    assert (tmp_path / "real" / "cache.json").exists()
    assert digests(odd, Path("a cache ü")) == expected


def test_a_cache_that_was_moved_and_made_read_only_is_read_and_verified(corpus: Path, expected: dict[str, str]) -> None:
    cache = corpus / "expected"
    moved = cache.rename(corpus / "moved elsewhere")
    try:
        os.chmod(moved, 0o555)
        assert verify_cache(moved) == []
        assert digests_of(moved) == expected
    finally:
        os.chmod(moved, 0o755)
        moved.rename(cache)


def test_a_path_that_the_locale_cannot_tell_is_refused_with_the_way_out(tmp_path: Path) -> None:
    odd = write_odd_corpus(tmp_path / "größe")
    args = ["extract", "--cache", str(tmp_path / "cache"), "--teacher", STUB, "--images", str(odd / "pictures")]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *args],
        env=environment(**ENVIRONMENTS["C locale"]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "set LC_ALL=C.UTF-8" in done.stderr
    assert not (tmp_path / "cache").exists()
