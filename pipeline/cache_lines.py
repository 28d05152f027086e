"""Lines for people about what `cache_schema.summary` says of a cache."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.output import table

SHORT_DIGEST = 12

_KINDS = {"flat": "exact search", "ivf": "inverted lists"}


def array_lines(arrays: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Returns the lines of a table of `arrays`; fingerprints and digests are shortened."""
    short = ("fingerprint", "digest")
    return table([{**array, **{name: array[name][:SHORT_DIGEST] for name in short}} for array in arrays], columns)


def pixels_line(stored: Mapping[str, Any]) -> str:
    """Returns one line about stored pixels."""
    pending = f", {stored['pending_parts']:,} parts pending" if stored["pending_parts"] else ""
    return (
        f"pixels: {stored['pictures']:,} JPEGs, shorter side {stored['side']}, quality {stored['quality']}, "
        f"{stored['bytes']:,} bytes{pending}"
    )


def index_line(index: Mapping[str, Any]) -> str:
    """Returns one line about an index."""
    kind = _KINDS.get(index["kind"], index["kind"])
    recall = f", recall at 10 {index['recall_at_10']:.3f}" if index["kind"] == "ivf" else ""
    return f"index {index['modality']}/{index['index']}: {kind}{recall}, {index['state']}"
