"""Trains, evaluates, exports and reloads every student that it is given, in a process that may crash.

    python become_students.py FOLDER SPECIFICATION …

prints a line `SPECIFICATION became a student`, or `SPECIFICATION refused: …` where it cannot be built. FOLDER holds
`cache`, `data` and the `teacher` that made them; all processes share it.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import torch

from cache_schema.errors import UsageError
from stages.distill.run import distill
from stages.evaluate.run import EvaluateConfig, SeenTeachers, evaluate_model
from stages.images.preprocess import normalise, prepare_pixels
from stages.students import Student, build_student, load_image_tower
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import picture
from tests.corpora.tiny_open_clip import tiny_config
from tests.stages.students.shrunk import register_shrunk

DIM = tiny_config()["model_cfg"]["embed_dim"]
STEPS = 2
NUM_ROWS = 4


def distilled(folder: Path, run: Path, specification: str) -> Student:
    """Distils the student for two steps and returns it; most of what no decay moves, its gradients have moved."""
    result = distill(
        distill_config(
            folder / "cache",
            run,
            student=specification,
            steps=STEPS,
            batch_size=NUM_ROWS,
            text_batch_size=NUM_ROWS,
            micro_batch_size=NUM_ROWS,
            decode_workers=0,
        )
    )
    assert (result["steps"], result["images_seen"], result["has_text_tower"]) == (STEPS, STEPS * NUM_ROWS, True)
    student = load_image_tower(run)
    random = build_student(specification, DIM, seed=0, quick_gelu=True)
    before, after = random.state_dict(), student.state_dict()
    moved = [not torch.equal(before[name], after[name]) for name in random.no_weight_decay()]
    assert sum(moved) > len(moved) / 2, f"{sum(moved)} of {len(moved)} tensors moved"
    return student


def require_evaluated(folder: Path, run: Path, seen: SeenTeachers) -> None:
    """Evaluates the run, and asserts that every picture counted and was compared with the teacher's."""
    result = evaluate_model(
        EvaluateConfig(model=str(run), data=folder / "data", decode_workers=0, num_threads=1), seen_teachers=seen
    )
    assert (result["num_images"], result["num_unreadable"], result["num_classes"]) == (NUM_ROWS, 0, 8)
    assert -1 <= result["mean_cosine"] <= 1 and 0 <= result["zero_shot_top1"] <= 1


@torch.inference_mode()
def require_the_same_features_in_stock_open_clip(run: Path, student: Student) -> None:
    """Loads the exported folder as its users do, and asserts that it sees pictures as the run's student does."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{run / 'model'}")
    pictures = [picture(number)[0] for number in range(2)]
    theirs_BCHW = torch.stack([preprocess(one) for one in pictures])
    prepared = np.stack([prepare_pixels(one, student.preprocess) for one in pictures])
    ours_BCHW = torch.from_numpy(normalise(prepared, student.preprocess))
    torch.testing.assert_close(ours_BCHW, theirs_BCHW, rtol=0, atol=2 / 255 / min(student.preprocess.std))
    image_BD, again_BD = student(theirs_BCHW), model.eval().encode_image(theirs_BCHW)
    assert torch.isfinite(image_BD).all(), "features are not finite"
    assert not torch.equal(image_BD[0], image_BD[1]), "two pictures have one feature"
    # Where tensors lie in memory decides the last bits of some sums.
    torch.testing.assert_close(again_BD, image_BD, rtol=1e-4, atol=1e-5)


def main() -> None:
    """Does it for the specifications of the command line, one after the other."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    seen: SeenTeachers = {}
    with tempfile.TemporaryDirectory() as configurations:
        register_shrunk(Path(configurations))
    for specification in sys.argv[2:]:
        print(specification, end=" ", flush=True)
        with tempfile.TemporaryDirectory() as made:
            run = Path(made) / "run"
            try:
                student = distilled(folder, run, specification)
            except UsageError as error:
                print(f"refused: {error}", flush=True)
                continue
            require_evaluated(folder, run, seen)
            require_the_same_features_in_stock_open_clip(run, student)
        print("became a student", flush=True)


if __name__ == "__main__":
    main()
