"""The seconds of a step by phase, and what is said of the slowest of them."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from stages.distill.meter import FEED_PHASES, Bottleneck, Meter, phase, said_of
from stages.distill.run import distill
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import small_cache

OF_A_STEP = {"wait", "gather", "decode", "upload", "forward", "exchange", "loss", "backward", "optimizer"}


def _sleep(name: str, seconds: float = 0.02) -> None:
    with phase(name):
        time.sleep(seconds)


def test_a_meter_sums_the_phases_of_its_thread_until_they_are_taken() -> None:
    meter = Meter()
    _sleep("forward")
    with meter.open(), ThreadPoolExecutor(1) as other:
        _sleep("forward")
        _sleep("loss")
        _sleep("forward")
        other.submit(_sleep, "decode").result()
    seconds = meter.taken()
    assert seconds.keys() == {"forward", "loss"}
    assert 0.04 <= seconds["forward"] < 1 and 0.02 <= seconds["loss"] < 1
    assert meter.taken() == {}


def test_torchs_profiler_shows_the_phases_by_name() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as trace, phase("forward"):
        torch.zeros(2)
    assert "forward" in {event.key for event in trace.key_averages()}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ({"wait": 5, "gather": 1, "decode": 6, "forward": 2, "backward": 3}, "waits 50% for decoding"),
        ({"wait": 5, "gather": 9, "decode": 6, "forward": 2, "backward": 3}, "waits 50% for looking up rows"),
        ({"wait": 0.1, "decode": 9, "forward": 2, "backward": 4, "loss": 3.9}, "60% in the student's passes"),
        ({"wait": 0.1, "forward": 1, "backward": 2, "loss": 6.9}, "69% for the losses: fewer sentences"),
        ({"wait": 1, "forward": 1, "backward": 2, "loss": 6}, "60% for the losses: fewer sentences"),
        ({"forward": 1, "backward": 1, "save": 8}, "80% for checkpoints: a larger --checkpoint-steps"),
        ({"forward": 1, "backward": 1, "measure": 8}, "80% for measuring held-out pictures"),
        ({"forward": 1, "backward": 1, "optimizer": 8}, "80% for the optimizer"),
        ({"forward": 1, "backward": 1, "wait": 8, "upload": 9, "decode": 1}, "waits 80% for moving pictures"),
        ({}, ""),
    ],
)
def test_the_bottleneck_is_named_with_what_to_change(seconds: dict[str, float], said: str) -> None:
    assert said_of(seconds).startswith(said)


def test_the_bottleneck_is_that_of_the_last_steps_together_and_of_all_students() -> None:
    bottleneck = Bottleneck()
    for _ in range(20):
        said = bottleneck.of({"wait": 0.0}, {"forward": 1.0}, {"forward": 1.0, "loss": 1.0})
    assert said == "67% in the student's passes"
    assert bottleneck.of({"wait": 3.0, "decode": 9.0}, {"forward": 1.0}) == "61% in the student's passes"
    for _ in range(20):
        said = bottleneck.of({"wait": 3.0, "decode": 9.0}, {"forward": 1.0})
    assert said.startswith("waits")


def test_every_step_of_a_run_writes_down_its_phases_and_says_the_bottleneck(tmp_path: Path) -> None:
    cache = small_cache(tmp_path)
    sizes = {"steps": 3, "batch_size": 8, "text_batch_size": 12, "checkpoint_steps": 2}
    notes = []
    config = distill_config(cache.path, tmp_path / "run", student="timm:test_vit?image_size=32", **sizes)
    distill(config, progress=lambda done, total, unit, note="": notes.append(note) if unit == "steps" else None)
    first, second, third = (json.loads(line) for line in (config.out / "speed.jsonl").read_text().splitlines())
    assert first["phases"].keys() == second["phases"].keys() == OF_A_STEP
    # What a step costs after its line is written is part of the next line.
    assert third["phases"].keys() == OF_A_STEP | {"save"}
    for line in (second, third):
        own = sum(seconds for name, seconds in line["phases"].items() if name not in FEED_PHASES)
        assert 0 < own <= line["seconds"] and line["phases"]["wait"] == line["waited_seconds"]
    assert all(note.split(", ")[-1] for note in notes) and "images/s; " in notes[0]
