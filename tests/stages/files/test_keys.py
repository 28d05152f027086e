"""Keys have the BLAKE2b hashes of the standard library, and the earliest repetition is the one that is found."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.files.keys import first_repeated, hash_of_key


@pytest.mark.parametrize("key", ["", "a", "图像/é.jpg", "e\u0301", "x" * 10_000, "\x00", "\udce9.jpg"])
def test_a_hash_is_the_first_eight_bytes_of_its_blake2b(key: str) -> None:
    raw = key.encode("utf-8", "surrogatepass")
    assert hash_of_key(key) == int(np.frombuffer(hashlib.blake2b(raw, digest_size=8).digest(), "<u8")[0])


def test_a_known_hash_stays_what_it_is_and_keys_are_never_normalised() -> None:
    assert hash_of_key("") == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little")
    assert len({hash_of_key(key) for key in ("é", "e\u0301", "É", " é", "é\n")}) == 5


@given(st.lists(st.integers(0, 6) | st.integers(2**64 - 3, 2**64 - 1), max_size=30))
def test_the_repetition_that_a_reader_meets_first_is_found(values: list[int]) -> None:
    expected = next(
        ((values.index(value), at) for at, value in enumerate(values) if value in values[:at]),
        None,
    )
    assert first_repeated(np.array(values, np.uint64)) == expected
