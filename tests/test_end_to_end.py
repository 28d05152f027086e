"""The whole pipeline as a user runs it, with a tiny open_clip teacher: extract once, distil many, also when killed."""

import json
import signal
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from cache_schema.cache import Cache
from tests.corpora.extracts import digests
from tests.corpora.held_out import write_evaluation_set
from tests.corpora.pictures import encoded
from tests.corpora.processes import kill_group, records_of, result_of, start, wait_for
from tests.corpora.tiny_open_clip import make_tiny_open_clip
from tests.corpora.webdataset import write_tar

pytestmark = pytest.mark.slow

NUM_PICTURES, NUM_SENTENCES = 70, 150
STUDENTS = {"first": "timm:test_vit?image_size=32", "second": "timm:test_convnext?image_size=32"}


def picture(rng: np.random.Generator, colour: int) -> bytes:
    """Returns a noisy picture in which one colour dominates."""
    pixels = rng.integers(0, 120, (48, 40, 3), np.uint8)
    pixels[..., colour] += 130
    return encoded(Image.fromarray(pixels), "JPEG", quality=90)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for tar in range(2):
        members = [(f"{tar}-{i:03d}.jpg", picture(rng, i % 3)) for i in range(NUM_PICTURES // 2)]
        members[5] = (members[5][0], members[5][1][:300])
        write_tar(folder / f"{tar}.tar", members)
    (folder / "sentences.txt").write_text("".join(f"a {i} coloured thing\n" for i in range(NUM_SENTENCES)))
    labelled = [(f"{i}.jpg", picture(rng, i % 3), i % 3) for i in range(24)]
    templates = ["a photo of a {c} thing", "something {c}"]
    write_evaluation_set(folder / "held-out", ["red", "green", "blue"], templates, [labelled])
    make_tiny_open_clip(folder / "teacher")
    return folder


def extract_args(data: Path, cache: Path) -> list[object]:
    sources = ["--images", data / "{0,1}.tar", "--texts", data / "sentences.txt"]
    teacher = ["--teacher", f"open_clip:local-dir:{data / 'teacher'}"]
    return ["extract", *sources, *teacher, "--cache", cache, "--part-rows", 16, "--batch-size", 8]


@pytest.fixture(scope="module")
def extracted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    cache = tmp_path_factory.mktemp("cache") / "cache"
    return cache, result_of(*extract_args(data, cache))


@pytest.fixture(scope="module")
def runs(extracted: tuple[Path, dict], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict]]:
    cache, _ = extracted
    result_of("mine", "--cache", cache, "--from", "image", "--to", "text", "--k", 4, "--name", "near")
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for name, student in STUDENTS.items():
        common = ["--cache", cache, "--student", student, "--out", folder / name, "--negatives", "mined:near"]
        made[name] = folder / name, result_of("distill", *common, "--steps", 6, "--batch-size", 16)
    again = ["--cache", cache, "--from", folder / "first", "--out", folder / "again", "--seed", 1]
    made["again"] = folder / "again", result_of("distill", *again, "--steps", 4, "--batch-size", 16)
    return made


def test_a_killed_extract_runs_again_to_the_digest_of_an_uninterrupted_one(
    data: Path, extracted: tuple[Path, dict], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    process = start(*extract_args(data, cache))
    wait_for(lambda: records_of(cache), process)
    kill_group(process)
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    again = result_of(*extract_args(data, cache))
    assert 0 < again["extracted_rows"] < NUM_PICTURES + NUM_SENTENCES
    assert digests(again["arrays"]) == digests(extracted[1]["arrays"])
    assert result_of("verify", cache)["problems"] == []


def test_plain_zarr_and_parquet_show_every_row(extracted: tuple[Path, dict]) -> None:
    cache = Cache.open(extracted[0])
    for modality, count in (("image", NUM_PICTURES), ("text", NUM_SENTENCES)):
        array = cache.array(modality)
        plain = zarr.open_group(cache.layout.features(modality), mode="r")[array.name]
        assert plain[:].tobytes() == array.features.gather(np.arange(count)).tobytes()
        tables = [pq.read_table(path) for path in sorted((cache.path / modality / "samples").iterdir())]
        rows = [row for table in tables for row in table.to_pylist()]
        assert [row["row"] for row in rows] == list(range(count))
        assert [row["row"] for row in rows if row["status"] == "ok"] == array.ok_rows().tolist()
    assert cache.array("image").num_bad == 2


def test_features_are_those_of_open_clip_itself(data: Path, extracted: tuple[Path, dict]) -> None:
    import open_clip
    import torch

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{data / 'teacher'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{data / 'teacher'}")
    cache = Cache.open(extracted[0])
    import tarfile

    with tarfile.open(data / "0.tar") as tar:
        payload = tar.extractfile("0-000.jpg").read()  # type: ignore[union-attr]
    with torch.inference_mode():
        pixels = preprocess(Image.open(BytesIO(payload)))[None]
        image = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)[0].numpy()
        text = torch.nn.functional.normalize(model.encode_text(tokenizer(["a 3 coloured thing"])), dim=-1)[0].numpy()
    ours = (cache.array("image").features.gather_unit([0])[0], cache.array("text").features.gather_unit([3])[0])
    assert cache.texts(np.array([3])) == ["a 3 coloured thing"]
    for theirs, mine in ((image, ours[0]), (text, ours[1])):
        assert np.abs(theirs - mine).max() < 1e-3


def test_two_students_and_a_second_round_come_from_one_cache(
    extracted: tuple[Path, dict], runs: dict[str, tuple[Path, dict]]
) -> None:
    assert digests(result_of("inspect", extracted[0])["arrays"]) == digests(extracted[1]["arrays"]), (
        "training changed the cache"
    )
    assert len({result["weights_sha256"] for _, result in runs.values()}) == 3
    for folder, _ in runs.values():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert all(np.isfinite(line["loss"]) for line in lines)
        assert list((folder / "tensorboard").iterdir())


def test_a_run_loads_as_an_open_clip_pair_with_the_features_of_its_student(
    data: Path, runs: dict[str, tuple[Path, dict]]
) -> None:
    import open_clip
    import torch

    from stages.students import load_image_tower

    teacher, _ = open_clip.create_model_from_pretrained(f"local-dir:{data / 'teacher'}")
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a red thing"])
    for folder, _ in runs.values():
        pair, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder / 'model'}")
        student = load_image_tower(folder)
        pixels = torch.rand(2, 3, *student.preprocess.size)
        with torch.inference_mode():
            assert torch.allclose(pair.encode_image(pixels), student(pixels), atol=1e-5)
            assert torch.equal(pair.encode_text(tokens), teacher.encode_text(tokens))


def test_evaluate_measures_students_and_their_teacher(data: Path, runs: dict[str, tuple[Path, dict]]) -> None:
    teacher = result_of("evaluate", f"open_clip:local-dir:{data / 'teacher'}", "--data", data / "held-out")
    student = result_of("evaluate", runs["first"][0], "--data", data / "held-out")
    for result in (teacher, student):
        assert result["num_images"] == 24
        assert result["chance"] == pytest.approx(1 / 3, abs=1e-4)
        assert 0 <= result["zero_shot_top1"] <= 1
    assert -1 <= student["mean_cosine"] <= 1
    assert 0 <= student["agreement_top1"] <= 1


def test_a_killed_distill_resumes_to_the_weights_of_an_uninterrupted_one(
    extracted: tuple[Path, dict], tmp_path: Path
) -> None:
    common = ["distill", "--cache", extracted[0], "--student", STUDENTS["first"], "--batch-size", 16, "--steps", 20]
    common += ["--checkpoint-steps", 2]
    whole = result_of(*common, "--out", tmp_path / "whole")
    process = start(*common, "--out", tmp_path / "killed")
    wait_for(lambda: list((tmp_path / "killed").glob("checkpoints/*.json")), process)
    kill_group(process)
    resumed = result_of(*common, "--out", tmp_path / "killed")
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed")]
    assert metrics[0] == metrics[1]
