"""Checkpoints are unwrapped as open_clip does, and copied whole or not at all; scales are read in full precision."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cache_schema.errors import MismatchError, RefusedError, UsageError
from stages.teachers.checkpoint_weights import load_all, logit_scale_and_bias, read_tensors

HERE = Path("here.pt")


def tensors() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).reshape(3, 2), "bias": torch.tensor([1.0, -2.0, 3.0])}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda content: content,
        lambda content: {"epoch": 3, "state_dict": content},
        lambda content: {"state_dict": {f"module.{name}": value for name, value in content.items()}},
        lambda content: {f"module.{name}": value for name, value in content.items()},
        lambda content: {**content, "input_resolution": 224, "context_length": 77, "vocab_size": 49408},
    ],
    ids=["plain", "training", "training and wrapped", "wrapped", "OpenAI's"],
)
def test_a_torch_file_is_unwrapped_to_its_tensors(suffix: str, wrap: Any, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(tensors()), path)
    assert_same(read_tensors(path), tensors())


def test_a_safetensors_file_is_read_as_it_is_or_without_its_module_prefix(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tensors(), path)
    assert_same(read_tensors(path), tensors())
    save_file({f"module.{name}": value for name, value in tensors().items()}, path)
    assert_same(read_tensors(path), tensors())


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    mixed = {"module.weight": torch.zeros(1), "bias": torch.ones(1)}
    torch.save(mixed, path)
    assert_same(read_tensors(path), mixed)


def test_what_is_no_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    for name in ("missing.pt", "folder.pt"):
        with pytest.raises(UsageError, match=rf"there is no checkpoint file .*{name}: check the path"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"input_resolution": 224}, "is not a state dict: 0 entries that are no dense tensors:"),
        ({"state_dict": {}}, "holds no state dict: save the model's state dict as .safetensors"),
        ({"a": 1, "b": torch.zeros(1)}, r"1 entries that are no dense tensors (a)"),
        ({str(number): number for number in range(12)}, "12 entries that are no dense tensors (0, 1, 2, 3, 4, 5, 6, "),
        ({str(number): number for number in range(12)}, "8, 9 and 2 more)"),
    ],
)
def test_other_content_is_refused_with_the_first_ten_entries(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(RefusedError) as refusal:
        read_tensors(tmp_path / "other.pt")
    assert message in str(refusal.value)


def test_whole_tensors_are_copied_into_the_model_and_widened_to_its_precision() -> None:
    model = nn.Linear(2, 3)
    load_all(model, {name: value.half() for name, value in tensors().items()}, HERE)
    assert_same(dict(model.state_dict()), tensors())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "1 missing (bias), 0 unexpected: loading it would leave random weights; name the arch"),
        ({"more": torch.zeros(1)}, "0 missing, 1 unexpected (more):"),
        (
            {"bias": torch.zeros(1, 3)},
            "1 other shapes or dtypes (bias (1, 3) torch.float32 for (3,) torch.float32): name the architecture",
        ),
        ({"weight": torch.zeros(3, 2, dtype=torch.int64)}, "(weight (3, 2) torch.int64 for (3, 2) torch.float32)"),
    ],
)
def test_a_model_is_never_left_partly_loaded(change: dict, message: str) -> None:
    model = nn.Linear(2, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = {name: value for name, value in {**tensors(), **change}.items() if value is not None}
    with pytest.raises(MismatchError) as refusal:
        load_all(model, given, HERE)
    assert str(refusal.value).startswith("here.pt does not fit the architecture: ") and message in str(refusal.value)
    assert_same(dict(model.state_dict()), before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_spoilt_tensors_are_named_and_not_loaded(value: float) -> None:
    model, spoilt = nn.Linear(2, 3), tensors()
    spoilt["bias"][1] = value
    with pytest.raises(RefusedError, match=r"^here\.pt is spoilt: 1 tensors with NaN or infinity \(bias\): get a good"):
        load_all(model, spoilt, HERE)
    assert not torch.equal(model.bias, torch.tensor([1.0, value, 3.0]))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scale_and_bias_of_any_shape_with_one_entry_are_numbers(shape: tuple[int, ...]) -> None:
    found = logit_scale_and_bias(
        {"logit_scale": torch.full(shape, 2.5), "logit_bias": torch.full(shape, -10.125)}, HERE
    )
    assert found == (pytest.approx(math.exp(2.5), rel=1e-15), -10.125)
    assert logit_scale_and_bias({"logit_scale": torch.full(shape, 2.5)}, HERE)[1] is None


def test_the_exponential_is_that_of_what_is_stored_in_double_precision() -> None:
    stored = torch.tensor(4.6052, dtype=torch.bfloat16)
    assert logit_scale_and_bias({"logit_scale": stored}, HERE)[0] == pytest.approx(math.exp(stored.item()), rel=1e-15)


@pytest.mark.parametrize("stored", [14.0, 1e9, math.inf, -math.inf, math.nan, -1e4])
def test_a_scale_that_nobody_trained_is_refused(stored: float) -> None:
    with pytest.raises(RefusedError, match=r"here\.pt has a logit scale of .*: get a good copy of the checkpoint"):
        logit_scale_and_bias({"logit_scale": torch.tensor(stored)}, HERE)


def test_a_checkpoint_without_a_scale_is_none_of_a_dual_encoder() -> None:
    with pytest.raises(RefusedError, match=r"here\.pt has no logit_scale: it is not the checkpoint of a dual encoder"):
        logit_scale_and_bias(tensors(), HERE)


def test_a_scale_with_one_axis_fits_a_model_with_none_and_the_other_way_round() -> None:
    class Scaled(nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.logit_scale = nn.Parameter(torch.zeros(shape))

    for ours, theirs in (((), (1,)), ((1,), ())):
        model = Scaled(ours)
        load_all(model, {"logit_scale": torch.full(theirs, 4.5)}, HERE)
        assert model.logit_scale.shape == ours and model.logit_scale.item() == 4.5
    with pytest.raises(MismatchError, match=r"logit_scale \(2,\)"):
        load_all(Scaled(()), {"logit_scale": torch.zeros(2)}, HERE)
