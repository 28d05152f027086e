"""A teacher whose files changed is loaded anew."""

import shutil
from pathlib import Path

from stages.teachers.described import loaded_teacher
from tests.corpora.tiny_open_clip import make_tiny_open_clip


def test_a_teacher_whose_files_changed_is_loaded_anew_in_the_same_process(tmp_path: Path) -> None:
    folder = make_tiny_open_clip(tmp_path / "tiny")
    specification = f"open_clip:local-dir:{folder}"
    first = loaded_teacher(specification, "cpu", "float32")
    assert loaded_teacher(specification, "cpu", "float32") is first
    shutil.rmtree(folder)
    make_tiny_open_clip(folder, seed=1)
    again = loaded_teacher(specification, "cpu", "float32")
    assert again.identity != first.identity
    assert loaded_teacher(specification, "cpu", "float32") is again
