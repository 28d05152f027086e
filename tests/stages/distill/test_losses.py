"""The losses against a float64 NumPy reference written from the formulas, not from our code."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema.errors import UsageError
from stages.distill.losses import LOSSES, LossInputs, Side, TeacherSide, total_loss

TEMPERATURES = {"vl": 1.0, "pvl": 3.0, "udist": 7.0, "feature": 1.0}


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def _divergence(teacher, student, temperature):
    p, q = _log_softmax(teacher / temperature), _log_softmax(student / temperature)
    return (np.exp(p) * (p - q)).sum() / len(teacher)


def _reference(name, image, teacher_image, text, logit_scale, temperature):
    z, u, v = (_unit(np.asarray(x, np.float64)) for x in (image, teacher_image, text))
    s, t = logit_scale, temperature
    if name == "vl":
        return _divergence(s * u @ v.T, s * z @ v.T, t) + _divergence(s * v @ u.T, s * v @ z.T, t)
    if name == "pvl":
        return 2 * _divergence(s * u @ u.T, s * z @ u.T, t)
    if name == "udist":
        return 2 * _divergence(s * u @ u.T, s * z @ z.T, t)
    return np.mean(1 - (z * u).sum(axis=1))


def _features(num_images, num_texts, dim, *, shared=0.0, distance=None, seed=0):
    """Student, teacher image and text features; `shared` is the weight of one direction that all of them have."""
    rng = np.random.default_rng(seed)
    direction = shared * rng.normal(size=(1, dim))
    teacher_image = rng.normal(size=(num_images, dim)) + direction
    text = rng.normal(size=(num_texts, dim)) + direction
    if distance is None:
        image = rng.normal(size=(num_images, dim))
    else:
        image = teacher_image + distance * rng.normal(size=(num_images, dim))
    return [x.astype(np.float32) for x in (image, teacher_image, text)]


def _ours(name, features, logit_scale, temperature):
    return _loss(name, *map(torch.tensor, features), logit_scale / temperature)


def _loss(name, image, teacher_image, text, scale):
    return LOSSES[name](LossInputs(Side(image), TeacherSide(teacher_image, text), scale))


def _assert_close(ours, reference):
    assert abs(ours - reference) <= 1e-5 * max(1.0, abs(reference))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("logit_scale", [100.0, 20.0])
@pytest.mark.parametrize("shape", [(16, 16, 64), (16, 80, 64), (48, 5, 768), (1, 1, 8)])
@pytest.mark.parametrize("distance", [None, 1.0, 1e-3, 0.0], ids=["random", "close", "near", "equal"])
def test_every_loss_equals_the_float64_formula(name, logit_scale, shape, distance):
    features = _features(*shape, shared=1.0, distance=distance)
    temperature = TEMPERATURES[name]
    ours = _ours(name, features, logit_scale, temperature)
    assert ours.dtype == torch.float32 and ours.shape == ()
    _assert_close(ours.item(), _reference(name, *features, logit_scale, temperature))


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(LOSSES)),
    num_images=st.integers(1, 12),
    num_texts=st.integers(1, 20),
    dim=st.sampled_from([4, 16, 64, 384]),
    shared=st.sampled_from([0.0, 1.0, 3.0, 10.0]),
    distance=st.sampled_from([0.0, 1e-3, 0.03, 0.3, 1.0, 3.0]),
    logit_scale=st.sampled_from([1.0, 20.0, 100.0]),
    temperature=st.sampled_from([0.5, 1.0, 3.0, 7.0]),
    seed=st.integers(0, 2**32),
)
def test_float32_keeps_the_digits_whatever_the_features_share(
    name, num_images, num_texts, dim, shared, distance, logit_scale, temperature, seed
):
    features = _features(num_images, num_texts, dim, shared=shared, distance=distance, seed=seed)
    ours = _ours(name, features, logit_scale, temperature).item()
    _assert_close(ours, _reference(name, *features, logit_scale, temperature))


@pytest.mark.parametrize("name", LOSSES)
def test_a_large_batch_keeps_the_digits(name):
    features = _features(256, 1024, 768, shared=1.0)
    ours = _ours(name, features, 100.0, TEMPERATURES[name]).item()
    _assert_close(ours, _reference(name, *features, 100.0, TEMPERATURES[name]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_texts", [6, 11])
def test_gradient_for_a_random_student_equals_that_of_the_float64_formula(name, num_texts):
    image, teacher_image, text = _features(6, num_texts, 10)
    leaf = torch.tensor(image, requires_grad=True)
    temperature = TEMPERATURES[name]
    _loss(name, leaf, torch.tensor(teacher_image), torch.tensor(text), 30.0 / temperature).backward()
    reference, step = np.zeros(image.shape), 1e-6
    for place in np.ndindex(*image.shape):
        ahead, behind = image.astype(np.float64), image.astype(np.float64)
        ahead[place] += step
        behind[place] -= step
        change = _reference(name, ahead, teacher_image, text, 30.0, temperature) - _reference(
            name, behind, teacher_image, text, 30.0, temperature
        )
        reference[place] = change / (2 * step)
    assert np.linalg.norm(leaf.grad.numpy() - reference) <= 1e-4 * np.linalg.norm(reference)


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(name):
    _, teacher_image, text = _features(9, 7, 32)
    leaf = torch.tensor(teacher_image, requires_grad=True)
    loss = _loss(name, leaf, torch.tensor(teacher_image), torch.tensor(text), 100.0)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert leaf.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", LOSSES)
def test_norms_of_the_inputs_do_not_matter(name):
    features = _features(8, 12, 32)
    scaled = [x * np.float32(factor) for x, factor in zip(features, (0.01, 7.0, 300.0), strict=True)]
    assert _ours(name, scaled, 100.0, 1.0).item() == pytest.approx(_ours(name, features, 100.0, 1.0).item(), rel=1e-5)


def test_total_is_the_weighted_sum_and_skips_losses_of_weight_zero():
    features = _features(8, 12, 32)
    image, *teacher = map(torch.tensor, features)
    total, parts = total_loss(
        image,
        TeacherSide(*teacher),
        weights={"vl": 0.7, "pvl": 0.3, "udist": 0.0, "feature": 0.0},
        temperatures=TEMPERATURES,
        logit_scale=100.0,
    )
    expected = 0.7 * _reference("vl", *features, 100, 1) + 0.3 * _reference("pvl", *features, 100, 3)
    assert set(parts) == {"vl", "pvl"}
    _assert_close(total.item(), expected)


def test_total_is_computed_in_float32_even_inside_autocast_and_from_half_precision_teacher_features():
    image, teacher_image, text = _features(8, 12, 32)
    teacher_image, text = teacher_image.astype(np.float16), text.astype(np.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = total_loss(
            torch.tensor(image),
            TeacherSide(torch.tensor(teacher_image), torch.tensor(text)),
            weights={"vl": 1.0},
            temperatures=TEMPERATURES,
            logit_scale=100.0,
        )
    assert total.dtype == torch.float32
    _assert_close(total.item(), _reference("vl", image, teacher_image, text, 100, 1))


def test_unknown_loss_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown loss 'pv1'.*did you mean 'pvl'"):
        image, *teacher = map(torch.tensor, _features(2, 2, 4))
        total_loss(image, TeacherSide(*teacher), weights={"pv1": 1.0}, temperatures={}, logit_scale=100.0)
