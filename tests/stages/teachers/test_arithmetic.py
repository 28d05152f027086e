"""A kind of arithmetic is a device, an instruction set and a library, of which an older cache may say less."""

import re
import sys

import pytest
import torch

from stages.teachers.arithmetic import (
    LOOSEST_DISTANCE,
    UNKNOWN,
    Arithmetic,
    max_distance,
    may_share_an_array,
    numerics_of,
)

OTHER = "cuda NVIDIA H200 torch 2.15"


def test_a_kind_of_arithmetic_names_device_instruction_set_and_library(monkeypatch: pytest.MonkeyPatch) -> None:

    assert re.fullmatch(r"cpu [A-Z0-9]+ torch \d+\.\d+", numerics_of("cpu"))
    assert torch.backends.cpu.get_cpu_capability() in numerics_of("cpu")
    monkeypatch.delitem(sys.modules, "torch")
    assert numerics_of("cpu") == "cpu"


@pytest.mark.parametrize(
    ("ours", "theirs", "may"),
    [
        ("cpu AVX512 torch 2.15", "cpu AVX512 torch 2.15", True),
        ("cpu AVX512 torch 2.15", "cpu", True),
        ("cpu AVX512 torch 2.15", "cpu AVX2 torch 2.15", False),
        ("cpu AVX512 torch 2.15", "cpu AVX512 torch 2.16", False),
        ("cpu AVX512 torch 2.1", "cpu AVX512 torch 2.15", False),
        (OTHER, "cuda NVIDIA H200", True),
        (OTHER, "cuda NVIDIA H", False),
        (OTHER, "cpu", False),
    ],
)
def test_what_an_older_cache_does_not_say_is_no_difference(ours: str, theirs: str, may: bool) -> None:
    assert may_share_an_array(ours, theirs) == may_share_an_array(theirs, ours) == may


FLOAT32 = Arithmetic("float32", "cpu AVX512 torch 2.15")


def test_the_same_precision_and_numerics_leave_the_least_room_and_an_unknown_one_the_most() -> None:
    other = Arithmetic("float32", "cuda NVIDIA H200 torch 2.15")
    half = Arithmetic("float16", FLOAT32.numerics)
    limits = [max_distance(FLOAT32, theirs) for theirs in (FLOAT32, other, half, None)]
    assert limits == sorted(limits) and limits[0] == 1e-4 and limits[1] == 1e-3
    assert limits[2:] == [LOOSEST_DISTANCE, LOOSEST_DISTANCE]
    for precision in ("float32", "float16", "bfloat16", UNKNOWN, "of a later version"):
        ours = Arithmetic(precision, "cpu")
        assert max_distance(ours, ours) < max_distance(ours, Arithmetic(precision, "cuda X")) <= LOOSEST_DISTANCE
