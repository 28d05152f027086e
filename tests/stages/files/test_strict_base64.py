"""Base64 is what the standard library writes, and nothing else."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.files.strict_base64 import decoded_base64


@given(data=st.binary(max_size=40))
def test_what_was_encoded_is_decoded(data: bytes) -> None:
    assert decoded_base64(base64.b64encode(data)) == data


@pytest.mark.parametrize(
    "encoded", [b"QUJD=", b"QUJD==", b"QUJD====", b"QUI", b"QUJD\n", b"QU JD", b"=QUJD", b"QUI=QUJD", b"QU-_", b"===="]
)
def test_what_is_not_padded_as_it_must_be_or_has_other_characters_is_none(encoded: bytes) -> None:
    assert decoded_base64(encoded) is None
