"""Accumulation that caches features gives the gradient of the whole batch, not the sum of small ones."""

import numpy as np
import pytest
import torch

from stages.distill.gradient_cache import backward_of_batch, passes_of, to_input
from stages.distill.losses import TeacherSide, total_loss
from stages.images.preprocess import Preprocess, normalise
from stages.students import build_student

WEIGHTS = {"vl": 0.5, "pvl": 0.3, "udist": 0.2}
TEMPERATURES = {"vl": 1.0, "pvl": 3.0, "udist": 7.0}
VIT = "timm:vit_tiny_patch16_224?drop={drop}&drop_path={drop}"


def _student(specification, **settings):
    student = build_student(specification.format(**settings), 12, seed=0).train()
    if "vit_tiny" in specification:
        student.tower.trunk.blocks = student.tower.trunk.blocks[:2]
    return student


def _gradients(student, micro_batch_size, *, group_size=None, num_images=7, step=3):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (num_images, *student.preprocess.size, 3), np.uint8))
    teacher = torch.from_numpy(rng.standard_normal((num_images, 12)).astype(np.float32))
    texts = torch.from_numpy(rng.standard_normal((11, 12)).astype(np.float32))

    def loss(image_BD):
        sides = TeacherSide(teacher, texts)
        return total_loss(image_BD, sides, weights=WEIGHTS, temperatures=TEMPERATURES, logit_scale=20.0)[0]

    student.zero_grad()
    passes = passes_of(num_images, micro_batch_size or num_images, group_size)
    features = backward_of_batch(student, pixels, loss, passes=passes, randomness=(5, step), precision="float32")
    return features, torch.cat([p.grad.flatten() for p in student.parameters()])


@pytest.mark.parametrize("micro_batch_size", [1, 3, 6])
def test_two_pass_gradient_equals_the_one_pass_gradient(micro_batch_size):
    student = _student(VIT, drop=0)
    whole_features, whole = _gradients(student, None)
    features, gradient = _gradients(student, micro_batch_size)
    assert torch.allclose(features, whole_features, atol=1e-5)
    assert (gradient - whole).norm() <= 1e-4 * whole.norm()


def test_the_sum_of_small_batches_would_be_another_gradient():
    # Guards the test above: a loss that does not couple images would pass it trivially.
    student = _student(VIT, drop=0)
    _, whole = _gradients(student, None, num_images=6)
    _, half = _gradients(student, None, num_images=3)
    assert (half - whole).norm() > 1e-2 * whole.norm()


def test_dropout_draws_the_same_in_both_passes_and_anew_in_every_step():
    student = _student(VIT, drop=0.3)
    passes = []
    student.register_forward_hook(lambda module, inputs, output: passes.append(output.detach().clone()))
    features, gradient = _gradients(student, 3, group_size=3)
    assert len(passes) == 6 and all(torch.equal(passes[i], passes[i + 3]) for i in range(3))
    assert torch.equal(gradient, _gradients(student, 3, group_size=3)[1])
    assert not torch.equal(features, _gradients(student, 3, group_size=3, step=4)[0])


@pytest.mark.parametrize("specification", ["timm:resnet10t?image_size=32&drop=0.2", VIT.format(drop=0.3)])
def test_micro_batches_do_not_change_what_groups_share(specification):
    whole, alone = (_gradients(_student(specification), size, group_size=2, num_images=8) for size in (8, 2))
    assert torch.allclose(whole[0], alone[0], atol=1e-5)
    assert (whole[1] - alone[1]).norm() <= 1e-4 * whole[1].norm()
    other = _gradients(_student(specification), 8, group_size=4, num_images=8)
    assert not torch.allclose(other[0], whole[0], atol=1e-3), "other groups, other statistics and draws"


@pytest.mark.parametrize(("micro_batch_size", "group_size", "moves"), [(8, None, 1), (8, 8, 1), (8, 4, 2), (4, 4, 2)])
def test_running_statistics_move_once_per_step_and_group(micro_batch_size, group_size, moves):
    student = _student("timm:resnet10t?image_size=32")
    _gradients(student, micro_batch_size, group_size=group_size, num_images=8)
    assert student.tower.trunk.bn1.num_batches_tracked.item() == moves, "the first of two passes leaves no trace"


@pytest.mark.parametrize("group_size", [None, 2, 3, 5, 64])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 64, 65, 129])
def test_passes_hold_every_row_once_in_groups_of_nearly_one_size_and_none_of_one_row(
    num_rows, micro_batch_size, group_size
):
    passes = passes_of(num_rows, micro_batch_size, group_size)
    rows = [list(range(group.start, group.stop)) for of_pass in passes for group in of_pass]
    assert [row for some in rows for row in some] == list(range(num_rows))
    sizes = [len(some) for some in rows]
    assert max(sizes) - min(sizes) <= 1
    if group_size is None:
        assert all(len(of_pass) == 1 for of_pass in passes) and max(sizes) <= micro_batch_size
    else:
        assert min(sizes) >= min(2, num_rows)
        assert max(sizes) <= group_size or (group_size % 2 and num_rows < 2 * max(sizes)) or group_size < 3
        of_passes = [sum(group.stop - group.start for group in of_pass) for of_pass in passes]
        assert max(of_passes) <= max(micro_batch_size, max(sizes))


def test_groups_do_not_depend_on_the_micro_batch():
    groups = {
        tuple((group.start, group.stop) for of_pass in passes_of(130, micro, 64) for group in of_pass)
        for micro in (1, 44, 88, 130)
    }
    assert len(groups) == 1


def test_training_normalises_pixels_as_evaluation_does():
    preprocess = Preprocess(size=(9, 7), mean=(0.48, 0.45, 0.40), std=(0.26, 0.27, 0.28))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), np.uint8)
    assert np.array_equal(to_input(torch.from_numpy(pixels), preprocess).numpy(), normalise(pixels, preprocess))


def test_a_student_whose_convolutions_need_plain_strides_gets_its_pixels_so():
    for specification, layout in (
        ("timm:fastvit_t8?image_size=64", torch.contiguous_format),
        ("timm:resnet10t?image_size=32", torch.channels_last),
    ):
        student = _student(specification)
        seen = []
        student.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        _gradients(student, 2, num_images=4)
        assert len(seen) == 4 and all(pixels.is_contiguous(memory_format=layout) for pixels in seen)
