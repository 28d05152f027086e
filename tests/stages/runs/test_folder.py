"""Whose a run folder is, and what starting over removes."""

import pytest

from cache_schema.errors import RefusedError
from stages.runs.folder import forget, open_folder
from stages.runs.record import RunRecord, write_record

RECORD = RunRecord(asked={"steps": 3, "student": {"dim": 8}}, about={"cache": "here"})


def _written(root, record=RECORD):
    folder = open_folder(root)
    with folder.lock() as lock:
        write_record(folder, record, fence=lock.fence)
    return folder


def test_missing_and_empty_folders_and_a_run_are_ours_and_anything_else_is_not(tmp_path):
    assert open_folder(tmp_path / "new" / "run").root.is_dir()
    assert open_folder(tmp_path / "new" / "run")
    assert open_folder(_written(tmp_path / "run").root)
    (tmp_path / "run" / "notes.txt").write_text("")
    with pytest.raises(RefusedError, match=r"notes\.txt"):
        open_folder(tmp_path / "run")
    (tmp_path / "models" / "model").mkdir(parents=True)
    with pytest.raises(RefusedError, match="it holds model"):
        open_folder(tmp_path / "models")


def test_starting_over_removes_our_files_and_no_others(tmp_path):
    folder = _written(tmp_path / "run")
    ours = [
        folder.metrics,
        folder.speed,
        folder.checkpoints / "step-000000001.json",
        folder.checkpoints / "step-000000001.safetensors",
        folder.model / "image_tower.json",
        folder.tensorboard / "events.out.tfevents.1.host",
        folder.probes("image"),
    ]
    theirs = [folder.model / "readme.md", folder.tensorboard / "picture.png", folder.checkpoints / "old" / "a.json"]
    for path in ours + theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    with folder.lock() as lock:
        forget(folder, fence=lock.fence)
    assert not any(path.exists() for path in [*ours, folder.run_json])
    assert all(path.exists() for path in theirs)
