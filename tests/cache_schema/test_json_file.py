"""JSON comes in strictly or not at all."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_schema import atomic
from cache_schema.errors import DamagedError
from cache_schema.json_file import canonical_json, parse_json, read_sealed, seal

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
