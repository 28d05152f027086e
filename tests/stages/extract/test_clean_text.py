"""Sentences are kept as they are but for white space and control characters; those without meaning get a status."""

import pytest

from stages.extract.clean_text import CleanText, clean_text
from stages.images.decode import Limits


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", "text-empty"),
        (b" \t \r", "text-empty"),
        ("\u200b\u200d\ufeff \u2060\u00ad".encode(), "text-empty"),
        (b"\x00\x00", "text-empty"),
        (b"x" * 100_000, "text-too-long"),
        (b"x " * 5_000_000, "text-too-long"),
        ("caf\u00e9".encode("latin-1"), "text-encoding"),
        (b"\xed\xa0\x80", "text-encoding"),
    ],
    ids=["empty", "white space", "zero width", "NUL only", "one long word", "10 MB", "latin-1", "surrogate"],
)
def test_texts_without_meaning_get_a_status(raw: bytes, status: str) -> None:
    clean = clean_text(raw, Limits())
    assert (clean.text, clean.status) == (None, status)


@pytest.mark.parametrize(
    "text", ["\u202eabc\u202c", "a\ufeffb", "&amp;lt;", "<|startoftext|> a", "\ufeffa", "e\u0301 \U0001f600"]
)
def test_odd_but_visible_text_is_kept_exactly(text: str) -> None:
    assert clean_text(text.encode(), Limits()) == CleanText(text)


def test_control_characters_become_spaces_and_are_noted() -> None:
    clean = clean_text(b"  a\x00b\x1b[31mred\tend\r", Limits())
    assert (clean.text, clean.reason) == ("a b [31mred end", "control-characters")
