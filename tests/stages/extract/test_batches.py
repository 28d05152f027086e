"""A teacher sees batches of one shape, whatever is left of a part, so that no feature depends on where parts end."""

from collections import Counter
from pathlib import Path

from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from tests.corpora.pictures import encoded, noise


def test_every_batch_has_the_same_shape_and_none_crosses_a_part(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(13):
        (tmp_path / "pictures" / f"{number:02d}.png").write_bytes(encoded(noise(40, 52, number), "PNG"))
    (tmp_path / "sentences.txt").write_text("".join(f"sentence {number}\n" for number in range(11)))
    calls = tmp_path / "calls"
    config = ExtractConfig(
        cache=tmp_path / "cache",
        images=(str(tmp_path / "pictures"),),
        texts=(str(tmp_path / "sentences.txt"),),
        teacher=f"python:tests.corpora.stub_teacher:make?calls={calls}",
        batch_size=5,
        part_rows=8,
        decode_workers=0,
        index=False,
    )
    with open_job(config) as job, job.make_worker() as worker:
        calls.unlink()  # Those of the probes.
        for task in job.tasks:
            worker(task)
        job.finish()
    # Parts of 8 and 5 pictures, and of 8 and 3 sentences, and probes at the end of each part.
    assert Counter(calls.read_text().splitlines()) == {"image 5": 2 + 1 + 2, "text 5": 2 + 1 + 2}
