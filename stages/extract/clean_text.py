"""From the bytes of a sentence to the text that a teacher gets, or to a status and a reason in fixed words."""

import re
import unicodedata
from dataclasses import dataclass

from stages.images.decode import Limits

CLEAN_TEXT_RULES = {"text": "UTF-8; control characters become spaces, then the ends are stripped of white space"}
"""What the recipe of sentences says of it."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class CleanText:
    """Clean text, or None with the status and reason why there is none."""

    text: str | None
    status: str = "ok"
    reason: str = ""


def clean_text(raw: bytes, limits: Limits) -> CleanText:
    """Returns the text of `raw` (UTF-8) after the recorded cleaning, or its status: never raises for bad bytes.

    Control characters (Unicode Cc: NUL, tab, escape …) become spaces and white space is stripped from both ends.
    All else stays exactly, direction marks and entities included. Text with nothing visible is `text-empty`.
    """
    if len(raw) > limits.max_text_bytes:
        return CleanText(None, "text-too-long", f"over {limits.max_text_bytes} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return CleanText(None, "text-encoding", "not UTF-8")
    cleaned, note = text.strip(), ""
    if _CONTROL.search(cleaned):
        cleaned, note = _CONTROL.sub(" ", cleaned).strip(), "control-characters"
    # What is left of ASCII after this is visible; the rest is asked character by character.
    if not cleaned or not (cleaned.isascii() or any(_is_visible(character) for character in cleaned)):
        return CleanText(None, "text-empty", "nothing visible")
    return CleanText(cleaned, reason=note)


def _is_visible(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) not in ("Cf", "Cc", "Zl", "Zp", "Zs")
