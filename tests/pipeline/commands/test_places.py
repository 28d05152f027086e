"""No command writes into what it reads, or into a cache that is not its own: exit code 2, and nothing written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from tests.corpora.command_line import only_error
from tests.corpora.extracts import extract, extract_config
from tests.corpora.small_corpus import write_sources
from tests.corpora.stub_teacher import STUB

Invoke = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures and sentences, and a cache beside them."""
    pictures, sentences = write_sources(tmp_path / "data", num_images=8, num_texts=8)
    shutil.move(pictures, tmp_path / "pictures")
    shutil.move(sentences, tmp_path / "sentences.txt")
    extract(extract_config(tmp_path / "cache", tmp_path / "pictures", tmp_path / "sentences.txt"))
    np.save(tmp_path / "features.npy", np.ones((8, 4), np.float32))
    return tmp_path


def files_in(folder: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if ".guard" not in path.name}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["extract", "--images", "F/pictures", "--cache", "F/pictures/cache"], "lies inside F/pictures, which is read"),
        (["extract", "--images", "F/pictures", "--cache", "F/pictures/a/b"], "lies inside F/pictures, which is read"),
        (["extract", "--images", "F/pictures", "--cache", "F/pictures"], "lies inside F/pictures, which is read"),
        (["extract", "--texts", "F/sentences.txt", "--cache", "F/cache/image"], "lies inside the cache F/cache"),
        (["extract", "--texts", "F/sentences.txt", "--cache", "F/cache/new/deep"], "lies inside the cache F/cache"),
        (["plan", "--texts", "F/sentences.txt", "--cache", "F/cache/new"], "lies inside the cache F/cache"),
        (
            ["import", "--texts", "F/sentences.txt", "--text-features", "F/features.npy", "--cache", "F/cache/new"],
            "lies inside the cache F/cache",
        ),
        (["distill", "--cache", "F/cache", "--out", "F/cache/run"], "lies inside the cache F/cache"),
        (["distill", "--cache", "F/cache", "--out", "F/pictures/run"], "lies inside F/pictures, which is read"),
        (["demo", "--out", "F/cache"], "lies inside the cache F/cache"),
        (["demo", "--out", "F/cache/demo"], "lies inside the cache F/cache"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_written_lies_apart_from_what_is_read(
    invoke: Invoke, folder: Path, args: list[str], words: str
) -> None:
    before = files_in(folder)
    more = {"extract": ["--teacher", STUB], "plan": ["--teacher", STUB], "import": ["--teacher-name", "t"]}
    student = ["--student", "open_clip:ViT-B-32", "--steps", "1", "--batch-size", "2"]
    given = [arg.replace("F", str(folder), 1) if arg.startswith("F/") else arg for arg in args]
    result = invoke(*given, *more.get(args[0], student if args[0] == "distill" else []))
    assert result.exit_code == 2, result.output
    assert words.replace("F/", f"{folder}/") in only_error(result)
    assert files_in(folder) == before


def test_a_cache_beside_its_pictures_and_a_run_beside_the_cache_are_fine(invoke: Invoke, folder: Path) -> None:
    args = ["--images", str(folder / "pictures"), "--teacher", STUB, "--no-index", "--decode-workers", "0"]
    assert invoke("extract", *args, "--cache", str(folder / "pictures-cache")).exit_code == 0
    assert invoke("extract", *args, "--cache", str(folder / "pictures-cache")).exit_code == 0


def test_a_cache_that_was_made_inside_its_pictures_can_still_be_resumed(invoke: Invoke, folder: Path) -> None:
    # As an earlier version let it be made: planned, and moved in.
    shutil.move(folder / "cache", folder / "pictures" / "cache")
    args = ["--images", str(folder / "pictures"), "--teacher", STUB, "--no-index", "--decode-workers", "0"]
    result = invoke("extract", *args, "--cache", str(folder / "pictures" / "cache"))
    assert result.exit_code == 0, result.output
