"""JSON comes in strictly or not at all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_schema import atomic
from cache_schema.errors import DamagedError
from cache_schema.json_file import canonical_json, parse_json, read_sealed, seal, typed

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_what_is_written_canonically_is_read_back_equal(value: object) -> None:
    assert parse_json(canonical_json(value), "here") == value


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"a": 1, "a": 2}', b"NaN", b"-Infinity", b"1e999", b"9" * 30, b"\xff", b"[" * 100_000],
    ids=["empty", "cut", "twice the key", "NaN", "infinity", "overflow", "huge integer", "not UTF-8", "deep"],
)
def test_json_that_is_not_strict_is_damage(data: bytes) -> None:
    with pytest.raises(DamagedError, match="here is damaged"):
        parse_json(data, "here")


def test_any_changed_value_breaks_the_seal(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    atomic.publish_json(path, seal({"rows": 100, "names": ["a", "b"]}))
    assert read_sealed(path) == {"rows": 100, "names": ["a", "b"]}
    for old, new in ((b"100", b"101"), (b'"a"', b'"c"'), (b'"rows"', b'"rowz"')):
        good = path.read_bytes()
        path.write_bytes(good.replace(old, new))
        with pytest.raises(DamagedError, match="seal"):
            read_sealed(path)
        path.write_bytes(good)


@dataclass(frozen=True)
class Seen:
    count: int
    share: float
    name: str
    is_whole: bool = True
    rest: tuple[int, ...] = ()


def test_a_dataclass_of_plain_fields_comes_back_and_whole_shares_are_numbers_too() -> None:
    assert typed(Seen, {"count": 1, "share": 1, "name": ""}) == Seen(1, 1, "")
    assert typed(Seen, {"count": 1, "share": 0.5, "name": "a", "rest": [1]}).share == 0.5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": "1"}, "count is '1', which is no int"),
        ({"count": 1.0}, "count is 1.0, which is no int"),
        ({"count": True}, "count is True, which is no int"),
        ({"share": None}, "share is None, which is no float"),
        ({"name": 1}, "name is 1, which is no str"),
        ({"is_whole": 1}, "is_whole is 1, which is no bool"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_field_of_another_type_or_too_many_is_an_error_that_names_it(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        typed(Seen, {"count": 1, "share": 0.5, "name": "a", **changes})
