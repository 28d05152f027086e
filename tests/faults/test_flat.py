"""Long runs are flat: memory, open files, threads and temporary files do not grow with the rows."""

from pathlib import Path
from typing import Any

import pytest

from tests.corpora.processes import figures_of


def trial(folder: Path, *args: str) -> dict[str, Any]:
    result = figures_of("tests.faults.flat", folder, *args)
    assert result["descriptors"][1] <= result["descriptors"][0], result
    assert result["threads"][0] == result["threads"][1], result
    assert result["left_over"] == [] and result["ok"] == result["rows"]
    return result


@pytest.mark.slow
def test_sixty_thousand_rows_need_no_more_files_threads_or_memory_than_the_first(tmp_path: Path) -> None:
    result = trial(tmp_path, "--rows", "60000", "--part-rows", "2048", "--seconds-between", "0.02")
    assert result["rss_mb_late"] <= result["rss_mb_early"] + 16, result


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_a_million_rows_need_no_more_files_threads_or_memory_than_the_first(tmp_path: Path) -> None:
    result = trial(tmp_path)
    assert result["rss_growth_mb_per_100k_rows"] <= 2, result
