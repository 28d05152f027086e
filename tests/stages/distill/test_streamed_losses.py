"""Losses by tiles against float64 formulas written here, at sizes that no tile divides, and where they are used."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, normalize

from stages.distill import losses, streamed_losses
from stages.distill.losses import LOSSES, LossInputs, Side, TeacherSide, total_loss

STREAMED = ("vl", "pvl", "udist")
Features = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_losses, "TILE_ROWS", 16)
    monkeypatch.setattr(streamed_losses, "TILE_COLUMNS", 24)
    monkeypatch.setattr(losses, "STREAMED_ABOVE", 0)


def features(num_images: int, num_texts: int, dim: int, *, distance: float | None = None) -> Features:
    """Student images, not of unit norm, teacher images and sentences around a common direction."""
    draw = torch.Generator().manual_seed(0)
    shared = 1.5 * torch.randn(1, dim, generator=draw)
    teacher, text = (torch.randn(rows, dim, generator=draw) + shared for rows in (num_images, num_texts))
    noise = torch.randn(num_images, dim, generator=draw)
    return 3 * (noise + shared if distance is None else teacher + distance * noise), teacher, text


def by_formula(name: str, given: Features, scale: float) -> tuple[Tensor, Tensor]:
    """Value and gradient in float64, of the formulas of the publication's code."""
    student = given[0].double().requires_grad_()
    z, u, v = (normalize(side.double(), dim=1) for side in (student, *given[1:]))

    def divergence(left: Tensor, right: Tensor, of_left: Tensor, of_right: Tensor) -> Tensor:
        log_p, log_q = (log_softmax(scale * a @ b.T, dim=1) for a, b in ((left, right), (of_left, of_right)))
        return kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    value = {
        "vl": lambda: divergence(u, v, z, v) + divergence(v, u, v, z),
        "pvl": lambda: 2 * divergence(u, u, z, u),
        "udist": lambda: 2 * divergence(u, u, z, z),
    }[name]()
    value.backward()
    assert student.grad is not None
    return value.detach(), student.grad


def ours(name: str, given: Features, scale: float, *, times: float = 1.0) -> tuple[Tensor, Tensor]:
    student = given[0].clone().requires_grad_()
    value = LOSSES[name](LossInputs(Side(student), TeacherSide(*given[1:]), scale))
    (times * value).backward()
    assert student.grad is not None
    return value.detach(), student.grad


def require_equal(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], value: float, gradient: float) -> None:
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=value)
    assert (found[1].double() - wanted[1]).norm() <= gradient * wanted[1].norm()


@pytest.mark.parametrize("scale", [100.0, 20.0])
@pytest.mark.parametrize("num_texts", [70, 41])
@pytest.mark.parametrize("name", STREAMED)
def test_value_and_gradient_are_those_of_the_formula(
    small_tiles: None, name: str, num_texts: int, scale: float
) -> None:
    given = features(53, num_texts, 24)
    # Between random images of a scale of 100 each is all but alone in its own softmax: a value of 1e-5.
    tolerance = (1e-6, 2e-6) if (name, scale) != ("udist", 100.0) else (1e-2, 3e-2)
    require_equal(ours(name, given, scale), by_formula(name, given, scale), *tolerance)


@pytest.mark.parametrize("name", STREAMED)
def test_a_student_close_to_its_teacher_has_as_many_digits_as_with_the_plain_loss(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given = features(53, 70, 24, distance=0.01)
    wanted = by_formula(name, given, 20.0)
    streamed = ours(name, given, 20.0)
    monkeypatch.setattr(losses, "STREAMED_ABOVE", 1 << 60)
    plain = ours(name, given, 20.0)
    for place in (0, 1):
        error, error_of_plain = ((found[place] - wanted[place]).norm() for found in (streamed, plain))
        assert error <= 3 * error_of_plain + 1e-7 * wanted[place].norm()


@pytest.mark.parametrize("name", STREAMED)
def test_the_gradient_is_that_of_the_weighted_loss(small_tiles: None, name: str) -> None:
    given = features(20, 30, 8)
    assert torch.allclose(ours(name, given, 10.0, times=-2.5)[1], -2.5 * ours(name, given, 10.0)[1], rtol=1e-6)


@pytest.mark.parametrize("name", STREAMED)
def test_without_a_gradient_the_value_is_the_same(small_tiles: None, name: str) -> None:
    given = features(20, 30, 8)
    with torch.no_grad():
        value = LOSSES[name](LossInputs(Side(given[0]), TeacherSide(*given[1:]), 10.0))
    assert torch.equal(value, ours(name, given, 10.0)[0]) and not value.requires_grad


@pytest.mark.parametrize(("name", "num_scores"), [("vl", 20 * 30), ("pvl", 20 * 20), ("udist", 20 * 20)])
def test_the_number_of_scores_alone_decides_and_all_students_share_what_the_teacher_says(
    monkeypatch: pytest.MonkeyPatch, name: str, num_scores: int
) -> None:
    student, *others = features(20, 30, 8)
    passes = []
    normalisers = streamed_losses.Scores.normalisers

    def counted(scores: streamed_losses.Scores, *, columns: bool) -> streamed_losses.Normalisers:
        passes.append(columns)
        return normalisers(scores, columns=columns)

    monkeypatch.setattr(streamed_losses.Scores, "normalisers", counted)
    weights = {name: 0.5}

    def total(teacher: TeacherSide) -> Tensor:
        asked = {"weights": weights, "temperatures": {name: 2.0}, "logit_scale": 20.0}
        return total_loss(student, teacher, **asked)[0]

    monkeypatch.setattr(losses, "STREAMED_ABOVE", num_scores)
    plain = total(TeacherSide(*others))
    assert passes == []
    monkeypatch.setattr(losses, "STREAMED_ABOVE", num_scores - 1)
    teacher = TeacherSide(*others)
    assert torch.allclose(total(teacher), plain, rtol=1e-6) and torch.equal(total(teacher), total(teacher))
    # The teacher's once, each student's own.
    assert passes == [name == "vl"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMED)
def test_4096_by_4096_scores_of_width_768_agree_with_float64(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(losses, "STREAMED_ABOVE", 0)
    given = features(4096, 4096, 768, distance=0.5)
    scale = 100.0 if name == "vl" else 20.0
    require_equal(ours(name, given, scale), by_formula(name, given, scale), 1e-6, 1e-5)


def test_a_gradient_that_was_given_away_is_not_given_again_scaled_twice(small_tiles: None) -> None:
    student, *others = features(20, 30, 8)
    student.requires_grad_()
    value = LOSSES["pvl"](LossInputs(Side(student), TeacherSide(*others), 10.0))
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it anew"):
        value.backward()


def test_the_memory_of_large_losses_does_not_grow_with_the_square_of_the_batch() -> None:
    small = losses.bytes_of_scores(4_096, 4_096, 768)
    assert small == 2 * 8 * 4 * 4_096**2
    # What the documents promise beside the features: the gradient of each matrix of scores, and tiles.
    large = losses.bytes_of_scores(131_072, 131_072, 768)
    assert 2 * 131_072 * 768 * 4 <= large <= 1.5e9
