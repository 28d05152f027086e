"""Planning appends what is new, moves nothing, and refuses what it cannot tell apart."""

from pathlib import Path

import pytest

from cache_schema.errors import MismatchError, RefusedError, UsageError
from cache_schema.plan import Plan
from stages.extract.grow_plan import grown_plan
from tests.corpora.pictures import encoded, noise
from tests.corpora.webdataset import write_tar

PICTURE = encoded(noise(8, 8), "PNG")


def write_lines(path: Path, first: int, count: int) -> str:
    path.write_text("".join(f"sentence {i}\n" for i in range(first, first + count)))
    return str(path)


def test_more_sources_append_parts_and_leave_the_finished_ones_alone(tmp_path: Path) -> None:
    one, two = write_lines(tmp_path / "one.txt", 0, 20), write_lines(tmp_path / "two.txt", 20, 9)
    first = grown_plan(Plan("text", 8), [one]).plan
    grown = grown_plan(first, [one, two]).plan
    assert list(grown.parts())[: first.num_parts] == list(first.parts())
    assert (first.num_rows, grown.num_rows) == (20, 29)
    assert grown_plan(grown, [two]).plan == grown
    assert grown_plan(grown, [one, two]).plan == grown


def test_a_source_that_moved_is_not_planned_twice_and_is_read_from_its_new_place(tmp_path: Path) -> None:
    plan = grown_plan(Plan("text", 8), [write_lines(tmp_path / "one.txt", 0, 20)]).plan
    (tmp_path / "one.txt").rename(tmp_path / "moved.txt")
    moved = grown_plan(plan, [str(tmp_path / "moved.txt")]).plan
    assert moved.segments == plan.segments
    assert [source.uri for source in moved.sources] == [str(tmp_path / "moved.txt")]


def test_a_source_that_changed_is_refused_with_both_counts(tmp_path: Path) -> None:
    plan = grown_plan(Plan("text", 8), [write_lines(tmp_path / "one.txt", 0, 20)]).plan
    write_lines(tmp_path / "one.txt", 0, 21)
    with pytest.raises(MismatchError, match=r"changed since it was planned \(20 samples, .* now 21"):
        grown_plan(plan, [str(tmp_path / "one.txt")])


def test_a_key_that_stands_in_two_tars_of_one_uri_is_refused_with_both_places(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", PICTURE), ("b.png", PICTURE)])
    write_tar(tmp_path / "1.tar", [("c.png", PICTURE), ("b.png", PICTURE)])
    with pytest.raises(RefusedError, match=r"key 'b' stands twice: sample 1 of .*0\.tar and sample 1 of .*1\.tar"):
        grown_plan(Plan("image", 8), [str(tmp_path / "{0,1}.tar")])


def test_the_same_key_in_tars_of_different_uris_is_fine(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", PICTURE)])
    write_tar(tmp_path / "1.tar", [("a.png", PICTURE + b" ")])
    assert grown_plan(Plan("image", 8), [str(tmp_path / "0.tar"), str(tmp_path / "1.tar")]).plan.num_rows == 2


def test_sources_without_a_sample_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises((UsageError, RefusedError), match=r"empty\.txt"):
        grown_plan(Plan("text", 8), [str(tmp_path / "empty.txt")])
    with pytest.raises((UsageError, RefusedError), match="folder"):
        grown_plan(Plan("image", 8), [str(tmp_path / "folder")])
