"""A method is told from its configuration alone; what the cache is to decide stays open until it is resolved."""

from pathlib import Path
from typing import Any

import pytest

from cache_schema.errors import UsageError
from stages.distill.config import DEFAULT_TEMPERATURES, DEFAULT_WEIGHTS, DistillConfig, Method, ResolvedMethod, Running
from stages.distill.losses import LOSSES

DECIDED: dict[str, Any] = {
    "student": "timm:test_vit",
    "steps": 1,
    "batch_size": 1,
    "text_batch_size": 1,
    "norm_batch_size": 2,
    "logit_scale": 1.0,
    "text_array": "t",
}


def test_every_default_weight_and_temperature_is_that_of_a_loss_and_one_loss_is_on() -> None:
    assert DEFAULT_WEIGHTS.keys() == LOSSES.keys() and any(DEFAULT_WEIGHTS.values())
    assert DEFAULT_TEMPERATURES.keys() <= LOSSES.keys()


def test_what_is_named_joins_the_defaults_as_numbers_and_changes_no_default() -> None:
    method = Method(cache=Path("c"), weights={"feature": 1}, temperatures={"vl": 2})
    assert method.weights == {"vl": 0.7, "pvl": 0.3, "udist": 0.0, "feature": 1.0}
    assert method.temperatures == {"vl": 2.0, "pvl": 3.0, "udist": 7.0}
    assert isinstance(method.weights["feature"], float) and isinstance(method.temperatures["vl"], float)
    assert (DEFAULT_WEIGHTS["feature"], DEFAULT_TEMPERATURES["vl"]) == (0.0, 1.0)


def test_an_unknown_loss_of_weight_alone_is_left_for_the_job_to_refuse() -> None:
    assert Method(cache=Path("c"), weights={"lv": 1.0}).weights["lv"] == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": dict.fromkeys(DEFAULT_WEIGHTS, 0.0)}, "all losses have weight 0, so there is nothing to learn"),
        ({"negatives": "mined"}, "negatives 'mined' are unknown: use random, or mined:NAME for mined neighbours"),
        ({"negatives": ""}, "negatives '' are unknown"),
        (
            {"negatives": "mined:"},
            "negatives 'mined:' name no neighbours: write mined:NAME as given to `pipeline mine`",
        ),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
        ({"checkpoint_seconds": 0.0}, "checkpoint_seconds is 0: use a value above 0"),
        ({"pictures": "small"}, "unknown pictures 'small'"),
        ({"mined_share": 1.5}, "mined_share is 1.5: use a value from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        DistillConfig(cache=Path("c"), out=Path("o"), **fields)
    assert message in str(refusal.value)


def test_running_is_checked_without_a_method() -> None:
    with pytest.raises(UsageError, match="decode_workers is -1"):
        Running(out=Path("o"), decode_workers=-1)


@pytest.mark.parametrize("name", DECIDED)
def test_a_resolved_method_leaves_nothing_open_that_the_cache_decides(name: str) -> None:
    assert ResolvedMethod(cache=Path("c"), **DECIDED).steps == 1
    with pytest.raises(AssertionError):
        ResolvedMethod(cache=Path("c"), **{**DECIDED, name: None})
