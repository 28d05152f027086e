"""Several students of one command: `--student` more than once, or a table of tables in the configuration file.

    [distill.students.small]
    student = "timm:resnet10t?image_size=64"
    learning_rate = 2e-3

A table holds what the student has for itself, as the flags are called; all else is shared. Each learns in OUT/NAME.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from cache_schema.errors import UsageError, unknown_name
from pipeline.options.layers import key_of
from pipeline.options.shared import Command
from stages.distill.config import DistillConfig
from stages.settings.declare import settings_in

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,99}")
_PLACES = ("out", "fresh", "amend")


class StudentTables(click.ParamType):
    """Name -> settings of a student, from a configuration file alone."""

    name = "TABLES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(table, Mapping) for table in value.values()):
            self.fail("students are tables of a configuration file: write [distill.students.NAME] there", param, ctx)
        return dict(value)


def student_tables(command: Command) -> Command:
    """Adds the tables of students, as `students`; they have no flag to type."""
    return click.option("--students", type=StudentTables(), hidden=True)(command)


def configs_of(
    ctx: click.Context,
    student: str | Sequence[str] | None,
    tables: Mapping[str, Mapping[str, Any]] | None,
    **given: Any,
) -> list[DistillConfig]:
    """Returns the configuration of every student that a command asks for.

    One that was not asked for by a table learns in `out` itself, each of several in a folder of its own in it.

    Args:
        ctx: of the command, whose options say how the values of a table are read.
        student: one specification, several, or none.
        tables: name -> own settings.
        given: the other settings, by field.

    Raises:
        UsageError: names that cannot be folders, the same student twice, or a setting that students share.
    """
    if tables and student is not None:
        raise UsageError("students are named by --student and by tables of --config: use one of both")
    if tables:
        own = {name: _own_settings(ctx, name, table) for name, table in tables.items()}
    elif isinstance(student, Sequence) and not isinstance(student, str):
        own = {name: {"student": one} for name, one in zip(_names_of(student), student, strict=True)}
    else:
        return [DistillConfig(student=student, **given)]
    out: Path = given["out"]
    if (out / "run.json").exists():
        raise UsageError(f"--out {out} is the run of one student: name another folder for the runs of several")
    return [DistillConfig(**{**given, **settings, "out": out / name}) for name, settings in own.items()]


def _names_of(specifications: Sequence[str]) -> list[str]:
    """Returns a name for the folder of every student: that of its architecture, with its options where needed."""
    short = [_plain(specification.partition(":")[2].partition("?")[0]) for specification in specifications]
    whole = [_plain(specification.partition(":")[2]) for specification in specifications]
    names = [brief if short.count(brief) == 1 else full for brief, full in zip(short, whole, strict=True)]
    for specification, name in zip(specifications, names, strict=True):
        if names.count(name) > 1 or not _NAME.fullmatch(name):
            raise UsageError(
                f"--student {specification} is given twice, or its name is no name for a folder: name the students in "
                "a file for --config, in tables [distill.students.NAME]"
            )
    return names


def _plain(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", words).strip("-.")[:100]


def _own_settings(ctx: click.Context, name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Returns field -> value of what a table gives, each read as its flag would be."""
    where = f"[distill.students.{name}]"
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}: {name!r} cannot be the name of a folder: use letters, digits, . _ - and =")
    settings = settings_in(DistillConfig)
    allowed = {field.name for field in fields(DistillConfig) if settings[field.name].own} - {*_PLACES}
    options = {key_of(option): option for option in ctx.command.params if isinstance(option, click.Option)}
    own = {key: option for key, option in options.items() if option.name in allowed}
    found = {}
    for key, value in table.items():
        if key not in own:
            if key in options:
                raise UsageError(f"{where}: students that learn side by side share {key}: set it in [distill]")
            raise UsageError(f"{where}: {unknown_name('setting', key, own)}")
        option = own[key]
        if option.multiple and isinstance(value, Mapping):
            value = [f"{one}={number}" for one, number in value.items()]
        elif option.multiple:
            value = [value] if isinstance(value, str) else value
        found[str(option.name)] = option.process_value(ctx, value)
    return found
