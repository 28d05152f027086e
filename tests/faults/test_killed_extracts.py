"""kill -9 at any instant, then rerun: the same logical digest, no row lost or doubled."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / "pictures" / f"{i}.png")
    (folder / "pictures" / "3.png").write_bytes(b"")
    (folder / "sentences.txt").write_text("".join(f"sentence {i}\n" if i % 7 else "\n" for i in range(10)))
    return folder


def campaign(corpus: Path, fault: str, first: int = 1, step: int = 1) -> dict:
    command = [sys.executable, "-m", "tests.faults.killed_extracts", str(corpus), fault, str(first), str(step)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_an_extract_killed_at_every_fourth_durable_operation_reruns_to_the_same_digest(corpus: Path) -> None:
    result = campaign(corpus, "kill", 1, 4)
    assert result["wrong"] == []
    assert result["runs"] >= 20, result


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_an_extract_killed_at_every_durable_operation_reruns_to_the_same_digest(corpus: Path) -> None:
    result = campaign(corpus, "kill")
    assert result["wrong"] == []
    assert result["runs"] >= 80, result


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO", "EROFS"])
def test_a_disk_that_fails_at_any_operation_is_one_clear_error_and_resumable(corpus: Path, fault: str) -> None:
    first = {"ENOSPC": 1, "EIO": 2, "EROFS": 3}[fault]
    result = campaign(corpus, fault, first, 13)
    assert result["wrong"] == []
    assert result["runs"] >= 6, result
