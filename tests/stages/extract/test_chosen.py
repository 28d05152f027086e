"""What a configuration leaves open is decided by the machine, once, and kept for a teacher in a cache."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache_schema.cache import Cache
from cache_schema.errors import DamagedError
from cache_schema.verify import verify_cache
from stages.device import Machine
from stages.extract.chosen import Place, Surroundings, batch_that_fits, place_of
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.teachers.precision import chosen_precision
from tests.corpora.extracts import extract, extract_config, run_parts
from tests.corpora.small_corpus import write_sentences
from tests.corpora.stub_teacher import STUB
from tests.corpora.tiny_open_clip import save_local_dir, tiny_config, tiny_weights

ONE_GPU = Machine(gpus=("H100",), num_cores=16, num_shown=1, num_there=1)
SLOPPY = """
import numpy as np
from tests.corpora import stub_teacher

class Sloppy:
    def __init__(self, precision):
        self._inner = stub_teacher.make(dim=16)
        self._turned = np.float32({turned} if precision == "bfloat16" else 0)

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def encode_texts(self, texts):
        features = self._inner.encode_texts(texts)
        return features + self._turned * np.roll(features, 1, axis=1)

def make(device="cpu", precision="float32"):
    return Sloppy(precision)
"""


@pytest.fixture
def config(tmp_path: Path) -> ExtractConfig:
    """An extract of 40 sentences by a tiny teacher of open_clip, that leaves its precision open."""
    config = tiny_config()
    teacher = save_local_dir(tmp_path / "teacher", config, tiny_weights(config))
    sentences = write_sentences(tmp_path / "sentences.txt", 40)
    return extract_config(tmp_path / "cache", texts=sentences, teacher=f"open_clip:local-dir:{teacher}")


def precisions(cache: Path) -> list[str]:
    opened = Cache.open(cache)
    return [opened.array("text", name).recipe.precision for name in opened.arrays("text")]


def for_a_gpu_elsewhere(said: list[str]) -> Surroundings:
    return Surroundings(elsewhere=True, machine=Machine(), notice=said.append)


@pytest.mark.parametrize(
    ("device", "machine", "expected"),
    [
        ("auto", ONE_GPU, Place("cuda", "cuda", "H100")),
        ("auto", Machine(), Place("cpu", "cpu")),
        ("cpu", ONE_GPU, Place("cpu", "cpu")),
        ("cuda:1", Machine(("H100", "A100")), Place("cuda:1", "cuda:1", "A100")),
    ],
)
def test_the_teacher_computes_where_it_is_asked_to_and_auto_is_the_gpu(
    device: str, machine: Machine, expected: Place
) -> None:
    assert place_of("open_clip:ViT-L-14/openai", device, Surroundings(machine=machine)) == expected


@pytest.mark.parametrize(
    ("device", "machine", "expected"),
    [
        ("cuda", Machine(), Place("cuda", "cpu")),
        ("cuda", ONE_GPU, Place("cuda", "cuda", "H100")),
        ("auto", ONE_GPU, Place("cuda", "cuda", "H100")),
        ("auto", Machine(), Place("cpu", "cpu")),
        ("cpu", ONE_GPU, Place("cpu", "cpu")),
    ],
)
def test_a_process_that_leaves_the_work_to_others_needs_no_gpu_for_theirs(
    device: str, machine: Machine, expected: Place
) -> None:
    around = Surroundings(elsewhere=True, machine=machine)
    assert place_of("open_clip:ViT-L-14/openai", device, around) == expected


def test_a_factory_that_takes_no_device_is_left_where_it_is() -> None:
    assert place_of(STUB, "auto", Surroundings(machine=ONE_GPU)) == Place("cpu", "cpu")


def test_a_machine_without_a_gpu_takes_float32_and_batches_of_64_and_says_nothing(config: ExtractConfig) -> None:
    said: list[str] = []
    with open_job(replace(config, part_rows=1024), around=Surroundings(machine=Machine(), notice=said.append)) as job:
        settings = job.settings
    assert (settings.device, settings.precision, settings.batch_size) == ("cpu", "float32", 64)
    assert precisions(config.cache) == ["float32"]
    assert said == []


def test_precision_is_chosen_at_the_first_array_and_kept_for_the_teacher_wherever_the_run_goes_on(
    config: ExtractConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with open_job(replace(config, device="cuda"), around=for_a_gpu_elsewhere(said)) as job:
        assert job.settings.precision == "bfloat16"
    assert "precision bfloat16: in bfloat16 all probes keep a cosine of 0.99" in said[0]
    # The same teacher, spelt otherwise, on a machine without a GPU.
    monkeypatch.chdir(config.cache.parent)
    extract(replace(config, teacher="open_clip:local-dir:teacher"))
    assert precisions(config.cache) == ["bfloat16"]
    assert verify_cache(config.cache) == []


def test_a_cache_begun_in_float32_stays_so_where_there_is_a_gpu_now(config: ExtractConfig) -> None:
    extract(config, only=1)
    with open_job(replace(config, device="cuda"), around=for_a_gpu_elsewhere([])) as job:
        assert job.settings.precision == "float32" and len(job.tasks) == 2


@pytest.mark.parametrize(("turned", "precision"), [(0.02, "bfloat16"), (0.2, "float32")])
def test_bfloat16_is_taken_exactly_where_all_probes_keep_a_cosine_of_0_999(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turned: float, precision: str
) -> None:
    # A feature turned by a hundredth or a tenth of a radian has a cosine of about 0.9998 or 0.98 to itself.
    (tmp_path / f"sloppy_{precision}.py").write_text(SLOPPY.replace("{turned}", str(turned)))
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    specification = f"python:sloppy_{precision}:make"
    found = chosen_precision(specification, "cuda", compared_on="cpu", say=said.append)
    assert found == precision
    assert said[0].startswith(f"precision {precision}: in bfloat16 all probes keep a cosine of 0.9")
    assert chosen_precision(specification, "cpu", compared_on="cpu", say=said.append) == "float32"


def test_a_factory_that_takes_no_precision_keeps_its_own() -> None:
    assert chosen_precision(STUB, "cuda", compared_on="cpu", say=pytest.fail) == "float32"


def _device_with(free_bytes: int, bytes_of_row: int, passes: list[int]) -> Callable[[int], int]:
    def peak_bytes(rows: int) -> int:
        passes.append(rows)
        if rows * bytes_of_row > free_bytes:
            raise MemoryError
        return rows * bytes_of_row

    return peak_bytes


@pytest.mark.parametrize(
    ("free_bytes", "bytes_of_row", "most", "expected"),
    [
        (10_000, 1, 512, 512),
        (10_000, 100, 512, 64),
        (10_000, 79, 512, 64),
        (10_000, 78, 512, 64),
        (10_000, 1, 100, 64),
        (10_000, 62, 512, 128),
        (10_000, 9_000, 512, 1),
        (10_000, 20_000, 512, 1),
        (10_000, 1, 1, 1),
        (10_000, 0, 512, 64),
    ],
)
def test_a_batch_is_the_largest_power_of_two_whose_real_pass_leaves_a_fifth_of_the_memory(
    free_bytes: int, bytes_of_row: int, most: int, expected: int
) -> None:
    passes: list[int] = []
    assert batch_that_fits(_device_with(free_bytes, bytes_of_row, passes), free_bytes, most) == expected
    assert max(passes, default=0) <= most


def test_the_batch_that_was_measured_is_kept_outside_the_fingerprint_and_used_again(config: ExtractConfig) -> None:
    part_rows = replace(config, part_rows=1024, device="cuda")
    said: list[str] = []
    with open_job(part_rows, around=for_a_gpu_elsewhere(said)) as job:
        assert job.settings.batch_size == 64
        (array,) = job.arrays["text"]
    assert said[-1] == "64 rows go through the teacher at once; this process has no GPU to measure on"
    path = config.cache / "text" / "arrays" / array.name / "batch_size.json"
    assert not path.exists()
    path.write_text(json.dumps({"H100": 256}))
    with open_job(part_rows, around=for_a_gpu_elsewhere([])) as job:
        assert job.settings.batch_size == 256
        assert job.arrays["text"][0].recipe.fingerprint == array.recipe.fingerprint
    with open_job(part_rows, around=replace(for_a_gpu_elsewhere([]), gpu_share=0.25)) as job:
        assert job.settings.batch_size == 64
    with open_job(replace(part_rows, batch_size=7), around=for_a_gpu_elsewhere([])) as job:
        assert job.settings.batch_size == 7
    path.write_text(json.dumps({"H100": "many"}))
    with (
        pytest.raises(DamagedError, match="delete it, and the next extract measures again"),
        open_job(part_rows, around=for_a_gpu_elsewhere([])),
    ):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_everything_is_chosen_said_and_kept(config: ExtractConfig) -> None:
    said: list[str] = []
    part_rows = replace(config, part_rows=1024)
    around = Surroundings(notice=said.append)
    with open_job(part_rows, around=around) as job:
        settings = job.settings
    name = torch.cuda.get_device_name(0)
    assert said[0] == f"the teacher computes on cuda:0 ({name})"
    assert (settings.device, settings.precision, settings.batch_size) == ("cuda", "bfloat16", 512)
    again: list[str] = []
    with open_job(part_rows, around=replace(around, notice=again.append)) as job:
        assert job.settings == replace(settings, fence=job.settings.fence)
        run_parts(job)
    assert again == [said[0]]
    assert verify_cache(config.cache) == []
