"""Corpora on which every setting of `distill` shows in the weights, and a configuration in which nothing is a default.

Pictures differ in size and in every pixel, so that a crop, a flip or a row that is taken for another is another
gradient; one of them and one sentence cannot be used, so that a row is not the number of its sample.
"""

from pathlib import Path

import numpy as np

from cache_schema.binding import Binding
from cache_schema.cache import Cache
from cache_schema.neighbours import NeighboursRecipe, NeighboursWriter
from cache_schema.selections import Selection, write_selection
from stages.distill.config import DistillConfig
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from tests.corpora.by_hand import scored
from tests.corpora.pictures import encoded, noise

ARRAY = "tests-corpora-stub-teacher-make"
TEACHER = "python:tests.corpora.stub_teacher:make?dim=16&logit_scale=35"
PART_ROWS = 8
VIEW_SEED = 5


def write_sources(folder: Path) -> Path:
    """Writes thirty pictures, the twelfth of them empty, and fifty sentences after an empty one; returns `folder`."""
    (folder / "pictures").mkdir(parents=True)
    for number in range(30):
        payload = encoded(noise(33 + number, 62 - number, number), "PNG")
        (folder / "pictures" / f"{number:02d}.png").write_bytes(b"" if number == 11 else payload)
    (folder / "sentences.txt").write_text("\n" + "".join(f"sentence {number}\n" for number in range(50)))
    return folder


def extract(folder: Path, name: str, *, teacher: str = TEACHER, pictures: str = "pictures", **changes: object) -> Path:
    """Fills the cache `name` in `folder` from its sources and returns its path."""
    config = ExtractConfig(
        cache=folder / name,
        images=(str(folder / pictures),),
        texts=(str(folder / "sentences.txt"),),
        teacher=teacher,
        part_rows=PART_ROWS,
        view_seed=VIEW_SEED,
        decode_workers=0,
        num_threads=1,
        index=False,
        **changes,  # type: ignore[arg-type]
    )
    with open_job(config) as job:
        with job.make_worker() as worker:
            for task in job.tasks:
                worker(task)
        job.finish()
    return config.cache


def mine_by_hand(path: Path) -> None:
    """Adds neighbours `by-hand`: those of image row i are sentence rows i+2, i and 2i, but 1 for 0 (unusable)."""
    cache = Cache.open(path)
    arrays = cache.array("image", f"{ARRAY}.v0"), cache.array("text")
    ends = map(Binding.of, arrays)
    rows = np.arange(cache.plan("image").row_end)
    ids, scores = scored(*arrays, np.clip(np.stack([rows + 2, rows, 2 * rows], axis=1), 1, 50))
    with cache.lock() as lock:
        recipe = NeighboursRecipe(*ends, k=3, index={"kind": "by hand"})
        writer = NeighboursWriter(cache, "by-hand", recipe, fence=lock.fence)
        for part in cache.plan("image").parts():
            rows = slice(part.first_row, part.first_row + part.num_rows)
            writer.commit(part.number, ids[rows], scores[rows])


def select_half(path: Path) -> None:
    """Adds the selections `half-image` and `half-text`: every second row."""
    cache = Cache.open(path)
    for array in (cache.array("image", f"{ARRAY}.v0"), cache.array("text")):
        rows = array.ok_rows()[::2]
        binding = Binding.of(array)
        write_selection(cache, Selection(f"half-{array.modality}", binding, {"name": "by hand"}, {}, rows))


def telling_config(cache: Path, out: Path) -> DistillConfig:
    """Returns a configuration whose student draws its own crops, and has no batch norm."""
    return DistillConfig(
        cache=cache,
        out=out,
        student="timm:test_vit?image_size=32",
        image_array=f"{ARRAY}.v0",
        steps=7,
        batch_size=12,
        text_batch_size=17,
        weights={"vl": 0.9, "pvl": 0.2, "udist": 0.4, "feature": 0.6},
        temperatures={"vl": 2.0, "pvl": 1.5, "udist": 4.0},
        learning_rate=2e-3,
        min_learning_rate=1e-3,
        warmup_learning_rate=5e-4,
        warmup_share=0.3,
        weight_decay=0.3,
        min_crop=0.4,
        seed=11,
        window_parts=2,
        num_threads=1,
        decode_workers=1,
    )
