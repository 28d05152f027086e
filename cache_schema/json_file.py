"""Strict JSON: one canonical spelling going out, nothing ambiguous coming in."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from cache_schema.errors import DamagedError
from cache_schema.reading import read_file
from cache_schema.sha256 import sha256_of

Made = TypeVar("Made")

Json = Any
"""A value that JSON can hold: None, bool, int, float, str, and lists and string-keyed dicts of them."""


def canonical_json(value: Json) -> bytes:
    """Returns the one UTF-8 spelling of `value`: sorted keys, no spaces, no NaN. Equal values give equal bytes."""
    return _CANONICAL.encode(value).encode()


def readable_json(value: Json) -> bytes:
    """Returns `value` as indented UTF-8 JSON with sorted keys, for files that people look into."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()


def fingerprint_of(value: Json) -> str:
    """Returns the SHA-256 of the canonical spelling of `value`, as 64 hexadecimal digits."""
    return sha256_of(canonical_json(value))


def parse_json(data: bytes, where: str | Path) -> Json:
    """Returns the value spelt by `data`.

    Raises:
        DamagedError: `data` is not UTF-8 JSON, repeats a key, or holds NaN, an infinity or an integer beyond 64 bits.
    """
    try:
        return _STRICT.decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedError(
            f"{where} is damaged ({error}): restore it from a copy, or extract into a new cache"
        ) from error


def read_json(path: Path) -> Json:
    """Returns the value of the JSON file at `path`, checked as `parse_json` does.

    Raises:
        DamagedError: the file is missing or is not strict JSON.
        EnvironmentProblem: it cannot be read now.
    """
    data = read_file(path)
    if data is None:
        raise DamagedError(f"{path} is missing: restore it from a copy, or extract into a new cache")
    return parse_json(data, path)


def seal(value: dict[str, Json]) -> dict[str, Json]:
    """Returns `value` with a `seal`: the SHA-256 over everything else in it, which `read_sealed` checks."""
    return {**value, "seal": fingerprint_of(value)}


def read_sealed(path: Path) -> dict[str, Json]:
    """Returns the dict that was written to `path` through `seal`, without its seal.

    Raises:
        DamagedError: the file is missing, not strict JSON, or any byte that carries meaning has changed.
    """
    value = read_json(path)
    if not isinstance(value, dict) or "seal" not in value:
        raise DamagedError(f"{path} is not a sealed JSON object: restore it from a copy, or extract into a new cache")
    stored = value.pop("seal")
    if stored != fingerprint_of(value):
        raise DamagedError(
            f"{path} does not match its seal ({str(stored)[:12]}): it was edited or damaged; restore it from a copy, "
            "or extract into a new cache"
        )
    return value


def typed(kind: type[Made], value: Mapping[str, Json]) -> Made:
    """Returns the dataclass `kind` with these fields.

    Raises:
        TypeError: a field lacks, is none of `kind`, or is no int, float, str or bool where `kind` says that it is one.
    """
    made = kind(**value)
    plain: dict[str, tuple[type, ...]] = _plain_fields(kind)  # type: ignore[arg-type]
    for name, types in plain.items():
        found = getattr(made, name)
        # True is an int in Python, and no number in JSON.
        if not isinstance(found, types) or (isinstance(found, bool) and bool not in types):
            raise TypeError(f"{name} is {found!r}, which is no {types[0].__name__}")
    return made


@cache
def _plain_fields(kind: type) -> dict[str, tuple[type, ...]]:
    accepted: dict[type, tuple[type, ...]] = {int: (int,), float: (float, int), str: (str,), bool: (bool,)}
    return {name: accepted[hint] for name, hint in get_type_hints(kind).items() if hint in accepted}


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"holds {name}")


def _bounded_integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"holds an integer of {len(digits)} digits")
    return int(digits)


def _bounded_float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"holds a number out of range: {digits[:20]}")
    return number


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("repeats a key")
    return result


# Made once: a cache has thousands of records, and each is parsed and spelt again to check its seal.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_STRICT = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_int=_bounded_integer,
    parse_float=_bounded_float,
    object_pairs_hook=_unique_keys,
)
