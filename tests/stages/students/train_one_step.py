"""Trains every student that it is given for one step, in a process that may crash, and prints what became of it.

    python train_one_step.py SPECIFICATION …

prints a line `SPECIFICATION trained`, or `SPECIFICATION refused: …` where it cannot be built.
"""

import sys
import tempfile
from pathlib import Path

import torch

from cache_schema.errors import UsageError
from stages.distill.gradient_cache import backward_of_batch, passes_of
from stages.distill.optimizer import make_optimizer
from stages.students import Student, build_student, load_image_tower, save_image_tower

DIM = 8


def train_one_step(student: Student) -> None:
    """Takes one step of AdamW towards some features, and asserts that loss, gradients and weights are finite."""
    student.train().to(memory_format=student.memory_format)
    draw = torch.Generator().manual_seed(0)
    pixels_BHWC = torch.randint(0, 256, (4, *student.preprocess.size, 3), generator=draw, dtype=torch.uint8)
    wanted_BD = torch.nn.functional.normalize(torch.randn(4, DIM, generator=draw), dim=1)
    optimizer = make_optimizer(student, weight_decay=0.05)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    losses: list[torch.Tensor] = []

    def loss_of_features(image_BD: torch.Tensor) -> torch.Tensor:
        losses.append((1 - torch.nn.functional.cosine_similarity(image_BD, wanted_BD)).mean())
        return losses[-1]

    passes = passes_of(4, 4, None if student.rows_are_independent else 4)
    backward_of_batch(student, pixels_BHWC, loss_of_features, passes=passes, randomness=(0, 0), precision="float32")
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert torch.isfinite(losses[0]) and gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    optimizer.step()
    after = list(student.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True)), "nothing was learnt"


@torch.no_grad()
def require_the_same_features_when_loaded_again(student: Student) -> None:
    """Saves the student, loads it, and asserts that both give the same finite features."""
    student.eval().to(memory_format=torch.contiguous_format)
    pixels_BCHW = torch.randn(2, 3, *student.preprocess.size, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        save_image_tower(student, Path(folder), about={})
        image_BD, again_BD = student(pixels_BCHW), load_image_tower(folder)(pixels_BCHW)
    assert torch.isfinite(image_BD).all() and torch.equal(image_BD, again_BD)


def main() -> None:
    """Does it for the specifications of the command line, one after the other."""
    torch.set_num_threads(1)
    for specification in sys.argv[1:]:
        print(specification, end=" ", flush=True)
        try:
            student = build_student(specification, DIM, seed=0)
        except UsageError as error:
            print(f"refused: {error}", flush=True)
            continue
        train_one_step(student)
        require_the_same_features_when_loaded_again(student)
        print("trained", flush=True)


if __name__ == "__main__":
    main()
