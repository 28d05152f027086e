"""Evaluation sets in the layout of CLIP_benchmark, and the one whose classes are the small corpus's shapes."""

from collections.abc import Collection, Sequence
from pathlib import Path

from tests.corpora.pictures import encoded
from tests.corpora.small_corpus import WORDS, picture
from tests.corpora.webdataset import write_tar

CLASSES = WORDS
TEMPLATES = ("a {c}.", "the {c} here")


def write_evaluation_set(
    folder: Path,
    class_names: Sequence[str],
    templates: Sequence[str],
    shards: Sequence[Sequence[tuple[str, bytes, int]]],
) -> Path:
    """Writes classes, templates and a tar of (file name, payload, label) for every shard; returns `folder`."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(class_names))
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    (folder / "test" / "nshards.txt").write_text(f"{len(shards)}\n")
    for place, shard in enumerate(shards):
        members = []
        for name, payload, label in shard:
            members += [(name, payload), (f"{Path(name).stem}.cls", str(label).encode())]
        write_tar(folder / "test" / f"{place}.tar", members)
    return folder


def write_held_out(folder: Path, *, numbers: Sequence[int] = range(100, 130), damaged: Collection[int] = ()) -> Path:
    """Writes pictures of shapes that no student has seen, the even numbers in one tar and the odd ones in another."""
    samples = []
    for number in numbers:
        image, colour, shape = picture(number)
        payload = b"no picture" if number in damaged else encoded(image, "PNG")
        samples.append((f"{number:05d}.png", payload, CLASSES.index(f"{colour} {shape}")))
    return write_evaluation_set(folder, CLASSES, TEMPLATES, [samples[::2], samples[1::2]])
