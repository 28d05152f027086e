"""A corpus of real pictures and sentences in which every fiftieth one is bad, and what each bad one must be called."""

import itertools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.corpora.pictures import encoded, noise, png
from tests.corpora.webdataset import write_tar

DATA = Path(__file__).parents[3] / "shared" / "data"
EVERY = 50


@dataclass
class Corpus:
    """Two tars of pictures and two files of sentences.

    Attributes:
        images: the tars.
        texts: the files.
        keys: modality -> (source, key) of every sample, in plan order.
        bad: (modality, source, key) -> the status it must get.
    """

    images: tuple[Path, ...]
    texts: tuple[Path, ...]
    keys: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: {"image": [], "text": []})
    bad: dict[tuple[str, int, str], str] = field(default_factory=dict)


def write_corpus(folder: Path, *, num_images: int, num_texts: int) -> Corpus:
    """Writes the corpus under `folder`; two per cent of it, spread evenly, is bad."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(
        tuple(folder / f"pictures-{half}.tar" for half in "ab"),
        tuple(folder / f"sentences-{half}.txt" for half in "ab"),
    )
    pictures = _spoilt(list(itertools.islice(real_pictures(), num_images)), bad_pictures())
    sentences = _spoilt([f"sentence {i} of many".encode() for i in range(num_texts)], bad_sentences())
    for source, path in enumerate(corpus.images):
        members = []
        for number in range(*_half(source, num_images)):
            payload, status = pictures[number]
            key = f"{number:05d}"
            members.append((f"{key}.jpg", payload))
            _note(corpus, "image", source, key, status)
        write_tar(path, members)
    for source, path in enumerate(corpus.texts):
        lines = sentences[slice(*_half(source, num_texts))]
        path.write_bytes(b"".join(payload + b"\n" for payload, _ in lines))
        for number, (_, status) in enumerate(lines, start=1):
            _note(corpus, "text", source, str(number), status)
    return corpus


def real_pictures() -> Iterator[bytes]:
    """Yields photographs where there are some beside the project, then the demo's drawings, then made ones."""
    for name in ("unsplash_541_400px.tar", "cifar10_test_jpg.tar"):
        if (DATA / name).exists():
            with tarfile.open(DATA / name) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    if file is not None and member.name.lower().endswith((".jpg", ".jpeg")):
                        yield file.read()
    try:
        from pipeline.demo.pictures import draw, list_emoji

        yield from (draw(emoji) for emoji in list_emoji())
    except ImportError:
        pass
    for seed in itertools.count():
        yield encoded(noise(96 + seed % 64, 80 + seed % 48, seed), ("JPEG", "PNG", "WEBP")[seed % 3])


def bad_pictures() -> Iterator[tuple[bytes, str]]:
    """Yields bad payloads with the status that each must get, again and again, no two alike but the empty ones."""
    for number in itertools.count():
        whole = encoded(noise(120, 90, number), "JPEG")
        spoilt_png = bytearray(encoded(noise(30, 30, number), "PNG"))
        spoilt_png[spoilt_png.index(b"IDAT") + 20] ^= 1
        yield whole[: len(whole) // 2], "img-truncated"
        yield f"<!DOCTYPE html><html><body>404 number {number}</body></html>".encode(), "img-unknown-format"
        yield png(30_000, 30_000 + number), "img-too-many-pixels"
        yield b"", "img-empty"
        yield b"\x01" + np.random.default_rng(number).bytes(3000), "img-unknown-format"
        yield bytes(spoilt_png), "img-corrupt"
        yield b"%%PDF-1.7 %d\n" % number, "img-format-not-allowed"


def bad_sentences() -> Iterator[tuple[bytes, str]]:
    """Yields bad lines with the status that each must get, again and again."""
    for number in itertools.count():
        yield b"", "text-empty"
        yield b"word %d " % number * 12_000, "text-too-long"
        yield b"caf\xe9 %d" % number, "text-encoding"
        yield "\u200b\u2060 ".encode(), "text-empty"
        yield b"\x00\x07", "text-empty"
        yield b"%d" % number + b"y" * (1 << 20), "text-too-long"


def _spoilt(good: list[bytes], bad: Iterator[tuple[bytes, str]]) -> list[tuple[bytes, str]]:
    return [next(bad) if at % EVERY == 7 else (payload, "ok") for at, payload in enumerate(good)]


def _half(source: int, count: int) -> tuple[int, int]:
    # Not at a part's boundary: growing then starts a part that is shorter.
    middle = count * 2 // 5 + 3
    return (0, middle) if source == 0 else (middle, count)


def _note(corpus: Corpus, modality: str, source: int, key: str, status: str) -> None:
    corpus.keys[modality].append((source, key))
    if status != "ok":
        corpus.bad[modality, source, key] = status
