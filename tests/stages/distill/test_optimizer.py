"""The learning rate over a run, and which parameters decay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.distill.optimizer import learning_rate_of_step, make_optimizer
from stages.students import build_student

USUAL = {"peak": 8e-4, "least": 4e-5, "warmup_start": 4e-6, "warmup_share": 0.04}


def test_rate_warms_up_for_its_share_then_falls_to_the_least_at_the_last_step():
    rates = np.array([learning_rate_of_step(step, 1000, **USUAL) for step in range(1000)])
    assert rates[0] == pytest.approx(4e-6)
    assert rates.argmax() == 40 and rates[40] == pytest.approx(8e-4)
    assert rates[-1] == pytest.approx(4e-5)
    assert (np.diff(rates[:41]) > 0).all() and (np.diff(rates[40:]) < 0).all()
    assert rates[520] == pytest.approx((8e-4 + 4e-5) / 2, rel=0.01), "half-way through a cosine lies the mean"


@given(num_steps=st.integers(1, 50), warmup_share=st.floats(0, 1))
def test_every_run_however_short_has_a_positive_rate_within_its_bounds(num_steps, warmup_share):
    for step in range(num_steps):
        rate = learning_rate_of_step(step, num_steps, **{**USUAL, "warmup_share": warmup_share})
        assert 4e-6 <= rate <= 8e-4


def test_only_matrices_decay_and_every_parameter_is_trained_once():
    student = build_student("timm:resnet10t?image_size=32", 8, seed=0)
    decaying, exempt = make_optimizer(student, weight_decay=0.05).param_groups
    assert decaying["weight_decay"] == 0.05 and exempt["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decaying["params"]) and all(p.ndim <= 1 for p in exempt["params"])
    assert len(decaying["params"]) + len(exempt["params"]) == len(list(student.parameters()))
