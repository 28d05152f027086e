"""The ImageNet weights that packages carry."""

import io
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import EnvironmentProblem
from pipeline.demo.imagenet import WEIGHTS, checkpoint_of, path_in_package
from pipeline.demo.pictures import draw, list_emoji

BANANA = 954
"""Its place among ImageNet's classes."""


@pytest.mark.parametrize("architecture", WEIGHTS)
def test_a_network_of_timm_with_the_checkpoint_calls_a_drawn_banana_a_banana(architecture: str) -> None:
    import safetensors.torch
    import timm
    import torch
    from PIL import Image

    drawn = Image.open(io.BytesIO(draw(next(one for one in list_emoji() if one.name == "banana"))))
    network = timm.create_model(architecture).eval()
    network.load_state_dict(safetensors.torch.load(checkpoint_of(architecture)))
    pixels = torch.from_numpy((np.asarray(drawn, np.float32) - 127) / 128).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = network(pixels)[0]

    assert BANANA in logits.argsort(descending=True)[:5]


def test_a_package_that_is_not_installed_is_named_with_what_to_do() -> None:
    with pytest.raises(EnvironmentProblem, match=r"the demo needs no_such_package.*make setup"):
        path_in_package("no_such_package", "weights.pth")


def test_a_file_lies_in_the_folder_of_its_package() -> None:
    assert path_in_package("pipeline", "cli.py") == Path(__import__("pipeline").__file__).parent / "cli.py"
