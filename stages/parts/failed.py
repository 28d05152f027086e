"""Parts that failed while the others were committed, and the one error that lists them. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cache_schema.errors import PartsFailed, RefusedError
from cache_schema.json_file import Json
from cache_schema.layout import Modality

MOST_SHOWN = 5


@dataclass(frozen=True)
class FailedPart:
    """One part that is still pending, because doing it failed.

    Attributes:
        modality: image or text.
        part: its number.
        error: what went wrong, in one line.
        exit_code: 4 when it would be refused again, 3 when running again may help.
    """

    modality: Modality
    part: int
    error: str
    exit_code: int = 3

    def __str__(self) -> str:
        return f"{self.modality} part {self.part}: {self.error}"

    def to_json(self) -> dict[str, Json]:
        """Returns the fields, as JSON."""
        return asdict(self)


def parts_failed(failed: Sequence[FailedPart], num_parts: int) -> PartsFailed | RefusedError:
    """Returns the error that lists `failed`, at least one of `num_parts`.

    It is a `RefusedError`, exit code 4, when all of them would be refused again, else a `PartsFailed`, exit code 3.
    """
    named = [str(part) for part in failed[:MOST_SHOWN]]
    more = f" and {len(failed) - len(named)} more" if len(failed) > len(named) else ""
    said = f"{len(failed)} of {num_parts} parts failed ({'; '.join(named)}{more})"
    if all(part.exit_code == RefusedError.exit_code for part in failed):
        return RefusedError(f"{said}: mend what is named and run again; the other parts are committed")
    return PartsFailed(f"{said}: run again to resume")
