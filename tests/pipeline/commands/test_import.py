"""`pipeline import` as its users meet it: exit codes, one-line errors, a clean stdout, kill -9 in the middle."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.corpora.command_line import only_error
from tests.corpora.extracts import digests_of
from tests.corpora.folders import states_of
from tests.corpora.foreign_features import (
    keys_of,
    sentences_of,
    vectors,
    write_clip_retrieval,
    write_feature_tsv,
    write_image_tsv,
    write_npy,
)
from tests.corpora.pictures import jpeg
from tests.corpora.processes import kill_group, records_of, result_of, start, wait_for


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What clip-retrieval wrote for 40 pictures with captions."""
    folder = tmp_path_factory.mktemp("clip-retrieval") / "out"
    images, texts = vectors(40, seed=1), vectors(40, seed=2)
    return write_clip_retrieval(folder, keys_of(40), sentences_of(40), images, texts, rows_per_partition=15)


def import_of(output: Path, cache: Path, *more: str) -> list[str]:
    features = ["--image-features", str(output), "--text-features", str(output), "--teacher-name", "openai-ViT-B-32"]
    return ["import", *features, "--cache", str(cache), "--part-rows", "16", *more]


def test_an_import_is_an_ordinary_cache_that_is_inspected_verified_and_mined(
    invoke: Callable[..., Result], output: Path, tmp_path: Path
) -> None:
    result = invoke(*import_of(output, tmp_path / "cache", "--json", "--quiet"))
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["imported_rows"] == 80 and said["assumed_logit_scale"] is True
    assert "logit scale 100 is assumed" in result.stderr
    again = invoke(*import_of(output, tmp_path / "cache", "--quiet"))
    assert again.exit_code == 0 and "nothing was pending" in again.stdout
    assert "next: pipeline mine" in again.stdout
    inspected = invoke("inspect", str(tmp_path / "cache"), "--json")
    arrays = json.loads(inspected.stdout)["arrays"]
    assert {name: array["teacher"] for name, array in arrays.items()} == {
        "image/openai-vit-b-32.v0": "imported:openai-ViT-B-32",
        "text/openai-vit-b-32.v0": "imported:openai-ViT-B-32",
    }
    assert invoke("verify", str(tmp_path / "cache"), "--quiet").exit_code == 0
    mined = invoke("mine", "--cache", str(tmp_path / "cache"), "--k", "3", "--name", "near", "--quiet")
    assert mined.exit_code == 0, mined.stderr
    refused = invoke("distill", "--cache", str(tmp_path / "cache"), "--out", "run", "--steps", "1", "--quiet")
    assert refused.exit_code == 2 and "imported as features without pictures" in only_error(refused)
    encode = invoke("extract", "--cache", str(tmp_path / "cache"), "--quiet")
    assert encode.exit_code == 2 and "there is nothing to look at" in only_error(encode)


def test_features_and_samples_on_one_side_only_are_counted_on_the_screen(
    invoke: Callable[..., Result], tmp_path: Path
) -> None:
    write_feature_tsv(tmp_path / "f.feat.tsv", keys_of(10, first=3), vectors(10))
    write_image_tsv(tmp_path / "i.tsv", keys_of(8), [jpeg(9, 8, at) for at in range(8)])
    sources = ["--image-features", str(tmp_path / "f.feat.tsv"), "--images", str(tmp_path / "i.tsv")]
    options = ["--teacher-name", "clip", "--logit-scale", "50", "--cache", "cache", "--quiet"]
    result = invoke("import", *sources, *options)
    assert result.exit_code == 0, result.stderr
    assert "5 image features belong to no sample" in result.stdout
    assert "assumed" not in result.stderr
    bad = json.loads(invoke("inspect", "cache", "--bad", "--json").stdout)["bad_rows"]
    assert [(row["key"], row["status"]) for row in bad] == [(key, "feature-missing") for key in keys_of(3)]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["nothing to import", "--image-features"]),
        (["--images", "photos"], ["--images photos needs features", "pipeline extract"]),
        (["--image-features", "none.npy"], ["none.npy does not exist"]),
        (["--image-features", "pickled:x"], ["pickled", "known: clip-retrieval, dime-fm, npy, parquet"]),
        (["--image-features", "x.bin"], ["what format of features", "npy:"]),
        (["--image-features", "x.npy"], ["x.parquet is not there", "?keys=PATH"]),
        (["--image-features", "x.tsv?column=a"], ["unknown option of dime-fm features 'column'"]),
        (["--image-features", "empty"], ["holds no img_emb/img_emb_*.npy"]),
        (["--part-rows", "1e3"], ["whole number"]),
        (["--logit-scale", "0"], ["out of range"]),
        (["--logit-scale", "nan"], ["not a number"]),
        (["--featurs", "x"], ["unknown option '--featurs'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_arguments_end_with_2_in_one_line_and_write_nothing(
    args: list[str], words: list[str], invoke: Callable[..., Result]
) -> None:
    for name in ("x.bin", "x.npy", "x.tsv"):
        Path(name).write_bytes(b"x")
    Path("empty").mkdir()
    result = invoke("import", "--cache", "cache", "--teacher-name", "clip", *args)
    line = only_error(result)
    assert result.exit_code == 2, line
    assert all(word in line for word in words), line
    assert not Path("cache").exists()


def test_a_name_is_asked_for_and_damaged_features_end_with_4(invoke: Callable[..., Result]) -> None:
    path = write_npy(Path("f.npy"), keys_of(4), sentences_of(4), vectors(4))
    nameless = invoke("import", "--cache", "cache", "--image-features", str(path))
    assert nameless.exit_code == 2 and "--teacher-name" in only_error(nameless)
    path.write_bytes(path.read_bytes()[:-1])
    cut = invoke("import", "--cache", "cache", "--image-features", str(path), "--teacher-name", "clip")
    assert cut.exit_code == 4 and "it is cut or damaged" in only_error(cut)
    assert not Path("cache").exists()


def test_an_import_killed_in_the_middle_keeps_its_parts_and_reruns_to_the_same_digest(tmp_path: Path) -> None:
    num_rows = 1000
    write_npy(tmp_path / "f.npy", keys_of(num_rows), sentences_of(num_rows), vectors(num_rows))
    features = ["--text-features", str(tmp_path / "f.npy"), "--teacher-name", "clip", "--no-index", "--part-rows", "16"]
    args = ["import", *features, "--cache"]
    cache = tmp_path / "cache"
    process = start(*args, cache)
    wait_for(lambda: len(records_of(cache)) >= 2, process)
    kill_group(process)
    kept = states_of(cache / "text" / "arrays" / "clip.v0" / "records")
    assert 2 <= len(records_of(cache)) < num_rows // 16
    result_of(*args, cache)
    assert states_of(cache / "text" / "arrays" / "clip.v0" / "records").items() >= kept.items()
    result_of(*args, tmp_path / "whole")
    assert digests_of(cache) == digests_of(tmp_path / "whole")
