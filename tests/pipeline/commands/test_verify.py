"""`pipeline verify` ends with 4 when there is a problem."""

import json
import shutil
from pathlib import Path

from tests.corpora.damaged_files import flip_bit
from tests.corpora.processes import run


def test_verify_ends_with_4_when_there_is_a_problem(finished: tuple[Path, dict], tmp_path: Path) -> None:
    clean = run("verify", str(finished[0]), "--json")
    assert (clean.returncode, json.loads(clean.stdout)["problems"]) == (0, [])
    cache = shutil.copytree(finished[0], tmp_path / "cache")
    shard = next((cache / "image").rglob("c/0/0"))
    flip_bit(shard)
    damaged = run("verify", str(cache), "--json")
    assert damaged.returncode == 4
    assert str(shard) in json.loads(damaged.stdout)["problems"][0]["what"]
