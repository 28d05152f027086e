"""From the settings of a configuration to the flags of a command, and back to the words of a command line."""

import dataclasses
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click

from pipeline.options.shared import Command, Flag
from pipeline.options.types import Choice, Count, FilePath, NamedNumber, Number, Text
from stages.settings.declare import Setting, settings_in

Types = Mapping[str, click.ParamType]


def settings_of(
    configuration: type,
    *,
    only: Collection[str] | None = None,
    leave_out: Collection[str] = (),
    rare: bool | None = None,
    types_of: Types | None = None,
    repeated: Collection[str] = (),
) -> Callable[[Command], Command]:
    """Adds a flag for every setting of `configuration`, in their order; the command gets values by the fields' names.

    A setting that says that it has no flag gets none. A field without a default must be given.

    Args:
        configuration: made with `stages.settings.declare.configuration`.
        only: fields to take; None takes all.
        leave_out: fields not to take.
        rare: take only the rare ones, or only the others; None takes both.
        types_of: field -> type of its values, where the annotation of the field does not say it.
        repeated: fields of one value whose flag may be given more than once; the command gets a tuple then.
    """
    settings = settings_in(configuration)
    taken = [
        name
        for name in in_order_of_flags(settings)
        if (only is None or name in only)
        and name not in leave_out
        and (rare is None or settings[name].rare == rare)
        and flag_of(name, settings[name]) is not None
    ]

    def add(command: Command) -> Command:
        for name in reversed(taken):
            several = name in repeated
            command = _option(configuration, name, (types_of or {}).get(name), several=several)(command)
        return command

    return add


def in_order_of_flags(settings: Mapping[str, Setting]) -> list[str]:
    """Returns the names of `settings` in their order, but every one with `after` behind the one named there."""
    names = [name for name, about in settings.items() if not about.after]
    for name, about in settings.items():
        if about.after:
            names.insert(names.index(about.after) + 1, name)
    return names


def flag_of(name: str, about: Setting) -> str | None:
    """Returns the flag of the field `name` as it is typed, with `/` before the one that switches off, or None."""
    return f"--{name.replace('_', '-')}" if about.flag == "" else about.flag


def type_of(annotation: Any, about: Setting) -> click.ParamType:
    """Returns the type of the values that are typed for a setting annotated with `annotation`, None left aside."""
    if about.choices:
        return Choice(about.choices)
    if annotation is int:
        assert about.least is not None and about.above is None, "a count says the least it can be"
        return Count(int(about.least), int(about.most))
    if annotation is float:
        return _number(about)
    if annotation is Path:
        return FilePath(about.metavar or "DIR")
    if get_origin(annotation) is Mapping:
        return NamedNumber(_number(about))
    assert annotation in (str, tuple[str, ...]), f"no flag can hold {annotation}"
    return Text(about.metavar or "NAME")


def words_of(configuration: Any) -> Iterator[str]:
    """Yields the words of a command line that ask for `configuration`: flags and values that are no defaults."""
    settings = settings_in(type(configuration))
    fields = {field.name: field for field in dataclasses.fields(configuration)}
    for name in in_order_of_flags(settings):
        value, flag = getattr(configuration, name), flag_of(name, settings[name])
        if flag is None or value == fields[name].default:
            continue
        on, _, off = flag.partition("/")
        if isinstance(value, bool):
            yield on if value else off
        elif isinstance(value, Mapping):
            yield from (word for key, number in value.items() for word in (on, f"{key}={number}"))
        else:
            yield from (word for one in (value if isinstance(value, tuple) else (value,)) for word in (on, str(one)))


def _option(
    configuration: type, name: str, kind: click.ParamType | None, *, several: bool
) -> Callable[[Command], Command]:
    (field,) = (field for field in dataclasses.fields(configuration) if field.name == name)
    about = settings_in(configuration)[name]
    annotation = _without_none(get_type_hints(configuration)[name])
    told: dict[str, Any] = {"help": f"{about.help} [default: {about.if_none}]" if about.if_none else about.help}
    if field.default is not dataclasses.MISSING and field.default not in (None, ()):
        told |= {"default": field.default, "show_default": True}
    if annotation is bool:
        told["is_flag"] = True
    else:
        told |= {"type": kind or type_of(annotation, about), "multiple": _is_repeated(annotation)}
    if several:
        told |= {"multiple": True, "callback": _alone_or_all}
    if get_origin(annotation) is Mapping:
        told["callback"] = _as_mapping
    required = field.default is field.default_factory is dataclasses.MISSING
    return click.option(flag_of(name, about) or "", name, cls=Flag, rare=about.rare, required=required, **told)


def _number(about: Setting) -> Number:
    return Number(above=about.above, at_least=about.least, at_most=about.most)


def _is_repeated(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, Mapping)


def _as_mapping(ctx: click.Context, param: click.Parameter, value: tuple[tuple[str, float], ...]) -> dict[str, float]:
    return dict(value)


def _alone_or_all(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return value if len(value) > 1 else next(iter(value), None)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) is types.UnionType:
        (annotation,) = (one for one in get_args(annotation) if one is not types.NoneType)
    return annotation
