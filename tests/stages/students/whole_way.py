"""Takes students the whole way, distill, evaluate, export and reload, in a process that may crash.

    python whole_way.py FOLDER SPECIFICATION …

FOLDER holds a `cache` and an evaluation set `data`; runs are made there and removed. A line `SPECIFICATION went the
whole way` is printed for each student, or `SPECIFICATION refused: …` where it cannot be built.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch

from cache_schema.errors import UsageError
from stages.distill.config import DistillConfig
from stages.distill.run import distill
from stages.evaluate.run import EvaluateConfig, evaluate_model
from stages.export.model_folder import load_trained
from stages.images.preprocess import normalise, prepare_pixels
from stages.students import Student, build_student
from tests.corpora.small_corpus import picture


def learnt(folder: Path, specification: str, run: Path) -> None:
    """Distills the student for two steps, and asserts that what it then is is finite and not what it began as."""
    sizes = {"steps": 2, "batch_size": 2, "text_batch_size": 2, "learning_rate": 1e-3}
    running = {"num_threads": 1, "decode_workers": 0}
    distill(DistillConfig(cache=folder / "cache", out=run, student=specification, **sizes, **running))
    trained = load_trained(run)
    before = build_student(specification, trained.description.dim, seed=0)
    pairs = [(old, new) for old, new in zip(before.parameters(), trained.parameters(), strict=True)]
    assert any(not torch.equal(*pair) for pair in pairs), "nothing was learnt"
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["grad_norm"] > 0
    shutil.rmtree(run / "checkpoints")


@torch.no_grad()
def features_of(student: Student) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns pixels_BCHW of two pictures as the student prepares them, and the features that it gives them."""
    images = [picture(number)[0] for number in (200, 201)]
    pixels_BHWC = np.stack([prepare_pixels(image, student.preprocess) for image in images])
    pixels_BCHW = torch.from_numpy(normalise(pixels_BHWC, student.preprocess))
    return pixels_BCHW, student.eval()(pixels_BCHW)


@torch.no_grad()
def require_the_same_in_stock_open_clip(run: Path) -> None:
    """Asserts that open_clip's own factory builds the exported pair, with the same pixels and features."""
    pixels_BCHW, image_BD = features_of(load_trained(run))
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{run / 'model'}")
    theirs_BCHW = torch.stack([prepare(picture(number)[0]) for number in (200, 201)])
    # The factory gives the evaluation transform last; rounding to bytes happens in another order.
    assert torch.allclose(theirs_BCHW, pixels_BCHW, atol=0.05)
    assert torch.equal(model.eval().encode_image(pixels_BCHW), image_BD) and torch.isfinite(image_BD).all()
    assert model.encode_text(torch.ones(1, 77, dtype=torch.int64)).shape == image_BD[:1].shape


def main() -> None:
    """Does it for the specifications of the command line, one after the other."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    run = folder / "run"
    for specification in sys.argv[2:]:
        print(specification, end=" ", flush=True)
        try:
            learnt(folder, specification, run)
        except UsageError as error:
            print(f"refused: {error}", flush=True)
            continue
        asked = EvaluateConfig(model=str(run), data=folder / "data", batch_size=8, decode_workers=0, num_threads=1)
        found = evaluate_model(asked)
        assert 0 <= found["zero_shot_top1"] <= 1 and -1 <= found["mean_cosine"] <= 1 and found["num_images"] > 0
        require_the_same_in_stock_open_clip(run)
        shutil.rmtree(run)
        print("went the whole way", flush=True)


if __name__ == "__main__":
    main()
