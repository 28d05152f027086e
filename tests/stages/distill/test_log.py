"""Metrics are one line per step, cut back to the steps that are done when a run goes on."""

import json

from stages.distill.log import TrainingLog
from stages.runs.folder import RunFolder


def _write(folder, steps, *, first_step):
    with TrainingLog(folder, first_step=first_step) as log:
        for step in steps:
            log.write(step, {"loss": 1 / step}, num_images=4, phases={"wait": 0.0, "loss": 0.5})
    return log


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_log_repeats_nothing(tmp_path):
    folder = RunFolder(tmp_path)
    _write(folder, range(1, 6), first_step=0)
    log = _write(folder, range(4, 7), first_step=3)
    assert [line["step"] for line in _lines(folder.metrics)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in _lines(folder.speed)] == [1, 2, 3, 4, 5, 6]
    assert log.num_lost_lines == 0


def test_metrics_hold_nothing_that_time_changes_and_speed_holds_the_rest(tmp_path):
    folder = RunFolder(tmp_path)
    _write(folder, [1], first_step=0)
    assert _lines(folder.metrics) == [{"loss": 1.0, "step": 1}]
    assert _lines(folder.speed)[0].keys() == {"step", "images_per_s", "seconds", "waited_seconds", "phases"}


def test_a_log_that_lost_its_tail_says_how_many_lines(tmp_path):
    folder = RunFolder(tmp_path)
    _write(folder, range(1, 4), first_step=0)
    assert _write(folder, [6], first_step=5).num_lost_lines == 2


def test_half_a_line_left_by_a_crash_is_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    _write(folder, [1, 2], first_step=0)
    with open(folder.metrics, "a") as file:
        file.write('{"loss": 0.')
    _write(folder, [3], first_step=2)
    assert [line["step"] for line in _lines(folder.metrics)] == [1, 2, 3]


def test_tensorboard_can_read_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path)
    _write(folder, range(1, 4), first_step=0)
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert {"images_per_s", "seconds/loss"} <= set(events.Tags()["scalars"])
