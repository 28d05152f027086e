"""The types of option values, each with the rule it enforces, and how an option takes its default from a dataclass."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from cache_schema.errors import nearest
from pipeline.config import ConfigFile

Command = TypeVar("Command", bound=Callable[..., Any])

LARGEST_COUNT = 2**31 - 1
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
            self.fail(f"{number} is out of range: {self._rule()}", param, ctx)
        return number

    def _rule(self) -> str:
        return f"give a number from {self.at_least} to {self.at_most}, such as {max(self.at_least, 64)}"


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
        number = float(value)
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

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not isinstance(value, str):
            self.fail(f"{_shown(value)} is not text: put it between quotes", param, ctx)
        if not value.strip() or "\0" in value:
            self.fail(f"{_shown(value)} names nothing: give a {self.name}", param, ctx)
        return value


class FilePath(Text):
    """A path, made absolute at once, so that a later change of the working directory does not matter."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # type: ignore[override]
        if isinstance(value, Path):
            return value
        return Path(super().convert(value, param, ctx)).expanduser().absolute()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def option(*names: str, default_of: type | None = None, **settings: Any) -> Callable[[Command], Command]:
    """Returns a click option whose default, shown in the help, is that of the field of the same name in `default_of`.

    The dataclass stays the only home of the default. A field whose default is None gets no `[default: …]`: its help
    says what happens then.
    """
    if default_of is not None:
        field_name = settings.pop("field", None) or names[0].split("/")[0].lstrip("-").replace("-", "_")
        known = {field.name: field for field in dataclasses.fields(default_of)}
        default = known[field_name].default
        if default is not dataclasses.MISSING and default not in (None, ()):
            settings["default"] = default
            settings["show_default"] = settings.get("show_default", True)
    return click.option(*names, **settings)


def shared_options(command: Command) -> Command:
    """Adds the options that every command has: `--config`, `--json` (as `as_json`), `--quiet` and `--debug`."""
    for add in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
        click.option("--quiet", is_flag=True, help="Show no progress."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
        click.option("--config", cls=ConfigFile, type=FilePath("FILE"), help="TOML file with a table per command."),
    ):
        command = add(command)
    return command
