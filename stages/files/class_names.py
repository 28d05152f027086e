"""Files with one entry a line, as CLIP_benchmark has them for class names and prompts."""

from pathlib import Path

from cache_schema.errors import UsageError


def read_entries(path: Path) -> list[str]:
    """Returns the entries of the file at `path`, one a line, without white space around them; empty lines are none.

    Raises:
        UsageError: the file is not UTF-8, or has no entry.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start}): convert it") from error
    entries = [line for line in lines if line]
    if not entries:
        raise UsageError(f"{path} is empty: write one entry per line")
    return entries
