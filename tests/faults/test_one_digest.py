"""One corpus, extracted in every way and killed at random, has one digest; no row is lost, doubled or misnamed."""

from pathlib import Path
from typing import Any

import pytest

from tests.corpora.processes import figures_of


def trial(folder: Path, *args: str) -> dict[str, Any]:
    result = figures_of("tests.faults.one_digest", folder, *args)
    assert result["wrong"] == []
    assert (result["digests"], result["rows_lost"], result["rows_doubled"]) == (1, 0, 0)
    assert result["bad_rows_with_another_status"] == 0 and result["bad"] >= (result["images"] + result["texts"]) // 60
    assert result["worst_redone_parts_per_kill"] <= 1 and result["parts"] >= 8
    return result


@pytest.mark.slow
def test_an_extract_killed_six_times_at_random_and_one_grown_in_two_steps_have_the_digest_of_a_quiet_one(
    tmp_path: Path,
) -> None:
    small = ["--images", "300", "--texts", "400", "--part-rows", "64"]
    # `test_killed_extracts` asks which instants do harm, one after the other; here the whole program dies, a few times.
    result = trial(tmp_path, *small, "--kills", "6", "--changes", "4", "--without-ray")
    assert result["changes"] == 4 and result["kills"] == 6 and result["kills_while_the_cache_was_written"] >= 3


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_thirty_kills_two_ray_workers_and_growing_give_one_digest_of_5000_real_samples(tmp_path: Path) -> None:
    result = trial(tmp_path, "--longest", "6", "--seconds-per-batch", "0.25")
    assert result["kills"] == 30 and result["judged_caches"] >= 4
