"""Tensors are written in the very bytes that the library of safetensors writes."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from cache_schema.errors import EnvironmentProblem
from stages.runs.tensor_file import publish_tensors

DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    values = torch.arange(-3, 3).reshape(2, 3)
    tensors = {}
    for place, dtype in enumerate(DTYPES):
        tensors |= {f"z.{place}": values.to(dtype, copy=True), f'A {place} \u00fc "': values[0, 0].to(dtype, copy=True)}
        tensors[f"empty {place}"] = torch.zeros(0, 4, dtype=dtype)
    path = tmp_path / "some.safetensors"
    written = publish_tensors(path, tensors)
    assert path.read_bytes() == save(tensors)
    assert written == (hashlib.sha256(save(tensors)).hexdigest(), path.stat().st_size)


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    publish_tensors(tmp_path / "none.safetensors", {})
    assert (tmp_path / "none.safetensors").read_bytes() == save({})


def test_a_disk_that_refuses_is_an_environment_problem_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "some.safetensors").mkdir()
    with pytest.raises(EnvironmentProblem, match=r"some\.safetensors"):
        publish_tensors(tmp_path / "some.safetensors", {"weights": torch.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["some.safetensors"]
