"""A job holds its method and how it runs, resolved; its record is made of the method and what its names stand for."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.distill.amend import in_the_form_of
from stages.distill.config import DistillConfig, Method, ResolvedMethod, Running
from stages.distill.resolve import open_job
from stages.runs.folder import open_folder
from stages.runs.record import RunRecord, write_record
from stages.settings.declare import settings_in
from stages.settings.record import values_of

GOLDEN = Path(__file__).parents[2] / "golden" / "run-1"
ARRAY = "tests-stub-teacher-make.v0"
STUDENT = "open_clip:golden-tiny"
BATCH_NORM = "timm:test_efficientnet?image_size=32"


@pytest.fixture(scope="module", autouse=True)
def tiny_student() -> Iterator[None]:
    """Makes `open_clip:golden-tiny` the name of an architecture."""
    import open_clip
    from open_clip import factory

    open_clip.add_model_config(GOLDEN / "golden-tiny.json")
    yield
    factory._MODEL_CONFIG_PATHS.remove(GOLDEN / "golden-tiny.json")
    del factory._MODEL_CONFIGS["golden-tiny"]


@pytest.fixture
def config(tmp_path: Path) -> DistillConfig:
    """Asks for nothing but the student; the cache has 11 ok pictures, view 1, stored pixels and 17 ok sentences."""
    return DistillConfig(cache=GOLDEN / "cache", out=tmp_path / "run", student=STUDENT)


def asked(config: DistillConfig) -> dict[str, Any]:
    return dict(open_job(config).new_record().asked)


def test_nothing_that_the_cache_decides_is_left_open_and_the_values_are_those_of_the_cache(
    config: DistillConfig,
) -> None:
    job = open_job(config)
    assert all(getattr(job.method, name) is not None for name in ResolvedMethod.__annotations__)
    assert (job.method.batch_size, job.method.text_batch_size, job.method.norm_batch_size) == (11, 17, 11)
    assert (job.method.steps, job.method.window_parts) == (100, None)
    assert (job.method.logit_scale, job.method.precision, job.method.pictures) == (100.0, "float32", "stored")
    assert (job.method.image_array, job.method.text_array) == (ARRAY.replace(".v0", ".v1"), ARRAY)


def test_what_is_asked_beats_what_the_cache_would_decide(config: DistillConfig) -> None:
    values: dict[str, Any] = {"steps": 7, "batch_size": 5, "text_batch_size": 6, "logit_scale": 3.0, "window_parts": 2}
    values |= {"image_array": ARRAY, "text_array": ARRAY, "pictures": "originals", "precision": "bfloat16"}
    job = open_job(replace(config, **values))
    assert {name: getattr(job.method, name) for name in values} == values


def test_a_student_with_batch_statistics_or_random_draws_has_groups_and_another_has_none(
    config: DistillConfig,
) -> None:
    grouped = replace(config, student=BATCH_NORM, norm_batch_size=4)
    assert (open_job(grouped).method.norm_batch_size, open_job(grouped).group_size) == (4, 4)
    assert open_job(replace(grouped, norm_batch_size=50)).method.norm_batch_size == 11
    assert open_job(replace(grouped, norm_batch_size=None)).method.norm_batch_size == 11
    dropping = replace(config, student="timm:test_vit?image_size=32&drop=0.1", norm_batch_size=4)
    assert open_job(dropping).group_size == 4
    alone = open_job(replace(config, norm_batch_size=4))
    assert (alone.method.norm_batch_size, alone.group_size) == (11, None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_array": ARRAY},
        {"image_array": ARRAY, "pictures": "originals"},
        {"images": "unique", "negatives": "mined:near", "image_array": ARRAY},
        {"student": None, "from_run": GOLDEN / "finished", "micro_batch_size": 3, "ema": 0.9},
        {"weights": {"feature": 1.0, "vl": 0.0}, "temperatures": {"pvl": 2.0}, "window_parts": 1},
    ],
    ids=lambda changes: "-".join(changes) or "nothing",
)
def test_what_is_resolved_is_resolved_to_itself(config: DistillConfig, changes: dict[str, Any]) -> None:
    job = open_job(replace(config, **changes))
    again = open_job(DistillConfig(**values_of(job.method), **values_of(job.running)))
    assert values_of(again.method) == values_of(job.method) and values_of(again.running) == values_of(job.running)
    assert again.new_record() == job.new_record()


@pytest.mark.parametrize(
    ("run", "changes"),
    [
        ("finished", {"steps": 4, "image_array": ARRAY, "images": "unique", "negatives": "mined:near"}),
        ("replayed", {"steps": 2, "from_run": GOLDEN / "finished"}),
    ],
)
def test_what_a_golden_run_was_asked_is_recorded_again_key_by_key(
    config: DistillConfig, run: str, changes: dict[str, Any]
) -> None:
    record = json.loads((GOLDEN / run / "run.json").read_text())
    again = replace(config, batch_size=6, text_batch_size=8, logit_scale=20.0, weights={"feature": 1.0}, **changes)
    job = open_job(again)
    made = job.new_record()
    then = RunRecord(record["asked"], record["about"], record["result"], format=1)
    later = {"clip_grad": 0.0, "skip_nonfinite": 0}
    assert in_the_form_of(then, job) == {**record["asked"], **later}
    # Where things were when the golden run was made, and who made it.
    of_then = {"cache", "from", "sessions"}
    assert {key: made.about[key] for key in record["about"] if key not in of_then} == {
        key: value for key, value in record["about"].items() if key not in of_then
    }


# Field of the method -> another value, and what else must be asked for it to matter.
CHANGES: dict[str, dict[str, Any]] = {
    "student": {"student": "timm:resnet10t?image_size=32"},
    "from_run": {"from_run": GOLDEN / "finished"},
    "init": {"init": GOLDEN / "finished"},
    "images": {"images": "unique"},
    "negatives": {"negatives": "mined:near"},
    "steps": {"steps": 3},
    "batch_size": {"batch_size": 4},
    "text_batch_size": {"text_batch_size": 5},
    "norm_batch_size": {"norm_batch_size": 4, "student": BATCH_NORM},
    "logit_scale": {"logit_scale": 50.0},
    "weights": {"weights": {"udist": 0.5}},
    "learning_rate": {"learning_rate": 1e-3},
    "seed": {"seed": 1},
    "precision": {"precision": "bfloat16"},
    "image_array": {"image_array": ARRAY},
    "pictures": {"pictures": "originals", "image_array": ARRAY},
    "mined_share": {"mined_share": 0.25, "negatives": "mined:near"},
    "temperatures": {"temperatures": {"pvl": 2.0}},
    "min_learning_rate": {"min_learning_rate": 1e-5},
    "warmup_learning_rate": {"warmup_learning_rate": 1e-5},
    "warmup_share": {"warmup_share": 0.5},
    "weight_decay": {"weight_decay": 0.1},
    "clip_grad": {"clip_grad": 1.0},
    "skip_nonfinite": {"skip_nonfinite": 2},
    "ema": {"ema": 0.9},
    "hold_out": {"hold_out": "0.3"},
    "min_crop": {"min_crop": 0.5},
    "flip": {"flip": False},
    "window_parts": {"window_parts": 1},
    "picture_memory_bytes": {"picture_memory_bytes": 0},
}
# Recorded by the digests of what they name, which this one cache has only one of.
BY_DIGEST = {"cache", "texts", "text_array"}


def test_every_field_of_the_method_is_tried() -> None:
    assert CHANGES.keys() | BY_DIGEST == settings_in(Method).keys()


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_of_the_method_changes_the_fingerprint(config: DistillConfig, name: str) -> None:
    beside = {key: value for key, value in CHANGES[name].items() if key != name}
    without = open_job(replace(config, **beside)).new_record()
    assert open_job(replace(config, **CHANGES[name])).new_record().fingerprint != without.fingerprint


@pytest.mark.parametrize("name", list(settings_in(Running)))
def test_no_field_of_running_changes_the_fingerprint(config: DistillConfig, name: str, tmp_path: Path) -> None:
    value = getattr(config, name)
    if name == "amend":
        return  # It is for a run that is there, see test_amend.
    other = {"out": tmp_path / "other", "device": "cpu", "fresh": True, "probe": Path("set")}.get(
        name, 1 if value != 1 else 2
    )
    assert asked(replace(config, **{name: other})) == asked(config)


def test_a_run_that_goes_on_keeps_its_precision_on_whatever_device(config: DistillConfig) -> None:
    begun = open_job(replace(config, precision="bfloat16", device="cpu"))
    folder = open_folder(config.out)
    with folder.lock() as lock:
        write_record(folder, begun.new_record(), fence=lock.fence)
    assert open_job(replace(config, device="cpu")).method.precision == "bfloat16"
    assert open_job(replace(config, device="cpu", precision="float32")).method.precision == "float32"
    assert open_job(replace(config, device="cpu", fresh=True)).method.precision == "float32"
