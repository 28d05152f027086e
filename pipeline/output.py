"""Prints for commands: results on stdout, for people or as one JSON object; everything else on stderr."""

import json
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

# Cc: control characters, among them the escape that starts terminal sequences. Cf: bidi overrides and other invisible
# marks, which make a line look like another one. Cs: halves of a surrogate pair, which no encoding can write. Zl, Zp:
# line breaks.
_NOT_PRINTED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """Returns `text` on one line, with everything that could steer a terminal written as an escape such as `\\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in _NOT_PRINTED else char for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


_results: TextIO | None = None


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Keeps stdout for `print_result`: whatever else prints meanwhile (a teacher, Ray, a library) goes to stderr."""
    global _results
    before, _results = _results, sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results = before


def print_result(result: Mapping[str, Any], *, as_json: bool, lines: Sequence[str], next_step: str = "") -> None:
    """Prints the outcome of a command on stdout.

    Args:
        result: what `--json` prints, as one object on one line; `next_step` is added to it.
        as_json: print `result` instead of `lines`.
        lines: the same for people.
        next_step: a command to run now; the last line.
    """
    if as_json:
        whole = {**result, "next": next_step} if next_step else result
        # Not a number has no JSON; whoever computes one reports it as null.
        _write(json.dumps(whole, allow_nan=False))
        return
    for line in lines:
        _write(printable(line))
    if next_step:
        _write(printable(f"next: {next_step}"))


def print_note(text: str) -> None:
    """Prints a remark on stderr; one that cannot be delivered is dropped."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        return


def print_error(text: str) -> None:
    """Prints `error: text` on stderr as one line."""
    print_note(f"error: {' '.join(text.split())}")


def _write(line: str) -> None:
    print(line, file=_results or sys.stdout, flush=True)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Returns `rows` as aligned lines under `columns`; numbers to the right, with thousands separators."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[at]) for line in cells), 0) for at, column in enumerate(columns)]
    numeric = [bool(rows) and all(_is_number(row.get(column)) for row in rows) for column in columns]

    def aligned(line: Sequence[str]) -> str:
        shown = zip(line, widths, numeric, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in shown).rstrip()

    return [aligned(columns), *(aligned(line) for line in cells)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(str(value))
