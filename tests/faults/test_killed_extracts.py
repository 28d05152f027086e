"""kill -9 at any instant, or a disk that fails at any instant, then rerun: the same cache, byte for byte."""

from pathlib import Path
from typing import Any

import pytest

from tests.corpora.processes import figures_of
from tests.corpora.small_corpus import write_least_sources


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_least_sources(tmp_path_factory.mktemp("small") / "corpus")


def trial(corpus: Path, *args: str) -> dict[str, Any]:
    result = figures_of("tests.faults.killed_extracts", corpus, *args)
    assert result["wrong"] == [], result["wrong"]
    return result


@pytest.mark.slow
def test_an_extract_killed_at_every_twenty_ninth_durable_operation_reruns_to_the_same_digest(corpus: Path) -> None:
    # A part has some forty operations, so every part is hit, each at another place; the campaign takes them all.
    assert trial(corpus, "kill", "--step", "29")["runs"] >= 12


@pytest.mark.slow
def test_an_extract_of_views_and_pixels_killed_at_any_operation_reruns_to_the_same_files(corpus: Path) -> None:
    assert trial(corpus, "kill", "--views", "--first", "100", "--step", "53")["runs"] >= 7


@pytest.mark.slow
def test_kills_on_top_of_kills_rerun_to_the_same_digest(corpus: Path) -> None:
    assert trial(corpus, "kill", "--compound", "4")["runs"] >= 8


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--forever"]], ids=["once", "from then on"])
def test_a_disk_that_fails_at_an_operation_is_one_clear_error_without_a_stump_and_resumable(
    corpus: Path, how: list[str]
) -> None:
    assert trial(corpus, "each", "--first", "2", "--step", "33", *how)["runs"] >= 10


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "args",
    [
        ["kill"],
        ["kill", "--views"],
        ["kill", "--compound", "200"],
        *(["each", "--first", "1", *how] for how in ([], ["--forever"])),
    ],
    ids=" ".join,
)
def test_a_fault_at_every_durable_operation_leaves_a_cache_that_reruns_to_the_same_digest(
    corpus: Path, args: list[str]
) -> None:
    assert trial(corpus, *args)["runs"] >= 300
