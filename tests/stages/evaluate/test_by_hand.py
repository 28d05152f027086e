"""Class vectors, templates, labels and metric, each against plain NumPy on a set where ignoring it gives other numbers.

Shape letters: N pictures, K classes, D width of a feature.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.evaluate.config import EvaluateConfig
from stages.evaluate.run import evaluate_model
from stages.teachers import load_teacher
from stages.teachers.class_vectors import class_vectors
from tests.corpora.pictures import encoded, noise
from tests.corpora.stub_teacher import make
from tests.corpora.webdataset import write_tar

TEACHER = "python:tests.corpora.stub_teacher:make?dim=16"
CLASSES = ["heron", "lynx", "otter", "wren"]
TEMPLATES = ["a photo of a {c}.", "the {c} here", "{c}"]
PICTURES = [noise(32, 32, seed) for seed in range(40)]


def unit(rows: NDArray) -> NDArray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def images_by_hand() -> NDArray:
    """Returns image_ND: pictures of the teacher's own size are neither resized nor cropped."""
    pixels = np.stack([np.asarray(picture) for picture in PICTURES]).transpose(0, 3, 1, 2)
    return unit(make().encode_images(((pixels / 255 - 0.5) / 0.25).astype(np.float32)))


def classes_by_hand(templates: list[str]) -> NDArray:
    """Returns class_KD: the unit mean of the unit features of all filled templates."""
    return np.stack(
        [
            unit(
                np.mean(
                    [unit(make().encode_texts([template.replace("{c}", name)])[0]) for template in templates], axis=0
                )
            )
            for name in CLASSES
        ]
    )


def answers_by_hand(templates: list[str]) -> list[int]:
    scores_NK = images_by_hand() @ classes_by_hand(templates).T
    return [max(range(len(CLASSES)), key=row.__getitem__) for row in scores_NK]


def top1_by_hand(answers: list[int], labels: list[int]) -> float:
    return sum(answer == label for answer, label in zip(answers, labels, strict=True)) / len(labels)


def mean_recall_by_hand(answers: list[int], labels: list[int]) -> float:
    recalls = []
    for kind in sorted(set(labels)):
        of_kind = [answer == kind for answer, label in zip(answers, labels, strict=True) if label == kind]
        recalls.append(sum(of_kind) / len(of_kind))
    return sum(recalls) / len(recalls)


@pytest.fixture
def labels() -> list[int]:
    """Two of three pictures are what all templates together take them for; the others belong to the last class."""
    return [answer if place % 3 else len(CLASSES) - 1 for place, answer in enumerate(answers_by_hand(TEMPLATES))]


def measures(folder: Path, labels: list[int], templates: list[str]) -> tuple[float, float]:
    """Returns top-1 and mean recall per class, as `evaluate` gives them for the set that it writes into `folder`."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    members = []
    for number, (picture, label) in enumerate(zip(PICTURES, labels, strict=True)):
        members += [(f"{number:03d}.png", encoded(picture, "PNG")), (f"{number:03d}.cls", str(label).encode())]
    write_tar(folder / "test" / "0.tar", members)
    result = evaluate_model(EvaluateConfig(model=TEACHER, data=folder, batch_size=7, decode_workers=0))
    return result["zero_shot_top1"], result["mean_per_class_recall"]


def test_a_class_vector_is_the_unit_mean_of_the_unit_features_of_its_prompts() -> None:
    prompts = [[template.replace("{c}", name) for template in TEMPLATES] for name in CLASSES]
    found = class_vectors(load_teacher(TEACHER), prompts, batch_size=2)
    assert np.allclose(found, classes_by_hand(TEMPLATES), atol=1e-6)
    lengths = np.linalg.norm(make().encode_texts(prompts[0]), axis=1)
    assert lengths.max() > 1.1 * lengths.min(), "the mean of features of other lengths would be another vector"


def test_both_measures_are_those_of_numpy_and_differ_where_classes_are_not_equally_many(
    tmp_path: Path, labels: list[int]
) -> None:
    answers = answers_by_hand(TEMPLATES)
    expected = top1_by_hand(answers, labels), mean_recall_by_hand(answers, labels)
    assert abs(expected[0] - expected[1]) > 0.05 and len(set(answers)) > 2
    assert measures(tmp_path, labels, TEMPLATES) == pytest.approx(expected)


def test_other_templates_give_other_measures(tmp_path: Path, labels: list[int]) -> None:
    answers = answers_by_hand(TEMPLATES[:1])
    expected = top1_by_hand(answers, labels), mean_recall_by_hand(answers, labels)
    assert top1_by_hand(answers_by_hand(TEMPLATES), labels) - expected[0] > 0.1
    assert measures(tmp_path, labels, TEMPLATES[:1]) == pytest.approx(expected)


def test_other_labels_give_other_measures(tmp_path: Path, labels: list[int]) -> None:
    moved = labels[1:] + labels[:1]
    answers = answers_by_hand(TEMPLATES)
    expected = top1_by_hand(answers, moved), mean_recall_by_hand(answers, moved)
    assert top1_by_hand(answers, labels) - expected[0] > 0.1
    assert measures(tmp_path, moved, TEMPLATES) == pytest.approx(expected)
