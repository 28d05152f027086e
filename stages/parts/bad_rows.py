"""How many bad rows a run accepts."""

from pathlib import Path

from cache_schema.errors import TooManyBadRows
from cache_schema.layout import Modality


def check_bad_rows(cache: Path, modality: Modality, num_bad: int, num_planned: int, max_bad_fraction: float) -> None:
    """Raises `TooManyBadRows` when more than `max_bad_fraction`, a share from 0 to 1, of the planned rows are bad."""
    if num_bad > max_bad_fraction * num_planned:
        raise TooManyBadRows(
            f"{num_bad:,} of {num_planned:,} {modality}s are bad, more than --max-bad-fraction {max_bad_fraction}: see "
            f"`pipeline inspect {cache} --bad`, mend what is named or allow more, and run again"
        )
