"""Files with one entry a line, as CLIP_benchmark has them for class names and prompts."""

from pathlib import Path

from cache_schema.errors import UsageError


def read_entries(path: Path) -> list[str]:
    """Returns the entries of the file at `path`, one a line, without white space around them.

    A line with nothing in it is an empty entry, because a place in the list may mean something; the line feed at the
    end of the file starts none, nor does a byte order mark belong to the first.

    Raises:
        UsageError: the file is not UTF-8, or has nothing but white space.
    """
    try:
        entries = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start}): convert it") from error
    if not any(entries):
        raise UsageError(f"{path} is empty: write one entry per line")
    return entries
