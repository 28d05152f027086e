"""The micro batch follows the memory that is there."""

import pytest
import torch

from stages.distill import micro_batch
from stages.distill.micro_batch import free_memory_bytes, micro_batch_that_fits
from stages.students import Student, build_student

CPU = torch.device("cpu")


@pytest.fixture
def student() -> Student:
    return build_student("timm:test_efficientnet?image_size=64", 16, seed=0).train()


def fitting(student: Student, free: int, monkeypatch: pytest.MonkeyPatch, batch_size: int = 1000) -> int:
    monkeypatch.setattr(micro_batch, "free_memory_bytes", lambda device: free)
    return micro_batch_that_fits(student, batch_size, 100, device=CPU, precision="float32")


def test_more_memory_takes_more_images_up_to_the_whole_batch_and_the_least_is_one(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [fitting(student, free, monkeypatch) for free in (0, 150 << 20, 300 << 20, 1 << 40)]
    assert sizes[0] == 1 and sizes[-1] == 1000
    assert 1 < sizes[1] < sizes[2] < 1000
    assert all(-(-1000 // -(-1000 // size)) == size for size in sizes), "passes of nearly equal size"


def test_a_student_of_larger_pictures_takes_fewer_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (build_student(f"timm:test_efficientnet?image_size={size}", 16, seed=0) for size in (32, 128))
    assert fitting(small.train(), 300 << 20, monkeypatch, 1000) > 8 * fitting(
        large.train(), 300 << 20, monkeypatch, 1000
    )


def test_measuring_leaves_student_and_random_state_as_they_were(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    random = torch.get_rng_state()
    fitting(student, 1 << 30, monkeypatch)
    assert torch.equal(torch.get_rng_state(), random) and student.training
    assert all(parameter.grad is None for parameter in student.parameters())
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.slow
def test_what_is_said_to_fit_is_near_what_a_pass_takes() -> None:
    import resource

    student = build_student("timm:resnet18?image_size=128", 64, seed=0).train()
    told = micro_batch._bytes_of_pass(student, 64, CPU, "float32")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    student(torch.zeros(64, 3, 128, 128)).sum().backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown <= 1.3 * told


def test_free_memory_is_what_the_machine_has_at_most() -> None:
    with open("/proc/meminfo") as lines:
        total = int(lines.readline().split()[1]) << 10
    assert 0 < free_memory_bytes(CPU) <= total


@pytest.mark.parametrize(("limit", "used", "left"), [("max", "5", None), ("1000", "400", 630), ("1000", "2000", 0)])
def test_the_limit_of_a_container_counts_less_what_it_uses_but_for_cached_files(
    tmp_path, limit: str, used: str, left: int | None
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 30\n")
    assert list(micro_batch._left_in_cgroup(tmp_path)) == ([] if left is None else [left])
