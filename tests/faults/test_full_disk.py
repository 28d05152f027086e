"""A disk that is really full: one clear error, a cache that opens, and a rerun that finishes once there is room."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_schema.verify import verify_cache
from tests.corpora.extracts import digests_of
from tests.corpora.processes import records_of, result_of, run, start, wait_for
from tests.corpora.small_corpus import write_sentences
from tests.corpora.stub_teacher import STUB_ARRAY, stub

KILOBYTES = (40, 120, 300, 700)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a file system")
    yield path
    subprocess.run(["umount", path], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def args_of(disk: Path, sentences: Path, **options: object) -> list[str]:
    args = ["extract", "--cache", str(disk / "cache"), "--texts", str(sentences), "--part-rows", "256"]
    return [*args, "--teacher", stub(dim=64, **options), "--no-index", "--quiet"]


def fill_at(disk: Path, kilobytes: int, sentences: Path) -> tuple[int, str]:
    """Extracts onto a disk of that size, then with room enough; returns how the first run ended."""
    resize(disk, f"{kilobytes}k")
    args = args_of(disk, sentences)
    done = run(*args)
    assert done.returncode in (0, 1), done.stderr
    if done.returncode:
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ") and str(disk) in line, line
    if (disk / "cache" / "cache.json").exists():
        assert verify_cache(disk / "cache") == []
    resize(disk, "16m")
    result_of(*args)
    return done.returncode, digests_of(disk / "cache")["text/" + STUB_ARRAY + ".v0"]


@pytest.mark.slow
def test_a_disk_of_any_size_that_is_too_small_is_one_error_and_resumable(disk: Path, tmp_path: Path) -> None:
    sentences = write_sentences(tmp_path / "sentences.txt", 4000)
    ended = []
    for kilobytes in KILOBYTES:
        subprocess.run(["rm", "-rf", disk / "cache"], check=True)
        ended.append(fill_at(disk, kilobytes, sentences))
    assert {code for code, _ in ended} == {1}
    assert len({digest for _, digest in ended}) == 1


@pytest.mark.slow
def test_a_disk_that_others_fill_meanwhile_is_one_error_and_resumable(disk: Path, tmp_path: Path) -> None:
    sentences = write_sentences(tmp_path / "sentences.txt", 4000)
    resize(disk, "16m")
    process = start(*args_of(disk, sentences, seconds_per_batch=0.05))
    wait_for(lambda: records_of(disk / "cache"), process)
    with open(disk / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and "No space left on device" in said and len(said.splitlines()) == 1, said
    assert verify_cache(disk / "cache") == []
    (disk / "ballast").unlink()
    assert result_of(*args_of(disk, sentences))["num_parts"] > 0
    assert verify_cache(disk / "cache") == []
