"""run.json says what was asked, and nothing in it can change unseen."""

import pytest

from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError
from stages.runs.folder import RunFolder, open_folder
from stages.runs.record import RunRecord, read_record, require_same, write_record

RECORD = RunRecord(asked={"steps": 3, "student": {"dim": 8}}, about={"cache": "here"})


def _written(root, record=RECORD):
    folder = open_folder(root)
    with folder.lock() as lock:
        write_record(folder, record, fence=lock.fence)
    return folder


def test_a_record_comes_back_as_it_was_written(tmp_path):
    folder = _written(tmp_path / "run")
    assert read_record(folder) == RECORD
    assert read_record(folder).fingerprint == RECORD.fingerprint


def test_fingerprint_covers_what_was_asked_and_nothing_else():
    assert RunRecord(RECORD.asked, {"cache": "there"}, {"loss": 1}).fingerprint == RECORD.fingerprint
    assert RunRecord({**RECORD.asked, "steps": 4}, RECORD.about).fingerprint != RECORD.fingerprint


def test_any_changed_byte_of_a_record_is_damage(tmp_path):
    folder = _written(tmp_path / "run")
    folder.run_json.write_text(folder.run_json.read_text().replace('"steps": 3', '"steps": 4'))
    with pytest.raises(DamagedError, match=r"run\.json does not match its seal"):
        read_record(folder)


def test_a_record_of_a_newer_version_is_refused(tmp_path):
    from cache_schema import atomic
    from cache_schema.json_file import seal

    folder = _written(tmp_path / "run")
    atomic.publish_json(folder.run_json, seal({"format": 3, "asked": {}, "about": {}, "result": None}))
    with pytest.raises(RefusedError, match="run format 3, this version reads 1 to 2: upgrade"):
        read_record(folder)


def test_a_folder_without_a_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="holds no distillation run"):
        read_record(RunFolder(tmp_path))


def test_every_differing_field_is_shown_with_both_values(tmp_path):
    other = {"steps": 5, "student": {"dim": 9}}
    with pytest.raises(MismatchError, match=r"steps: 5 now, 3 then; student\.dim: 9 now, 8 then"):
        require_same(RunFolder(tmp_path), other, RECORD.asked)
