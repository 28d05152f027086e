"""Zero-shot measures against ones computed by hand, and agreement of a student with its teacher."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cache_schema.errors import MismatchError, UnfinishedError, UsageError
from stages.distill.run import TrainingStopped, distill
from stages.evaluate.run import EvaluateConfig, evaluate_model
from stages.images.preprocess import normalise, prepare_pixels
from stages.runs.folder import RunFolder
from stages.runs.record import read_record
from stages.students import Student, TowerDescription
from stages.teachers import load_teacher
from stages.teachers.held import read_settings
from stages.teachers.probes import compute_probes, probes_to_bytes
from tests.corpora.extracts import extracted_cache
from tests.corpora.flipping_teacher import flips_at_load
from tests.corpora.held_out import CLASSES, TEMPLATES, write_held_out
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import picture, write_sources
from tests.corpora.stub_teacher import stub
from tests.corpora.tiny_open_clip import make_tiny_open_clip
from tests.corpora.webdataset import write_tar


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """A teacher, its cache, a finished run, and held-out pictures, all in one folder."""
    folder = tmp_path_factory.mktemp("trained")
    make_tiny_open_clip(folder / "teacher")
    teacher = f"open_clip:local-dir:{folder / 'teacher'}"
    sources = write_sources(folder, num_images=32, num_texts=40)
    cache = extracted_cache(folder / "cache", *sources, teacher=teacher)
    distill(
        distill_config(
            cache.path,
            folder / "run",
            steps=30,
            batch_size=16,
            weights={"feature": 5.0},
            learning_rate=2e-3,
            min_crop=0.8,
        )
    )
    write_held_out(folder / "data")
    return folder


def _config(folder, model=None, **changes):
    return EvaluateConfig(model=str(model or folder / "run"), data=folder / "data", decode_workers=0, **changes)


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _by_hand(folder):
    """Features, class vectors and labels of the teacher, with nothing of stages.evaluate.run."""
    teacher = load_teacher(f"open_clip:local-dir:{folder / 'teacher'}")
    pixels, labels = [], []
    for number in [*range(100, 130, 2), *range(101, 130, 2)]:
        image, colour, shape = picture(number)
        pixels.append(prepare_pixels(image, teacher.preprocess))
        labels.append(CLASSES.index(f"{colour} {shape}"))
    image_ND = _unit(teacher.encode_images(normalise(np.stack(pixels), teacher.preprocess)))
    vectors = [
        _unit(_unit(teacher.encode_texts([t.replace("{c}", c) for t in TEMPLATES])).mean(axis=0)) for c in CLASSES
    ]
    return image_ND, np.stack(vectors), np.array(labels)


def test_a_teachers_measures_equal_those_computed_by_hand(trained):
    result = evaluate_model(_config(trained, f"open_clip:local-dir:{trained / 'teacher'}"))
    image_ND, class_KD, labels = _by_hand(trained)
    best = (image_ND @ class_KD.T).argmax(axis=1)
    assert result["num_images"] == 30 and result["num_unreadable"] == 0 and result["num_classes"] == 8
    assert result["zero_shot_top1"] == pytest.approx((best == labels).mean())
    assert result["mean_per_class_recall"] == pytest.approx(
        np.mean([(best[labels == label] == label).mean() for label in range(8)])
    )
    assert result["chance"] == 1 / 8
    assert result["largest_class"] == pytest.approx(np.bincount(labels).max() / 30)
    assert result["teacher"] is None and result["agreement_top1"] is None and result["mean_cosine"] is None


def test_a_run_is_compared_with_the_teacher_it_learnt_from(trained):
    from stages.students import load_image_tower

    result = evaluate_model(_config(trained))
    teacher_ND, class_KD, labels = _by_hand(trained)
    student = load_image_tower(trained / "run")
    import torch

    pictures = [picture(number)[0] for number in [*range(100, 130, 2), *range(101, 130, 2)]]
    pixels = normalise(np.stack([prepare_pixels(image, student.preprocess) for image in pictures]), student.preprocess)
    with torch.inference_mode():
        student_ND = _unit(student(torch.from_numpy(pixels)).numpy())
    ours, theirs = ((features @ class_KD.T).argmax(axis=1) for features in (student_ND, teacher_ND))
    assert result["zero_shot_top1"] == pytest.approx((ours == labels).mean())
    assert result["teacher_top1"] == pytest.approx((theirs == labels).mean())
    assert result["agreement_top1"] == pytest.approx((ours == theirs).mean())
    assert result["mean_cosine"] == pytest.approx((student_ND * teacher_ND).sum(axis=1).mean(), abs=1e-5)
    assert result["mean_cosine"] > 0.3, "it learnt something"


@pytest.mark.parametrize("teacher_first", [True, False])
def test_models_evaluated_together_give_what_they_give_alone_and_share_one_look_of_their_teacher(
    trained, teacher_first
):
    models = [f"open_clip:local-dir:{trained / 'teacher'}", None]
    models = models if teacher_first else models[::-1]
    seen, units = {}, []
    together = [
        evaluate_model(
            _config(trained, model), seen_teachers=seen, progress=lambda done, total, unit, note="": units.append(unit)
        )
        for model in [*models, models[1] if teacher_first else models[0]]
    ]
    alone = [evaluate_model(_config(trained, model)) for model in models]
    assert together == [*alone, alone[1] if teacher_first else alone[0]]
    assert len(seen) == 1
    assert ("pictures by the teacher" in units) != teacher_first


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory):
    """Two runs of a teacher that notes in `calls` what it is asked, its specification, and held-out pictures."""
    folder = tmp_path_factory.mktemp("counted")
    teacher = stub(calls=folder / "calls")
    sources = write_sources(folder, num_images=16, num_texts=20)
    cache = extracted_cache(folder / "cache", *sources, teacher=teacher)
    for name in ("run", "other"):
        distill(distill_config(cache.path, folder / name, steps=1, seed=len(name)))
    write_held_out(folder / "data")
    return folder, teacher


def _num_prompts(calls):
    """Returns how many prompts were encoded: a class is a batch of its templates, probes come 16 at a time."""
    asked = [line.split() for line in calls.read_text().splitlines()]
    return sum(int(rows) for modality, rows in asked if modality == "text" and int(rows) == len(TEMPLATES))


@pytest.mark.parametrize(
    "models", [["run"], ["run", "other"], ["TEACHER", "run", "other"], ["run", "TEACHER"]], ids="-".join
)
def test_the_prompts_go_once_through_a_text_tower_that_students_and_teacher_have_in_common(counted, models):
    folder, teacher = counted
    names = [teacher if name == "TEACHER" else folder / name for name in models]
    alone = [evaluate_model(_config(folder, name)) for name in names]
    (folder / "calls").unlink()
    seen = {}
    assert [evaluate_model(_config(folder, name), seen_teachers=seen) for name in names] == alone
    assert _num_prompts(folder / "calls") == len(CLASSES) * len(TEMPLATES)


def test_a_teacher_with_another_text_tower_has_the_classes_that_it_sees_itself(counted):
    folder, _ = counted
    other = stub(seed=1)
    compared = evaluate_model(_config(folder, teacher=other))
    alone = evaluate_model(_config(folder, other))
    own = evaluate_model(_config(folder))
    assert compared["teacher_top1"] == alone["zero_shot_top1"] != own["teacher_top1"]
    assert compared["zero_shot_top1"] == own["zero_shot_top1"]


def test_a_run_its_exported_folder_and_the_open_clip_pair_give_the_same_measures(trained):
    run = evaluate_model(_config(trained, compare=False))
    exported = evaluate_model(_config(trained, trained / "run" / "model", compare=False))
    pair = evaluate_model(_config(trained, f"open_clip:local-dir:{trained / 'run' / 'model'}", compare=False))
    for other in (exported, pair):
        assert {**other, "model": run["model"]} == run


@pytest.fixture
def stopped(trained, tmp_path):
    """A run of the same as `trained`, stopped after 20 steps."""
    config = distill_config(
        trained / "cache", tmp_path / "run", steps=30, batch_size=16, weights={"feature": 5.0}, learning_rate=2e-3
    )
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=stop_after(20))
    return tmp_path / "run"


def test_a_checkpoint_of_a_stopped_run_has_the_measures_of_the_student_with_its_weights(trained, stopped):
    name = f"{stopped}@20"
    result = evaluate_model(_config(trained, name))
    teacher_ND, class_KD, _ = _by_hand(trained)
    record = read_record(RunFolder(stopped))
    student = Student(TowerDescription.from_json(record.asked["student"], "run.json"), seed=0)
    tensors = load_file(stopped / "checkpoints" / "step-000000020.safetensors")
    student.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
    numbers = [*range(100, 130, 2), *range(101, 130, 2)]
    pixels = np.stack([prepare_pixels(picture(number)[0], student.preprocess) for number in numbers])
    with torch.inference_mode():
        student_ND = _unit(student.eval()(torch.from_numpy(normalise(pixels, student.preprocess))).numpy())
    ours, theirs = ((features @ class_KD.T).argmax(axis=1) for features in (student_ND, teacher_ND))
    assert result["model"] == name and result["num_images"] == 30
    assert result["agreement_top1"] == pytest.approx((ours == theirs).mean())
    assert result["mean_cosine"] == pytest.approx((student_ND * teacher_ND).sum(axis=1).mean(), abs=1e-5)
    assert result["mean_cosine"] != pytest.approx(evaluate_model(_config(trained))["mean_cosine"], abs=1e-3)


def test_the_last_checkpoint_of_a_finished_run_has_the_measures_of_what_it_exported(trained):
    checkpoint = evaluate_model(_config(trained, f"{trained / 'run'}@newest"))
    exported = evaluate_model(_config(trained))
    assert {**checkpoint, "model": exported["model"]} == exported


def test_an_unfinished_run_is_refused_with_the_checkpoint_to_evaluate_instead(trained, stopped):
    with pytest.raises(UnfinishedError, match=rf"has not ended, .*: name {stopped}@20, its newest checkpoint, or run"):
        evaluate_model(_config(trained, stopped))


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_teacher_other_than_that_of_a_checkpoints_run_is_told_by_the_probes_of_the_run(trained, stopped, modality):
    other = load_teacher(stub(seed=1))
    probes = probes_to_bytes(compute_probes(other, modality))
    (stopped / "probes" / f"{modality}.npz").write_bytes(probes)
    said: list[str] = []
    if modality == "text":
        with pytest.raises(MismatchError, match=r"probe text .*than .*probes/text\.npz"):
            evaluate_model(_config(trained, f"{stopped}@20"))
    else:
        result = evaluate_model(_config(trained, f"{stopped}@20"), notice=said.append)
        assert result["teacher"] is None and "probe image" in said[0]


def test_a_named_teacher_is_compared_with(trained):
    teacher = f"open_clip:local-dir:{trained / 'teacher'}"
    result = evaluate_model(_config(trained, teacher, teacher=teacher))
    assert result["agreement_top1"] == 1.0 and result["mean_cosine"] == pytest.approx(1.0, abs=1e-5)


def test_unreadable_pictures_are_counted_and_named_and_not_taken_for_wrong_answers(trained, tmp_path):
    write_held_out(tmp_path / "data", damaged=(104, 117))
    said = []
    result = evaluate_model(replace(_config(trained, compare=False), data=tmp_path / "data"), notice=said.append)
    assert result["num_images"] == 28 and result["num_unreadable"] == 2
    assert result["unreadable"] == ["0/00104", "1/00117"]
    assert any("2 pictures" in sentence and "0/00104 (img-unknown-format" in sentence for sentence in said)


def test_what_was_skipped_of_a_set_and_classes_without_a_name_are_said(trained, tmp_path):
    data = write_held_out(tmp_path / "data")
    write_tar(data / "test" / "1.tar", [])
    write_tar(data / "test" / "99.tar", [])
    (data / "classnames.txt").write_text("\n".join(["", *CLASSES[1:]]))
    said: list[str] = []
    evaluate_model(replace(_config(trained, compare=False), data=data), notice=said.append)
    assert [sentence.split(" of ")[0] for sentence in said] == [
        "1.tar",
        f"99.tar in {data / 'test'} are not read: nshards.txt tells fewer tars",
        "labels 0",
    ]


def test_a_teacher_that_does_not_reproduce_the_probes_of_the_run_is_refused(tmp_path):
    sources = write_sources(tmp_path, num_images=16, num_texts=20)
    cache = extracted_cache(tmp_path / "cache", *sources)
    distill(distill_config(cache.path, tmp_path / "run", steps=1))
    write_held_out(tmp_path / "data", numbers=range(100, 104))
    assert evaluate_model(_config(tmp_path))["agreement_top1"] is not None
    from stages.students import load_image_tower, save_image_tower

    other = {"specification": stub(seed=1)}
    save_image_tower(
        load_image_tower(tmp_path / "run"), tmp_path / "run" / "model", about={"run": "", "teacher": other}
    )
    with pytest.raises(MismatchError, match="does not reproduce probe text"):
        evaluate_model(_config(tmp_path))


def test_what_is_no_model_is_a_usage_error(trained, tmp_path):
    with pytest.raises(UsageError, match="is neither a folder nor a teacher"):
        evaluate_model(_config(trained, "clip"))
    with pytest.raises(UsageError, match="holds no trained student"):
        evaluate_model(_config(trained, tmp_path))
    with pytest.raises(UsageError, match="switched off"):
        _config(trained, teacher="open_clip:x", compare=False)


def test_progress_counts_pictures(trained):
    calls = []
    evaluate_model(_config(trained, compare=False, batch_size=8), progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(8, 30), (16, 30), (24, 30), (30, 30)]


def test_pictures_may_be_of_any_size_and_mode(trained, tmp_path):
    (tmp_path / "data" / "test").mkdir(parents=True)
    members = []
    for number, (mode, size) in enumerate([("L", (7, 90)), ("RGBA", (200, 20)), ("P", (32, 32))]):
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, "PNG")
        members += [(f"{number}.png", buffer.getvalue()), (f"{number}.cls", b"0")]
    write_tar(tmp_path / "data" / "test" / "0.tar", members)
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        (tmp_path / "data" / name).write_text((trained / "data" / name).read_text())
    result = evaluate_model(replace(_config(trained, compare=False), data=tmp_path / "data"))
    assert result["num_images"] == 3


def test_a_teacher_to_compare_with_changes_nothing_for_the_models_that_follow(trained):
    before = read_settings()
    alone = evaluate_model(_config(trained))
    compared = evaluate_model(_config(trained, teacher=flips_at_load("autocast")))
    assert read_settings() == before
    assert compared["teacher"] == flips_at_load("autocast")
    assert evaluate_model(_config(trained)) == alone
