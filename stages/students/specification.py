"""Reads what follows `kind:` in a student's specification: a name, then `?option=value&option=value`."""

from collections.abc import Callable, Mapping
from typing import Any

from cache_schema.errors import UsageError, unknown_name


def name_and_options(rest: str, readers: Mapping[str, Callable[[str], Any]]) -> tuple[str, dict[str, Any]]:
    """Returns the name and the options given, each read by its entry of `readers`.

    Raises:
        UsageError: an option is unknown, given twice, or its value cannot be read.
    """
    name, _, query = rest.partition("?")
    options: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        option, equals, value = item.partition("=")
        if option not in readers:
            raise unknown_name("option of student " + name, option, readers)
        if not equals or option in options:
            raise UsageError(f"student {rest!r} has the option {item!r}: write each option once, as name=value")
        try:
            options[option] = readers[option](value)
        except ValueError as error:
            raise UsageError(f"student {rest!r} has {option}={value!r}, which {error}: correct it") from error
    return name, options


def weights(value: str) -> str:
    """Returns the name of weights: a tag, a path, or true or false; raises `ValueError` when it is empty."""
    if not value.strip():
        raise ValueError("names nothing")
    return value


def pixels(value: str) -> int:
    """Returns a side in pixels; raises `ValueError` otherwise."""
    if not value.isdecimal() or not 1 <= int(value) <= 4096:
        raise ValueError("is not a whole number of pixels from 1 to 4096")
    return int(value)


def share(value: str) -> float:
    """Returns a number from 0 to below 1; raises `ValueError` otherwise."""
    try:
        number = float(value)
    except ValueError as error:
        raise ValueError("is not a number") from error
    if not 0 <= number < 1:
        raise ValueError("is not from 0 to below 1")
    return number


def switch(value: str) -> bool:
    """Returns whether `value` is "true"; raises `ValueError` when it is neither "true" nor "false"."""
    if value not in ("true", "false"):
        raise ValueError("is neither true nor false")
    return value == "true"
