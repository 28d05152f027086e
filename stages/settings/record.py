"""The values of a configuration, as a dict and as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cache_schema.json_file import Json
from stages.settings.declare import settings_in


def values_of(configuration: Any, kind: type | None = None) -> dict[str, Any]:
    """Returns field name -> value of `configuration`; with `kind`, which it inherits from, of the fields of that."""
    return {field.name: getattr(configuration, field.name) for field in dataclasses.fields(kind or configuration)}


def record_of(configuration: Any) -> dict[str, Json]:
    """Returns field name -> JSON of the settings whose records keep the value itself."""
    settings = settings_in(type(configuration))
    return {name: _json_of(value) for name, value in values_of(configuration).items() if settings[name].recorded}


def _json_of(value: Any) -> Json:
    if isinstance(value, Mapping):
        return {name: _json_of(of_name) for name, of_name in value.items()}
    if isinstance(value, tuple):
        return [_json_of(one) for one in value]
    assert value is None or isinstance(value, bool | int | float | str), f"{value!r} has no JSON of its own"
    return value
