"""Only the head of a part is timed."""

from cache_schema.plan import Part, Span
from stages.extract.calibrate import head_of


def test_the_head_of_a_part_is_its_first_rows() -> None:
    part = Part(3, 96, (Span(0, 70, 10, 700), Span(1, 0, 22, 0)))
    assert head_of(part, 4) == Part(3, 96, (Span(0, 70, 4, 700),))
    assert head_of(part, 12) == Part(3, 96, (Span(0, 70, 10, 700), Span(1, 0, 2, 0)))
    assert head_of(part, 100) == part
