"""`pipeline inspect` shows what extract reported, and every bad row."""

import json
from pathlib import Path

from tests.corpora.processes import run


def test_inspect_lists_bad_rows_with_source_key_and_reason(data: Path, finished: tuple[Path, dict]) -> None:
    result = run("inspect", str(finished[0]), "--bad", "--json")
    bad = {(row["modality"], row["key"]): row for row in json.loads(result.stdout)["bad_rows"]}
    assert bad["image", "0003.png"]["status"] == "img-empty"
    assert bad["text", "8"]["status"] == "text-empty"
    assert bad["text", "8"]["source"] == str(data / "sentences.txt")
    assert len(bad) == 2
    human = run("inspect", str(finished[0]), "--bad")
    assert "img-empty" in human.stdout and human.stdout.splitlines()[-1].startswith("next: ")


def test_inspect_shows_the_arrays_that_extract_reported(finished: tuple[Path, dict]) -> None:
    arrays = json.loads(run("inspect", str(finished[0]), "--json").stdout)["arrays"]
    for name, array in finished[1]["arrays"].items():
        assert {key: arrays[name][key] for key in array} == array
