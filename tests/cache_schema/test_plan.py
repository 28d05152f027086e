"""Every sample is planned exactly once, and what was planned never moves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_schema.errors import DamagedError
from cache_schema.plan import Plan, Segment, SourceEntry, read_plan, write_plan

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def extend(plan: Plan, sizes: list[int]) -> Plan:
    first = len(plan.sources)
    entries = [SourceEntry(f"/s{first + i}", "text", f"{first + i:064x}", size) for i, size in enumerate(sizes)]
    return plan.extended(entries, [range(0, 100 * size, 100) for size in sizes])


@given(st.lists(SIZES, min_size=1, max_size=4), st.integers(1, 12))
def test_every_sample_is_planned_once_and_earlier_parts_never_move(segments: list[list[int]], part_rows: int) -> None:
    plan = Plan("text", part_rows)
    for sizes in segments:
        before = list(plan.parts())
        plan = extend(plan, sizes)
        assert list(plan.parts())[: len(before)] == before
    planned = [
        (span.source, span.first_sample + i)
        for part in plan.parts()
        for span in part.spans
        for i in range(span.num_samples)
    ]
    assert planned == [(s, i) for s, entry in enumerate(plan.sources) for i in range(entry.num_samples)]
    for number, part in enumerate(plan.parts()):
        assert (part.number, part.first_row) == (number, number * part_rows)
        assert 1 <= part.num_rows <= part_rows
        assert all(span.offset_bytes == 100 * span.first_sample for span in part.spans)
    assert plan.num_rows == sum(map(sum, segments))


@given(st.lists(SIZES, min_size=1, max_size=3))
def test_a_plan_on_disk_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, segments: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan = Plan("text", 8)
    for sizes in segments:
        plan = extend(plan, sizes)
    write_plan(path, plan)
    assert read_plan(path, "text", 8) == plan


def test_a_plan_of_other_part_rows_or_modality_is_damage(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", extend(Plan("text", 8), [20]))
    for modality, part_rows in (("image", 8), ("text", 16)):
        with pytest.raises(DamagedError, match="does not fit this cache"):
            read_plan(tmp_path / "plan.json", modality, part_rows)


def test_a_part_fingerprint_follows_the_samples_and_not_the_path() -> None:
    plan = extend(Plan("text", 8), [20])
    moved = Plan("text", 8).extended([SourceEntry("/moved", "text", f"{0:064x}", 20)], [{0: 0, 8: 800, 16: 1600}])
    other = Plan("text", 8).extended([SourceEntry("/s0", "text", f"{1:064x}", 20)], [{0: 0, 8: 800, 16: 1600}])
    part = plan.part(1)
    assert plan.part_fingerprint(part) == moved.part_fingerprint(moved.part(1))
    assert plan.part_fingerprint(part) != other.part_fingerprint(other.part(1))
    assert plan.part_fingerprint(part) != plan.part_fingerprint(plan.part(0))


@given(st.lists(SIZES, min_size=1, max_size=3), st.data())
def test_only_the_runs_that_are_asked_for_are_planned(segments: list[list[int]], data: st.DataObject) -> None:
    plan = Plan("text", 8)
    for sizes in segments:
        plan = extend(plan, sizes)
    before, size = plan.num_rows, data.draw(st.integers(1, 40))
    chosen = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    longer = plan.extended([SourceEntry("/new", "text", "f" * 64, size)], [range(size)], [[(at, 1) for at in chosen]])
    rows = [
        (span.source, span.first_sample + i, span.offset_bytes + i)
        for part in longer.parts()
        for span in part.spans
        for i in range(span.num_samples)
    ]
    assert rows[before:] == [(len(plan.sources), at, at) for at in chosen]
    assert longer.sources[-1].uri == "/new"


def test_records_of_a_part_as_it_was_planned_before_still_hold_where_the_plan_says_so(tmp_path: Path) -> None:
    plan = extend(Plan("text", 8), [20])
    part = plan.part(1)
    then = plan.part_fingerprint(part)
    again = replace(part, spans=(replace(part.spans[0], offset_bytes=1),))
    assert not plan.is_of_part(again, 8, then)
    kept = replace(again, before=(then,))
    assert plan.is_of_part(kept, 8, then) and not plan.is_of_part(kept, 7, then)
    longer = replace(plan, segments=(Segment((plan.part(0), kept, plan.part(2))),))
    write_plan(tmp_path / "plan.json", longer)
    assert read_plan(tmp_path / "plan.json", "text", 8) == longer


def test_a_plan_that_uses_nothing_new_is_written_as_before(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", extend(Plan("text", 8), [20]))
    value = json.loads((tmp_path / "plan.json").read_text())
    assert set(value["sources"][0]) == {"uri", "kind", "fingerprint", "num_samples", "options", "state"}
    assert [len(part) for part in value["segments"][0]] == [3, 3, 3]
