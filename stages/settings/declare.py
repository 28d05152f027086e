"""Declares the fields of a configuration, each with everything that is to be known of it."""

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, dataclass_transform

Configuration = TypeVar("Configuration")

LARGEST_COUNT = 2**31 - 1
_KEY = "setting"
_WIDTH = 116


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything about a field of a configuration but its name, type and default.

    Attributes:
        help: a few words that the flag is shown with.
        more: what else a reader of the code wants to know.
        if_none: what is done when the value is None, shown with the flag as its default.
        least: smallest number allowed; of every number where there are several.
        above: every number allowed is greater.
        most: greatest number allowed.
        choices: the words allowed; () means that no list can hold them.
        flag: as typed, with `/` before the one that switches off; "" makes one from the field's name, None makes none.
        after: field behind whose flag this one is shown; "" keeps the order of the fields.
        metavar: how help calls the value; "" leaves it to the type.
        each: what messages call one of several numbers, such as "the weight of loss".
        rare: whether only `--help-all` shows the flag.
        running: whether it changes only where, how fast and how safely something is computed, and not the result.
        own: whether each of several students that learn side by side may have its own value.
        recorded: whether a record keeps the value itself; if not, whoever makes one adds what the value stands for.
    """

    help: str
    more: str = ""
    if_none: str = ""
    least: float | None = None
    above: float | None = None
    most: float = LARGEST_COUNT
    choices: tuple[str, ...] = ()
    flag: str | None = ""
    after: str = ""
    metavar: str = ""
    each: str = ""
    rare: bool = False
    running: bool = False
    own: bool = False
    recorded: bool = True


def setting(*, default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING, **about: Any) -> Any:
    """Returns a dataclass field about which `Setting(**about)` is true; without a default it must be given."""
    return dataclasses.field(default=default, default_factory=default_factory, metadata={_KEY: Setting(**about)})


running = partial(setting, running=True)
"""Declares a setting that does not change the result."""


own = partial(setting, own=True)
"""Declares a setting that changes the result, of which each of several students may have its own value."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting, running, own))
def configuration(kind: type[Configuration]) -> type[Configuration]:
    """Makes a frozen dataclass of `kind`, whose fields are settings; its docstring gains their words."""
    made = dataclass(frozen=True, kw_only=True)(kind)
    made.__doc__ = "\n".join((inspect.cleandoc(kind.__doc__ or ""), "", "Attributes:", *_described(made), ""))
    return made


def settings_in(kind: type) -> dict[str, Setting]:
    """Returns field name -> setting of a configuration, in the order of its fields."""
    return {field.name: field.metadata[_KEY] for field in dataclasses.fields(kind)}


def _described(kind: type) -> Iterator[str]:
    for name, about in settings_in(kind).items():
        none = f"None: {about.if_none}." if about.if_none else ""
        words = " ".join(filter(None, (f"{name}: {about.help}", about.more, none)))
        yield textwrap.fill(words, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)
