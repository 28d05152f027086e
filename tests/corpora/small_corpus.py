"""A small corpus that teaches something: pictures of coloured shapes, sentences about them, and a finished cache."""

import functools
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cache_schema.cache import Cache
from tests.corpora.extracts import extracted_cache

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
SHAPES = ("disc", "square")
WORDS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


def picture(number: int, *, size: int = 40) -> tuple[Image.Image, str, str]:
    """Returns picture `number` with its colour and shape; place and background vary."""
    rng = np.random.default_rng([7, number])
    colour = list(COLOURS)[number % len(COLOURS)]
    shape = SHAPES[number // len(COLOURS) % len(SHAPES)]
    image = Image.new("RGB", (size, size), tuple(rng.integers(200, 256, 3).tolist()))
    left, top = rng.integers(2, size // 3, 2).tolist()
    box = (left, top, left + size // 2, top + size // 2)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=COLOURS[colour])
    return image, colour, shape


def write_sources(
    folder: Path,
    *,
    num_images: int,
    num_texts: int,
    empty_images: Collection[int] = (),
    empty_texts: Collection[int] = (),
) -> tuple[Path, Path]:
    """Writes a folder of PNGs and a file of sentences, and returns both.

    Args:
        folder: where `pictures`, with 0000.png and so on, and `sentences.txt` are made.
        num_images: how many pictures.
        num_texts: how many sentences.
        empty_images: numbers of the files that hold nothing.
        empty_texts: numbers, from 0, of the lines that hold nothing.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for number in range(num_images):
        path = pictures / f"{number:04d}.png"
        if number in empty_images:
            path.touch()
        else:
            picture(number)[0].save(path)
    return pictures, write_sentences(folder / "sentences.txt", num_texts, empty=empty_texts)


def write_sentences(path: Path, num_texts: int, *, empty: Collection[int] = ()) -> Path:
    """Writes lines such as "red disc, number 0", those of `empty` without anything, and returns `path`."""
    lines = [f"{WORDS[i % len(WORDS)]}, number {i}" if i not in empty else "" for i in range(num_texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_random_sentences(path: Path, num_texts: int) -> Path:
    """Writes sentences of nine words drawn at random, which compress about as well as real ones; returns `path`."""
    words = ["red", "green", "small", "large", "house", "tree", "river", "running", "beside", "under"]
    rng = np.random.default_rng(0)
    path.write_text("".join(" ".join(rng.choice(words, 9)) + "\n" for _ in range(num_texts)))
    return path


def write_least_sources(folder: Path) -> Path:
    """Writes the least that has three parts of eight rows into `folder`, and returns it.

    Six pictures, one of them empty, and ten sentences, two of them empty; to grow by, eleven more in `more.txt`.
    """
    write_sources(folder, num_images=6, num_texts=10, empty_images=(3,), empty_texts=(0, 7))
    (folder / "more.txt").write_text("".join(f"another sentence {i}\n" for i in range(11)))
    return folder


@functools.cache
def small_cache(folder: Path) -> Cache:
    """Returns a cache of 48 pictures and 80 sentences under `folder`, made once."""
    return extracted_cache(folder / "cache", *write_sources(folder, num_images=48, num_texts=80))
