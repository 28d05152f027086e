"""The record of a run: its request, its teacher and arrays, and its result once it has ended."""

from collections.abc import Mapping
from dataclasses import dataclass

from cache_schema import atomic
from cache_schema.errors import MismatchError, RefusedError, UsageError
from cache_schema.json_file import Json, fingerprint_of, read_sealed, seal
from cache_schema.recipe import differences
from stages.runs.folder import RunFolder

RUN_FORMAT = 2
_FORMATS_READ = (1, 2)
"""Format 1 keeps only losses with a weight, and the images of a forward pass in place of those of a norm batch."""


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json.

    Attributes:
        asked: JSON of everything that changes the student; its fingerprint names the run.
        about: JSON beside it: paths, specifications, tools, and the times the run was resumed.
        result: JSON of a run that has ended; None before.
        format: a run that was begun in an older format keeps it.
    """

    asked: Mapping[str, Json]
    about: Mapping[str, Json]
    result: Mapping[str, Json] | None = None
    format: int = RUN_FORMAT

    @property
    def fingerprint(self) -> str:
        """Returns the SHA-256 over `asked`, as 64 hexadecimal digits."""
        return fingerprint_of(dict(self.asked))


def write_record(folder: RunFolder, record: RunRecord, *, fence: atomic.Fence | None) -> None:
    """Publishes run.json."""
    value = {
        "format": record.format,
        "asked": dict(record.asked),
        "about": dict(record.about),
        "result": None if record.result is None else dict(record.result),
    }
    atomic.publish_json(folder.run_json, seal(value), fence=fence)


def read_record(folder: RunFolder) -> RunRecord:
    """Returns what run.json says.

    Raises:
        UsageError: there is no run.
        DamagedError: run.json was changed or cut.
        RefusedError: it was written by a newer version.
    """
    if not folder.run_json.exists():
        raise UsageError(f"{folder.root} holds no distillation run (no run.json): make one with `pipeline distill`")
    value = read_sealed(folder.run_json)
    if value.get("format") not in _FORMATS_READ:
        raise RefusedError(
            f"{folder.root} has run format {value.get('format')}, this version reads {_FORMATS_READ[0]} to "
            f"{_FORMATS_READ[-1]}: upgrade the pipeline"
        )
    return RunRecord(value["asked"], value["about"], value["result"], value["format"])


def micro_batch_of_format_1(folder: RunFolder) -> int | None:
    """Returns the images of a forward pass that a run of format 1 keeps; None for another run, or none."""
    if not folder.run_json.exists():
        return None
    record = read_record(folder)
    return record.asked["micro_batch_size"] if record.format == 1 else None


def require_same(folder: RunFolder, now: Mapping[str, Json], then: Mapping[str, Json]) -> None:
    """Raises `MismatchError` with every differing field when a run is to be resumed that was asked something else."""
    found = differences(dict(now), dict(then))
    if found:
        shown = "; ".join(f"{field}: {_short(ours)} now, {_short(theirs)} then" for field, ours, theirs in found[:12])
        raise MismatchError(
            f"run {folder.root} was asked something else ({shown}): repeat its options to resume it, use another "
            "--out, or start over with --fresh"
        )


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
