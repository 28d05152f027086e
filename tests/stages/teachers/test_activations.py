"""The activations of a built model are found by what they are, wherever they stand in it."""

import pytest
import torch
from torch import nn

from stages.teachers.activations import activations_in


class Deep(nn.Module):
    """Has an activation two modules down."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"block": nn.Sequential(nn.Linear(2, 2), part)})


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([], []),
        ([nn.Linear(1, 1), nn.LayerNorm(1), nn.Sigmoid()], []),
        ([nn.GELU()], ["GELU"]),
        ([nn.GELU(approximate="tanh")], ["GELU(tanh)"]),
        ([nn.SiLU(), nn.ReLU(), nn.GELU(), nn.ReLU()], ["GELU", "ReLU", "SiLU"]),
        ([nn.GELU(), nn.GELU("tanh")], ["GELU", "GELU(tanh)"]),
        ([nn.ReLU6(), nn.LeakyReLU()], ["LeakyReLU", "ReLU6"]),
        ([nn.Hardswish()], []),
    ],
)
def test_kinds_are_named_once_and_sorted(parts: list[nn.Module], names: list[str]) -> None:
    assert activations_in(nn.Sequential(*parts)) == names


def test_an_activation_is_found_at_any_depth_and_when_it_is_the_model_itself() -> None:
    assert activations_in(Deep(nn.GELU())) == ["GELU"]
    assert activations_in(nn.SiLU()) == ["SiLU"]


def test_quick_gelu_of_open_clip_and_of_transformers_are_told_from_gelu() -> None:
    from open_clip.transformer import QuickGELU
    from transformers.activations import QuickGELUActivation

    assert activations_in(nn.Sequential(QuickGELU())) == ["QuickGELU"]
    assert activations_in(nn.Sequential(QuickGELUActivation(), nn.GELU())) == ["GELU", "QuickGELUActivation"]


def test_an_activation_that_is_only_called_is_no_module() -> None:
    class Calls(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.gelu(x)

    assert activations_in(Calls()) == []
