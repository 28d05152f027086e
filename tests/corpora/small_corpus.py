"""A small corpus that teaches something: pictures of coloured shapes, sentences about them, and a finished cache."""

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cache_schema.cache import Cache
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
SHAPES = ("disc", "square")
STUB = "python:tests.corpora.stub_teacher:make?dim=16"


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


def write_sources(folder: Path, *, num_images: int, num_texts: int) -> tuple[Path, Path]:
    """Writes a folder of PNGs and a file of sentences, and returns both."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for number in range(num_images):
        picture(number)[0].save(pictures / f"{number:04d}.png")
    sentences = folder / "sentences.txt"
    words = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    lines = [f"{words[i % len(words)][0]} {words[i % len(words)][1]}, number {i}" for i in range(num_texts)]
    sentences.write_text("\n".join(lines) + "\n")
    return pictures, sentences


def extract(cache: Path, pictures: Path, sentences: Path, *, teacher: str = STUB, part_rows: int = 16) -> Cache:
    """Fills a new cache in this process and returns it."""
    config = ExtractConfig(
        cache=cache,
        images=(str(pictures),),
        texts=(str(sentences),),
        teacher=teacher,
        part_rows=part_rows,
        decode_workers=0,
        num_threads=1,
        index=False,
    )
    with open_job(config) as job:
        with job.make_worker() as worker:
            for task in job.tasks:
                worker(task)
        job.finish()
    return Cache.open(cache)


@functools.cache
def small_cache(folder: Path) -> Cache:
    """Returns a cache of 48 pictures and 80 sentences under `folder`, made once."""
    return extract(folder / "cache", *write_sources(folder, num_images=48, num_texts=80))
