"""Checks that the values of a configuration are those that its settings allow."""

from collections.abc import Iterator, Mapping
from typing import Any

from cache_schema.errors import UsageError, unknown_name
from stages.settings.declare import Setting, settings_in


def check_settings(configuration: Any) -> None:
    """Raises `UsageError` for the first value out of its bounds or not among its choices; None passes."""
    for name, about in settings_in(type(configuration)).items():
        value = getattr(configuration, name)
        if about.choices and value is not None and value not in about.choices:
            raise unknown_name((about.flag or name).lstrip("-"), value, about.choices)
        for called, number in _numbers(name, value, about):
            # A comparison with nan is false.
            enough = number > about.above if about.above is not None else about.least is None or number >= about.least
            if not (enough and number <= about.most):
                raise UsageError(f"{called} is {_shown(number)}: use a value {_rule(about)}")


def _numbers(name: str, value: Any, about: Setting) -> Iterator[tuple[str, float]]:
    """Yields every number in `value`, with what it is called."""
    if isinstance(value, Mapping):
        yield from ((f"{about.each} {key}", number) for key, number in value.items())
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _rule(about: Setting) -> str:
    most = _shown(about.most)
    if about.above is not None:
        return f"above {_shown(about.above)}, at most {most}"
    return f"of at most {most}" if about.least is None else f"from {_shown(about.least)} to {most}"


def _shown(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)
