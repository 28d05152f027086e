"""An encoder is a student in evaluation mode, from NumPy to NumPy, in float32."""

import numpy as np
import pytest
import torch

from stages.students import Student, build_student
from stages.students.encoder import StudentEncoder


@pytest.fixture
def student() -> Student:
    return build_student("timm:test_resnet?image_size=32&drop=0.5", 6, seed=0)


def pixels_of(num_pictures: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((num_pictures, 3, 32, 32)).astype(np.float32)


def test_features_are_those_of_the_tower_in_evaluation_mode_and_the_same_every_time(student: Student) -> None:
    encoder = StudentEncoder(student.train())
    found = [encoder.encode_images(pixels_of(4)) for _ in range(2)]
    with torch.no_grad():
        wanted = student.tower.eval()(torch.from_numpy(pixels_of(4))).numpy()
    assert all((features == wanted).all() for features in found)
    assert found[0].dtype == np.float32 and found[0].shape == (4, 6)
    assert not np.allclose(np.linalg.norm(found[0], axis=1), 1, atol=0.05)


def test_encoding_changes_nothing_of_the_student(student: Student) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    StudentEncoder(student).encode_images(pixels_of(3))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_one_picture_and_none_are_batches_too(student: Student) -> None:
    encoder = StudentEncoder(student)
    both = encoder.encode_images(pixels_of(2))
    np.testing.assert_allclose(encoder.encode_images(pixels_of(2)[:1]), both[:1], rtol=1e-4, atol=1e-5)
    assert encoder.encode_images(pixels_of(0)).shape == (0, 6)


def test_a_student_of_another_precision_still_gives_float32(student: Student) -> None:
    encoder = StudentEncoder(student.double())
    assert encoder.encode_images(pixels_of(2).astype(np.float64)).dtype == np.float32


def test_it_shows_the_specification_and_the_preprocessing_of_its_student(student: Student) -> None:
    encoder = StudentEncoder(student, device=torch.device("cpu"))
    assert encoder.specification == "timm:test_resnet?image_size=32&drop=0.5"
    assert encoder.preprocess is student.preprocess and encoder.preprocess.size == (32, 32)
