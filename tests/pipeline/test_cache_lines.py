"""The lines for people about arrays, stored pixels and indexes."""

from pipeline.cache_lines import array_lines, index_line, pixels_line


def test_the_table_of_arrays_shortens_what_nobody_reads_to_its_end() -> None:
    array = {"array": "a.v0", "fingerprint": "0123456789abcdef", "digest": "f" * 64}
    heading, row = array_lines([array], ("array", "fingerprint", "digest"))
    assert heading.split() == ["array", "fingerprint", "digest"] and row.split() == ["a.v0", "0123456789ab", "f" * 12]


def test_pixels_that_are_pending_are_named_and_others_not_mentioned() -> None:
    stored = {"pictures": 1200, "side": 256, "quality": 90, "bytes": 34567, "pending_parts": 0}
    assert pixels_line(stored) == "pixels: 1,200 JPEGs, shorter side 256, quality 90, 34,567 bytes"
    assert pixels_line({**stored, "pending_parts": 3}).endswith("34,567 bytes, 3 parts pending")


def test_a_recall_is_told_of_inverted_lists_alone() -> None:
    index = {"modality": "text", "index": "a.flat", "kind": "flat", "recall_at_10": 1.0, "state": "current"}
    assert index_line(index) == "index text/a.flat: exact search, current"
    approximate = {**index, "index": "a.ivf", "kind": "ivf", "recall_at_10": 0.9871, "state": "stale"}
    assert index_line(approximate) == "index text/a.ivf: inverted lists, recall at 10 0.987, stale"
