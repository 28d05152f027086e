"""Base64 as RFC 4648 has it, alike in every Python."""

import binascii


def decoded_base64(encoded: bytes) -> bytes | None:
    """Returns the bytes that padded base64 without white space spells, b"" for nothing; None where it is none."""
    # Python 3.11 takes padding behind what needs none, as in `QUJD=`.
    if len(encoded) % 4 or encoded.endswith(b"==="):
        return None
    try:
        return binascii.a2b_base64(encoded, strict_mode=True) if encoded else b""
    except binascii.Error:
        return None
