"""A run that is asked again: what may change in the middle of it, with `amend`, and what may not."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache_schema.errors import MismatchError, UsageError
from stages.distill.amend import AMENDABLE
from stages.distill.config import DistillConfig, Method
from stages.distill.run import TrainingStopped, distill
from stages.runs.folder import RunFolder
from stages.runs.record import read_record
from stages.settings.declare import settings_in
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import small_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cache(tmp_path_factory.mktemp("corpus")).path


@pytest.fixture
def config(cache: Path, tmp_path: Path) -> DistillConfig:
    sizes = {"steps": 6, "batch_size": 8, "text_batch_size": 12, "logit_scale": 20.0, "warmup_share": 0.0}
    return distill_config(cache, tmp_path / "run", student="timm:test_vit?image_size=32", **sizes)


def stopped(config: DistillConfig, step: int) -> None:
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=stop_after(step))


def metrics(config: DistillConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def cosine_schedule(step: int, steps: int, peak: float) -> float:
    return 4e-5 + (peak - 4e-5) * (1 + math.cos(math.pi * step / (steps - 1))) / 2


def test_only_settings_of_the_method_that_every_student_may_have_for_itself_can_be_amended() -> None:
    settings = settings_in(Method)
    assert all(settings[name].own and settings[name].recorded for name in AMENDABLE)


def test_from_the_amended_step_on_the_new_values_hold_and_the_fingerprint_stays(config: DistillConfig) -> None:
    stopped(config, 2)
    before = read_record(RunFolder(config.out)).fingerprint
    amended = replace(
        config, learning_rate=4e-4, steps=8, weights={"feature": 2.0}, temperatures={"vl": 2.0}, amend="it diverged"
    )
    result = distill(amended)
    rates = [line["learning_rate"] for line in metrics(config)]
    expected = [cosine_schedule(step, 6, 8e-4) for step in range(2)]
    expected += [cosine_schedule(step, 8, 4e-4) for step in range(2, 8)]
    assert rates == pytest.approx(expected)
    assert ["feature" in line for line in metrics(config)] == [False] * 2 + [True] * 6
    record = read_record(RunFolder(config.out))
    assert (record.fingerprint, result["steps"]) == (before, 8)
    (amendment,) = record.about["amendments"]
    assert (amendment["step"], amendment["reason"]) == (2, "it diverged")
    assert set(amendment["changes"]) == {"learning_rate", "steps", "weights", "temperatures"}


def test_a_later_resume_keeps_the_amendment_whichever_of_both_commands_is_repeated(config: DistillConfig) -> None:
    whole = replace(config, out=config.out.with_name("whole"))
    amendment = {"learning_rate": 4e-4, "amend": "slower"}
    stopped(whole, 2)
    expected = distill(replace(whole, **amendment))["weights_sha256"]
    for name, changes in (("first", {}), ("amended", {"learning_rate": 4e-4})):
        here = replace(config, out=config.out.with_name(name))
        stopped(here, 2)
        stopped(replace(here, **amendment), 2)
        assert distill(replace(here, **changes))["weights_sha256"] == expected
    plain = replace(config, out=config.out.with_name("plain"))
    assert distill(plain)["weights_sha256"] != expected


def test_where_the_newest_checkpoint_is_lost_the_steps_before_the_amendment_are_repeated_as_they_were(
    config: DistillConfig,
) -> None:
    often = replace(config, checkpoint_steps=1, keep_checkpoints=9)
    stopped(often, 3)
    amended = replace(often, learning_rate=4e-4, amend="slower")
    stopped(amended, 1)
    expected = distill(replace(often, learning_rate=4e-4))["weights_sha256"]
    lines = (config.out / "metrics.jsonl").read_bytes()
    for step in (3, 4, 5, 6):
        (config.out / "checkpoints" / f"step-{step:09d}.safetensors").write_bytes(b"damaged")
    record = config.out / "run.json"
    from tests.corpora.resealed import reseal

    reseal(record, result=None)
    assert distill(often)["weights_sha256"] == expected
    assert (config.out / "metrics.jsonl").read_bytes() == lines


def test_a_run_that_has_ended_goes_on_with_more_steps(config: DistillConfig) -> None:
    distill(config)
    result = distill(replace(config, steps=9, amend="it was still learning"))
    assert result["steps"] == 9 and len(metrics(config)) == 9
    assert distill(config) == result, "and has ended again"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({}, UsageError, "changes nothing"),
        ({"steps": 3}, UsageError, "3 steps are asked for and run .* has done 4: give more --steps"),
        ({"min_crop": 0.5, "steps": 9}, MismatchError, "min_crop: 0.5 now, 0.08 then"),
        ({"seed": 1}, MismatchError, "seed: 1 now, 0 then"),
    ],
)
def test_an_amendment_that_cannot_be_is_refused_and_leaves_the_run_as_it_is(
    config: DistillConfig, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    stopped(config, 4)
    before = (config.out / "run.json").read_bytes()
    with pytest.raises(error, match=said):
        distill(replace(config, amend="because", **changes))
    assert (config.out / "run.json").read_bytes() == before


def test_a_run_that_has_ended_cannot_be_amended_without_more_steps(config: DistillConfig) -> None:
    distill(config)
    with pytest.raises(UsageError, match=r"6 steps are asked for and run .* has done 6: give more --steps"):
        distill(replace(config, learning_rate=1e-4, amend="too late"))


def test_a_change_without_a_reason_names_amend_only_where_it_helps(config: DistillConfig) -> None:
    stopped(config, 2)
    with pytest.raises(MismatchError, match=r"learning_rate: 0.0004 now, 0.0008 then.*--amend REASON"):
        distill(replace(config, learning_rate=4e-4))
    with pytest.raises(MismatchError) as refusal:
        distill(replace(config, learning_rate=4e-4, seed=1))
    assert "--amend" not in str(refusal.value)
    assert distill(replace(config, learning_rate=4e-4, amend="as advised"))["steps"] == 6


def test_several_amendments_follow_each_other(config: DistillConfig) -> None:
    stopped(config, 2)
    stopped(replace(config, learning_rate=4e-4, amend="slower"), 1)
    distill(replace(config, weights={"udist": 0.5}, amend="another loss"))
    steps = [(one["step"], list(one["changes"])) for one in read_record(RunFolder(config.out)).about["amendments"]]
    assert steps == [(2, ["learning_rate"]), (3, ["weights"])]
    assert [line["learning_rate"] for line in metrics(config)][2:] == pytest.approx(
        [cosine_schedule(step, 6, 4e-4) for step in range(2, 6)]
    )
    assert ["udist" in line for line in metrics(config)] == [False] * 3 + [True] * 3


def test_a_run_of_format_1_can_be_amended(tmp_path: Path) -> None:
    golden = Path(__file__).parents[2] / "golden" / "run-1"
    shutil.copytree(golden, tmp_path / "golden")
    import open_clip
    from open_clip import factory

    open_clip.add_model_config(golden / "golden-tiny.json")
    try:
        config = DistillConfig(
            cache=tmp_path / "golden" / "cache",
            out=tmp_path / "golden" / "stopped",
            student="open_clip:golden-tiny",
            image_array="tests-stub-teacher-make.v0",
            images="unique",
            negatives="mined:near",
            steps=7,
            batch_size=6,
            text_batch_size=8,
            logit_scale=20.0,
            weights={"feature": 1.0, "vl": 0.0},
            num_threads=1,
            decode_workers=0,
            amend="longer, without vl",
        )
        result = distill(config)
    finally:
        factory._MODEL_CONFIG_PATHS.remove(golden / "golden-tiny.json")
        del factory._MODEL_CONFIGS["golden-tiny"]
    record = read_record(RunFolder(config.out))
    assert (record.format, result["steps"]) == (1, 7)
    assert ["vl" in line for line in metrics(config)] == [True] * 2 + [False] * 5
