"""The benchmark of choices of method: its intervals, its effects, and one whole run at its smallest size."""

import io
import json
import math
import subprocess
import sys
import tarfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.commands import ROOT
from benchmarks.method import T_95, half_width
from benchmarks.method_corpora import CIFAR_CLASSES, CIFAR_IN_LVIS, REAL_FILES, TEST_NUMBERS, VALIDATION_NUMBERS
from benchmarks.method_effects import effects_of
from stages.distill.config import DistillConfig, Method

WIDTH = 8
SMALLEST = ("--student", "timm:test_resnet?image_size=32", "--steps", "2", "--batch-size", "4", "--seeds", "2")


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "benchmarks.method", *map(str, arguments)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, payloads: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, payload in payloads.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of the same shapes as the real ones, with a few random features and one-coloured pictures."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    cifar, jpegs, classes, unsplash, unsplash_features = (folder / name for name in REAL_FILES)
    pixels = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    np.savez(cifar, image_u8=pixels, label=np.arange(10), image_emb=rng.normal(size=(10, WIDTH)).astype(np.float32))
    colours = [tuple(rng.integers(0, 256, 3).tolist()) for _ in CIFAR_CLASSES]
    numbers = (*VALIDATION_NUMBERS, *TEST_NUMBERS)
    write_tar(
        jpegs,
        {
            f"test/{name}/{number:04}.jpg": payload
            for name, payload in zip(CIFAR_CLASSES, map(jpeg, colours), strict=True)
            for number in numbers
        },
    )
    sentences = [f"thing {number}, other word" for number in range(150)]
    vectors = rng.normal(size=(3, 150, WIDTH)).astype(np.float32)
    np.savez(
        classes,
        imagenet_names=np.array(sentences),
        imagenet_a_name=vectors[0],
        imagenet_a_photo_of_a_name=vectors[1],
        lvis_names=np.array(CIFAR_IN_LVIS),
        **{"detic_lvis_v1_clip_a+cname": vectors[2, : len(CIFAR_IN_LVIS)].astype(np.float16)},
    )
    names = [f"photo-{number}.jpg" for number in range(4)]
    write_tar(unsplash, {name: jpeg((9, 99, 200), (48, 40)) for name in names})
    features = rng.normal(size=(4, WIDTH)).astype(np.float32)
    np.savez(unsplash_features, image_file=np.array(names), image_emb=features)
    return folder


def test_an_interval_is_that_of_a_worked_example() -> None:
    # Mean 2, standard deviation 1, standard error 1/√3, and 4.303 for two degrees of freedom.
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(2.4844, abs=1e-4)
    assert half_width([0.5]) is None


@pytest.mark.parametrize(("freedom", "point"), list(enumerate(T_95, start=1)))
def test_between_the_points_of_the_table_lies_95_percent_of_student_t(freedom: int, point: float) -> None:
    constant = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    x = np.linspace(-point, point, 200_001)

    assert np.trapezoid(constant * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x) == pytest.approx(0.95, abs=1e-4)


def test_every_variant_changes_a_setting_of_the_method_to_a_value_that_is_allowed() -> None:
    known = {field.name for field in fields(Method)}
    for effect in effects_of(500, 64).values():
        for changes in effect.variants.values():
            assert changes and set(changes) <= known
            DistillConfig(cache=Path("cache"), out=Path("out"), **changes)


def test_every_variant_sees_as_many_images_as_the_base() -> None:
    for effect in effects_of(500, 64).values():
        for changes in effect.variants.values():
            assert changes.get("steps", 500) * changes.get("batch_size", 64) == 500 * 64


def test_real_data_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    done = run("--work", tmp_path / "work", "--real", tmp_path)

    assert done.returncode == 1
    assert all(name in done.stderr for name in REAL_FILES)
    assert "docs/distilling.md" in done.stderr


def test_a_benchmark_of_method_compares_with_the_base_seed_by_seed_and_runs_nothing_twice(
    data: Path, tmp_path: Path
) -> None:
    asked = ("--work", tmp_path / "work", "--real", data, *SMALLEST, "--effects", "clip grad", "mined sentences")
    first = run(*asked, "--base", '{"text_batch_size": 16}')
    assert first.returncode == 0, first.stderr
    base, clipped, _, *mined = json.loads(first.stdout)["real"]["rows"]

    differences = np.subtract(clipped["accuracies"], base["accuracies"])
    assert len(differences) == 2
    assert clipped["base_accuracies"] == base["accuracies"]
    assert clipped["difference"] == pytest.approx(differences.mean(), abs=1e-4)
    # Those that see the same pictures and sentences are trained in one pass, at the same cost.
    assert clipped["cpu_s"] == base["cpu_s"]
    assert [row["variant"] for row in mined] == ["share 0.25", "share 0.5"]
    notes = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "real-runs").glob("*.json")}
    again = run(*asked, "--base", '{"text_batch_size": 16}')
    assert again.stdout == first.stdout
    assert notes == {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "real-runs").glob("*.json")}
