"""`pipeline plan` says what an extract will write and take, and touches nothing."""

import json
import shlex
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.commands import extract, plan
from tests.corpora.command_line import only_error
from tests.corpora.folders import size_of, states_of
from tests.corpora.pictures import write_pictures
from tests.corpora.small_corpus import write_random_sentences
from tests.corpora.stub_teacher import stub

TEACHER = stub(dim=64)
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder / "pictures", 60, sizes=[(24, 24)], bad={3: b""})
    write_random_sentences(folder / "sentences.txt", 300)
    return folder


@pytest.fixture
def options(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    sources = ["--images", str(data / "pictures"), "--texts", str(data / "sentences.txt")]
    sizes = ["--part-rows", "32", "--batch-size", "16", "--decode-workers", "0", "--num-threads", "1"]
    return [*sources, "--teacher", TEACHER, "--cache", str(tmp_path / "cache"), *sizes]


@pytest.fixture
def planned(invoke: Callable[..., Result], options: list[str]) -> Callable[..., dict]:
    def run(*more: str) -> dict:
        result = invoke("plan", *options, *more, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


def test_the_planned_bytes_are_those_of_the_cache_then_extracted(
    planned: Callable[..., dict], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    foreseen = planned("--calibrate-seconds", "0.5", "--views", "2")
    assert not cache.exists() and list((tmp_path / "temporary").iterdir()) == []
    assert all(row["measured"] for row in foreseen["row_bytes"].values())
    result = invoke(*shlex.split(foreseen["next"])[1:])
    assert result.exit_code == 0, result.stderr
    assert foreseen["bytes"]["features"] == pytest.approx(size_of(cache, "*/features.zarr/*/c/*/0"), rel=0.05)
    assert foreseen["bytes"]["sample_tables"] == pytest.approx(size_of(cache, "*/samples/*.parquet"), rel=0.25)
    assert foreseen["bytes"]["indexes"] == pytest.approx(size_of(cache, "*/indexes/*.faiss"), rel=0.05)
    counts = {each["modality"]: (each["rows"], each["parts"]) for each in foreseen["modalities"]}
    assert counts == {"image": (60, 2), "text": (300, 10)}
    assert [array["view"] for array in foreseen["arrays"]] == [0, 1, 0]


def test_stored_pictures_are_planned_as_they_are_then_stored(
    planned: Callable[..., dict], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    foreseen = planned("--calibrate-seconds", "0.3", "--store-pixels", "16", "--views", "2")
    assert foreseen["picture_bytes"]["measured"]
    result = invoke(*shlex.split(foreseen["next"])[1:])
    assert result.exit_code == 0, result.stderr
    stored = size_of(tmp_path / "cache", "image/pixels/*.arrow")
    assert foreseen["bytes"]["pixels"] == pytest.approx(stored, rel=0.25)
    assert planned("--calibrate-seconds", "0.1")["bytes"]["total"] == 0  # what is stored already is not pending


def test_only_what_is_pending_counts_and_the_cache_is_not_touched(
    planned: Callable[..., dict], invoke: Callable[..., Result], options: list[str], tmp_path: Path, data: Path
) -> None:
    done = [word for word in options if word not in ("--texts", str(data / "sentences.txt"))]
    assert invoke("extract", *done).exit_code == 0
    before = states_of(tmp_path / "cache")
    foreseen = planned("--calibrate-seconds", "0.2")
    assert states_of(tmp_path / "cache") == before
    assert {each["modality"]: each["pending_rows"] for each in foreseen["modalities"]} == {"image": 0, "text": 300}
    assert [each["modality"] for each in foreseen["calibration"]] == ["text"]
    assert foreseen["time"]["shared_rows"] is False
    features = {array["array"].split("/")[0]: array["feature_bytes"] for array in foreseen["arrays"]}
    assert features["image"] == 0 and features["text"] == 10 * (32 * 64 * 2 + 24)
    assert invoke("extract", *options).exit_code == 0
    assert planned("--calibrate-seconds", "0.1", "--views", "2")["time"]["shared_rows"] is True
    foreseen = planned()
    assert foreseen["bytes"]["total"] == 0 and foreseen["time"] is None
    assert foreseen["next"] == f"pipeline inspect {tmp_path / 'cache'}"


def test_without_calibration_nothing_is_encoded_and_bytes_per_row_are_said_to_be_assumed(
    planned: Callable[..., dict], invoke: Callable[..., Result], options: list[str], tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    calls.touch()
    foreseen = planned("--calibrate-seconds", "0", "--teacher", stub(dim=64, calls=calls))
    assert foreseen["calibration"] is None and foreseen["time"] is None
    assert not any(row["measured"] for row in foreseen["row_bytes"].values())
    assert [line.split()[1] for line in calls.read_text().splitlines()] == ["16", "16"]  # its own 16 probes
    shown = invoke("plan", *options, "--calibrate-seconds", "0").stdout
    assert "48 bytes a row (assumed)" in shown and "nothing was timed" in shown


def test_the_time_is_that_of_the_real_teacher_on_the_real_rows_and_names_the_slowest_stage(
    planned: Callable[..., dict],
) -> None:
    slow = stub(dim=64, seconds_per_batch=0.1)
    foreseen = planned("--calibrate-seconds", "1", "--teacher", slow, "--workers", "4")
    images, texts = foreseen["calibration"]
    for speed in (images, texts):
        stages = speed["stage_seconds_per_1000_rows"]
        assert stages["forward"] >= 0.99 * 1000 / 16 * 0.1  # the teacher sleeps so long over every 16 rows
        assert speed["bottleneck"] == max(stages, key=stages.__getitem__)
    assert 0 < images["rows_per_s"] <= 160 and 0 < texts["rows_per_s"] <= 160
    assert images["slowest_rows_per_s"] <= images["rows_per_s"] <= images["fastest_rows_per_s"]
    assert images["timed_rows"] >= 16 and images["timed_parts"] >= 1
    time = foreseen["time"]
    here, spread = time["seconds_here"], time["seconds_on_workers"]
    assert here["expected"] == pytest.approx(60 / images["rows_per_s"] + 300 / texts["rows_per_s"], rel=0.01)
    assert here["fastest"] <= here["expected"] <= here["slowest"]
    assert spread["expected"] == pytest.approx(here["expected"] * 3 / 12, rel=0.01)  # 12 parts, 3 for each
    assert time["start_seconds"] > 0


def test_bad_rows_of_the_timed_ones_are_counted(planned: Callable[..., dict], data: Path) -> None:
    foreseen = planned("--calibrate-seconds", "0.5")
    images = foreseen["calibration"][0]
    assert images["modality"] == "image" and images["bad_rows"] >= 1


def test_people_read_how_many_rows_were_timed_and_whether_the_disk_is_large_enough(
    invoke: Callable[..., Result], options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = invoke("plan", *options, "--calibrate-seconds", "0.2", "--workers", "2")
    assert result.exit_code == 0, result.stderr
    for words in ("does not exist yet", "(measured)", "enough", "timed: ", "start of a worker", "2 workers like this"):
        assert words in result.stdout
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2000, 1000, 1000))
    result = invoke("plan", *options, "--calibrate-seconds", "0")
    assert result.exit_code == 0, result.stderr
    assert "free disk: 1,000 bytes, NOT ENOUGH: extract will refuse to start" in result.stdout
    assert "next: " not in result.stdout
    refused = invoke("extract", *options)
    assert refused.exit_code == 1 and "1,000 bytes free" in refused.stderr
    assert not (tmp_path / "cache").exists()


def test_the_next_step_repeats_what_was_asked(planned: Callable[..., dict], options: list[str]) -> None:
    foreseen = planned("--calibrate-seconds", "0", "--no-index", "--texts", options[3])
    asked = shlex.split(foreseen["next"])
    assert asked[:2] == ["pipeline", "extract"] and asked.count("--texts") == 2 and "--no-index" in asked
    assert asked[asked.index("--teacher") + 1] == TEACHER and "--calibrate-seconds" not in asked


def test_plan_is_asked_what_extract_is_asked_about_its_cache() -> None:
    of_extract = {param.name for param in extract.command.params}
    of_plan = {param.name for param in plan.command.params}
    assert {"images", "texts", "teacher", "cache", "views", "part_rows", "precision", "device", "index"} <= of_plan
    assert of_plan - of_extract == {"calibrate_seconds", "workers"} - of_extract


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["plan", "--cache", "c", "--calibrate-seconds", "-1"], "--calibrate-seconds"),
        (["plan", "--cache", "c", "--workers", "0"], "--workers"),
        (["plan", "--cache", "c", "--teacher", TEACHER], "nothing to extract"),
        (["plan", "--images", "x"], "--cache DIR is missing"),
        (["plan", "--cache", "c", "--images", "x"], "name the --teacher"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(
    invoke: Callable[..., Result], args: list[str], words: str
) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert words in only_error(result)
