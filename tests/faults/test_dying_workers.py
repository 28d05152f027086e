"""A worker that dies in foreign code costs the rows of which it dies and no others, here and on Ray, bit for bit."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from tests.corpora.deadly_teacher import deadly
from tests.corpora.extracts import digests_of, outcomes_in
from tests.corpora.processes import kill_group, records_of, run, start, wait_for

TEXTS = {3, 9, 30}
PICTURES = {5, 17}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 sentences, three of them with the word boom, and 24 pictures, two of them nearly black."""
    lines = [f"sentence {number}{' boom' if number in TEXTS else ''}\n" for number in range(40)]
    (tmp_path / "sentences.txt").write_text("".join(lines))
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        if number in PICTURES:
            pixels = np.zeros((40, 40, 3), np.uint8)
            pixels[:20] = 8
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02}.png")
    return tmp_path


def args_of(folder: Path, name: str, *more: object, images: bool = True, **teacher: object) -> list[object]:
    sources = ["--texts", folder / "sentences.txt", *(["--images", folder / "pictures"] if images else [])]
    rows = ["--part-rows", 16, "--batch-size", 4, "--decode-workers", 0, "--no-index"]
    return ["extract", "--cache", folder / name, "--teacher", deadly(**teacher), *sources, *rows, *more]


def features(folder: Path, name: str, modality: str) -> np.ndarray:
    (array,) = zarr.open_group(folder / name / modality / "features.zarr", mode="r").array_values()
    values: np.ndarray = array[:].view(np.uint16)
    return values


def bad_rows(folder: Path, name: str, modality: Any) -> dict[int, tuple[str, str]]:
    rows = enumerate(outcomes_in(folder / name, modality).values())
    return {row: outcome for row, outcome in rows if outcome[0] != "ok"}


def judge(folder: Path, name: str, told: str) -> None:
    """Every row but the deadly ones has the bits that it has where nobody dies; these have a status and a reason."""
    good = "undisturbed"
    assert run(*args_of(folder, good)).returncode == 0
    for modality, deadly_rows in (("text", TEXTS), ("image", PICTURES)):
        assert bad_rows(folder, name, modality) == dict.fromkeys(deadly_rows, ("worker-died", told))
        kept = [row for row in range(40 if modality == "text" else 24) if row not in deadly_rows]
        assert np.array_equal(features(folder, name, modality)[kept], features(folder, good, modality)[kept])
    assert run("verify", folder / name).returncode == 0
    assert not (folder / name / "under_way.json").exists()


def test_the_run_after_a_death_finds_the_rows_to_blame_and_finishes(folder: Path) -> None:
    args = args_of(folder, "cache", text="boom", black=True)
    assert run(*args).returncode == -signal.SIGSEGV
    assert json.loads((folder / "cache" / "under_way.json").read_text()) == {"modality": "image", "part": 0}
    done = run(*args)
    assert done.returncode == 0 and "image part 0: an earlier run ended in the middle of it" in done.stderr
    assert "image part 0: done but for row 5, of which workers die" in done.stderr
    assert "text part 0: done but for row 3, 9, of which workers die" in done.stderr
    judge(folder, "cache", "SIGSEGV")
    before = digests_of(folder / "cache")
    assert "nothing was pending" in run(*args).stdout
    assert digests_of(folder / "cache") == before


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGSEGV", "7"])
def test_ray_finds_the_same_rows_in_one_run_with_the_same_digest(folder: Path, how: str) -> None:
    ray = ("--executor", "ray", "--workers", 2)
    done = run(*args_of(folder, "ray", *ray, text="boom", black=True, how=how))
    assert done.returncode == 0, done.stderr
    judge(folder, "ray", how if how == "SIGSEGV" else f"exit code {how}")
    args = args_of(folder, "serial", text="boom", black=True, how=how)
    assert run(*args).returncode != 0
    assert run(*args).returncode == 0
    assert digests_of(folder / "serial") == digests_of(folder / "ray")


def test_a_run_that_was_killed_from_outside_does_its_part_again_and_blames_no_row(folder: Path) -> None:
    process = start(*args_of(folder, "cache", images=False, seconds_per_batch=5))
    wait_for(lambda: (folder / "cache" / "under_way.json").exists(), process)
    kill_group(process)
    done = run(*args_of(folder, "cache", images=False))
    assert done.returncode == 0 and "text part 0: an earlier run ended in the middle of it" in done.stderr
    assert bad_rows(folder, "cache", "text") == {} and "of which workers die" not in done.stderr
    run(*args_of(folder, "undisturbed", images=False))
    assert digests_of(folder / "cache") == digests_of(folder / "undisturbed")


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGKILL"])
def test_a_death_that_does_not_come_again_blames_no_row(folder: Path, how: str) -> None:
    args = args_of(folder, "cache", images=False, text="boom", how=how, spared=folder / "once")
    assert run(*args).returncode == -getattr(signal, how)
    assert run(*args).returncode == 0
    assert bad_rows(folder, "cache", "text") == {}


def test_parts_that_kill_whatever_is_left_out_fail_and_the_others_are_done(folder: Path) -> None:
    args = args_of(folder, "cache", batches=True, how=3)
    assert run(*args).returncode == 3
    done = run(*args)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert (
        "3 of 3 parts failed (text part 0: the worker dies of it whatever rows are left out (exit code 3)"
        in done.stderr
    )
    assert len(records_of(folder / "cache")) == 2, "the pictures are committed"


def test_sys_exit_in_a_teacher_is_a_failed_part_and_not_the_end_of_the_run(folder: Path) -> None:
    done = run(*args_of(folder, "cache", text="boom", how="sys.exit"))
    assert done.returncode == 3 and "something in it called sys.exit(0)" in done.stderr
    assert "2 of 5 parts failed (text part 0" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in records_of(folder / "cache") if "text" in path.parts] == ["00002.json"]


def test_no_note_is_left_by_a_run_that_can_say_how_it_ended(folder: Path) -> None:
    process = start(*args_of(folder, "cache", images=False, seconds_per_batch=0.5))
    note = folder / "cache" / "under_way.json"
    wait_for(note.exists, process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130 and not note.exists()


def test_a_decoder_that_dies_in_the_process_of_the_run_decodes_apart_in_the_next_one(folder: Path) -> None:
    Image.new("RGB", (41, 40), (90, 10, 200)).save(folder / "pictures" / "99.png")
    args = args_of(folder, "cache", decoder=True)
    assert run(*args).returncode == -signal.SIGSEGV
    done = run(*args)
    assert done.returncode == 0, done.stderr
    assert bad_rows(folder, "cache", "image") == {}
    run(*args_of(folder, "undisturbed"))
    assert digests_of(folder / "cache") == digests_of(folder / "undisturbed")


def test_sys_exit_while_the_teacher_is_loaded_is_an_error_and_no_success(folder: Path) -> None:
    (folder / "leaving.py").write_text("import sys\ndef make():\n    sys.exit(0)\n")
    sources = ("--texts", folder / "sentences.txt", "--cache", folder / "cache")
    done = run("extract", *sources, "--teacher", "python:leaving:make", cwd=folder)
    assert done.returncode not in (0, 3) and "sys.exit" in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "cache").exists()
