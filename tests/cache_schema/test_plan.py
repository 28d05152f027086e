"""Every sample is planned exactly once, and what was planned never moves."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_schema.errors import DamagedError
from cache_schema.plan import Plan, SourceEntry, part_starts, read_plan, write_plan

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def extend(plan: Plan, sizes: list[int]) -> Plan:
    first = len(plan.sources)
    entries = [SourceEntry(f"/s{first + i}", "text", f"{first + i:064x}", size) for i, size in enumerate(sizes)]
    starts = part_starts(sizes, plan.part_rows)
    return plan.extended(entries, [{at: 100 * at for at in places} for places in starts])


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
