"""The types of option values, each with the rule it enforces."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cache_schema.errors import nearest
from pipeline.executors.config import WorkerRange
from stages.settings.declare import LARGEST_COUNT

MOST_NAME_BYTES = 255
# Linux takes 4,095; the rest is for the names inside a folder.
MOST_PATH_BYTES = 3_700

_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


class Count(click.ParamType):
    """A whole number in plain digits. `1e3`, `0x10`, `1_000`, `-1` and huge numbers are refused with the rule."""

    name = "N"

    def __init__(self, at_least: int = 1, at_most: int = LARGEST_COUNT) -> None:
        self.at_least = at_least
        self.at_most = at_most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", value):
            number = int(value)
        else:
            self.fail(f"{_shown(value)} is not a whole number in plain digits: {self._rule()}", param, ctx)
        if not self.at_least <= number <= self.at_most:
            self.fail(f"{_shown(value)} is out of range: {self._rule()}", param, ctx)
        return number

    def _rule(self) -> str:
        return f"give a number from {self.at_least} to {self.at_most}, such as {max(self.at_least, 64)}"


class WorkerCount(click.ParamType):
    """`N`, or `MIN:MAX` for a number of workers that may change during a run."""

    name = "N|MIN:MAX"
    most = 4096

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> WorkerRange:
        if isinstance(value, WorkerRange):
            return value
        given = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        rule = f"give a number from 1 to {self.most}, or MIN:MAX such as 1:8"
        if not isinstance(given, str) or not (found := re.fullmatch(r"([0-9]{1,20})(?::([0-9]{1,20}))?", given)):
            self.fail(f"{_shown(value)} is no number of workers: {rule}", param, ctx)
        least, most = int(found[1]), int(found[2] or found[1])
        if not 1 <= least <= most <= self.most:
            self.fail(f"{_shown(value)} is out of range: {rule}, the smaller first", param, ctx)
        return WorkerRange(least, most)


class Number(click.ParamType):
    """A finite decimal number in a range. `nan`, `inf` and words are refused with the rule."""

    name = "X"

    def __init__(self, *, above: float | None = None, at_least: float | None = None, at_most: float = 1e9) -> None:
        self.above = above
        self.at_least = at_least
        self.at_most = at_most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number and not (isinstance(value, str) and _DECIMAL.fullmatch(value)):
            self.fail(f"{_shown(value)} is not a number: {self._rule()}", param, ctx)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        too_small = (self.above is not None and number <= self.above) or (
            self.at_least is not None and number < self.at_least
        )
        if not math.isfinite(number) or too_small or number > self.at_most:
            self.fail(f"{_shown(value)} is out of range: {self._rule()}", param, ctx)
        return number

    def _rule(self) -> str:
        low = f"above {self.above:g}" if self.above is not None else f"from {self.at_least:g}"
        return f"give a finite number {low}, up to {self.at_most:g}"


class Choice(click.ParamType):
    """One of a few words, exactly as written; another one is refused with the list and the nearest."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.name = "|".join(self.words)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{self.name}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in self.words:
            return str(value)
        guess = nearest(value, self.words) if isinstance(value, str) else ""
        self.fail(f"{_shown(value)} is none of {', '.join(self.words)}{guess}", param, ctx)


class Text(click.ParamType):
    """A word that means something to us, such as a specification or the URI of a source; not empty, without NUL."""

    # An environment variable for an option that may be repeated has one value per line: URIs may contain blanks.
    envvar_list_splitter = "\n"

    def __init__(self, name: str = "NAME") -> None:
        self.name = name

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str | None:
        # click would write an option's words in capitals. An argument is called by its own name.
        return self.name if isinstance(param, click.Option) else None

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not isinstance(value, str):
            self.fail(f"{_shown(value)} is not text: put it between quotes", param, ctx)
        if not value.strip() or "\0" in value:
            self.fail(f"{_shown(value)} names nothing: give a {self.name}", param, ctx)
        return value


class FilePath(Text):
    """A path, made absolute at once, so that a later change of the working directory does not matter.

    One that no file system takes is refused, before anything is written along it.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # type: ignore[override]
        if isinstance(value, Path):
            return value
        path = Path(super().convert(value, param, ctx)).expanduser().absolute()
        longest = max(len(os.fsencode(name)) for name in path.parts)
        if len(os.fsencode(path)) > MOST_PATH_BYTES or longest > MOST_NAME_BYTES:
            self.fail(
                f"{_shown(value)} is too long: give a path of at most {MOST_PATH_BYTES:,} bytes, and "
                f"{MOST_NAME_BYTES} in each name",
                param,
                ctx,
            )
        return path


class NamedNumber(click.ParamType):
    """`NAME=X` with an X of `number`, for an option that may be repeated; in a configuration file also a table."""

    name = "NAME=X"
    envvar_list_splitter = "\n"

    def __init__(self, number: Number) -> None:
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        name, equals, number = value.partition("=") if isinstance(value, str) else ("", "", "")
        if not name or not equals:
            self.fail(f"{_shown(value)} is not NAME=X: write a name and a number, such as vl=0.7", param, ctx)
        return name, self.number.convert(number, param, ctx)


class HostAndPort(Text):
    """`HOST:PORT` of the head of a running Ray cluster."""

    def __init__(self) -> None:
        super().__init__("HOST:PORT")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        host, _, port = super().convert(value, param, ctx).rpartition(":")
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:]+\]", host) or not re.fullmatch(r"[0-9]{1,5}", port):
            self.fail(f"{_shown(value)} is no address: give HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
        return f"{host}:{port}"


def _shown(value: Any) -> str:
    # Python refuses to write an integer of more than 4,300 digits.
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 1000 else "a number of hundreds of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"
