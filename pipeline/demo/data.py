"""Writes the demo's data as a user's own would look.

DATA/
  pictures-000.tar …    webdataset: emoji-0000.jpg …, to train on; no captions
  sentences.txt         one per line, not made for the pictures
  held-out/             evaluation set in the CLIP_benchmark layout, a fifth of the pictures, none of them to train on
  alignment.npz         the linear map of the composed teacher, fitted on all pictures
  data.json             written last: what is here, and how good the map is on pictures it was not fitted on
"""

import io
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_schema import atomic
from cache_schema.errors import MismatchError
from cache_schema.features import unit_rows
from cache_schema.json_file import read_json
from cache_schema.progress import Progress
from pipeline.demo.alignment import cross_fitted_features, fit_alignment
from pipeline.demo.classes import CLASS_NAMES, TEMPLATES, label_of, prompts_of
from pipeline.demo.pictures import Emoji, draw_all, list_emoji
from pipeline.demo.sentences import choose_sentences

_NUM_FOLDS = 5
_BATCH = 64


@dataclass(frozen=True)
class DataConfig:
    """The make-up of the demo's data. The only home of its defaults.

    Attributes:
        num_pictures: emoji at most; None takes all.
        num_sentences: lines of sentences.txt.
        held_out_share: part of every group that is held out.
        pictures_per_tar: at most.
        seed: the seed of the choice and the order of pictures and sentences.
    """

    num_pictures: int | None = None
    num_sentences: int = 20_000
    held_out_share: float = 0.2
    pictures_per_tar: int = 512
    seed: int = 0


@dataclass(frozen=True)
class DemoData:
    """The files of the demo's data, in the folder `path`."""

    path: Path

    @property
    def tars(self) -> str:
        """URI of all tars that are there, in the brace form that `pipeline extract` takes."""
        last = max(tar.stem.rpartition("-")[2] for tar in self.path.glob("pictures-*.tar"))
        return str(self.path / f"pictures-{{000..{last}}}.tar")

    @property
    def sentences(self) -> Path:
        return self.path / "sentences.txt"

    @property
    def held_out(self) -> Path:
        return self.path / "held-out"

    @property
    def alignment(self) -> Path:
        return self.path / "alignment.npz"

    @property
    def summary(self) -> Path:
        return self.path / "data.json"


def make_data(path: Path, config: DataConfig, *, progress: Progress) -> dict[str, Any]:
    """Writes the data into the folder `path`, unless it is there, and returns what data.json says.

    After a crash a rerun writes all of it again, the same bytes.

    Returns:
        JSON: `config`, `images` and `held_out` (numbers of pictures), `sentences`, and about the map `fitted_on`
        (pictures) and `cross_fitted_top1`: the accuracy over all pictures, each through a map fitted without it.

    Raises:
        MismatchError: the folder holds data of another configuration.
        EnvironmentProblem: a package is missing, or the disk is full.
    """
    data = DemoData(path)
    if data.summary.exists():
        there = read_json(data.summary)
        if there["config"] != asdict(config):
            raise MismatchError(
                f"{path} holds demo data made with {there['config']}, and {asdict(config)} is asked for: remove the "
                "folder or use another --out"
            )
        return there
    atomic.make_folder(path)
    emoji = _choose(config)
    drawn = _draw(emoji, progress)
    held_out_N = _held_out(emoji, config)
    _write_tars(data, [jpeg for jpeg, held in zip(drawn, held_out_N, strict=True) if not held], config)
    _write_evaluation_set(data, [(drawn[place], label_of(emoji[place].group)) for place in np.flatnonzero(held_out_N)])
    sentences = choose_sentences(config.num_sentences, seed=config.seed)
    atomic.publish_bytes(data.sentences, "".join(f"{line}\n" for line in sentences).encode())
    summary = {
        "config": asdict(config),
        "images": int((~held_out_N).sum()),
        "held_out": int(held_out_N.sum()),
        "sentences": len(sentences),
        **_fit(data, emoji, drawn, config, progress),
    }
    atomic.publish_json(data.summary, summary)
    return summary


def training_labels(config: DataConfig) -> list[int]:
    """Returns the labels of the pictures in the tars, in their order; no command is told them."""
    emoji = _choose(config)
    return [label_of(one.group) for one, held in zip(emoji, _held_out(emoji, config), strict=True) if not held]


def _choose(config: DataConfig) -> list[Emoji]:
    """Returns the emoji to draw, shuffled, so that tars mix the groups."""
    emoji = list_emoji()
    order = np.random.default_rng([config.seed, 1]).permutation(len(emoji))
    return [emoji[place] for place in order[: config.num_pictures]]


def _draw(emoji: list[Emoji], progress: Progress) -> list[bytes]:
    drawn = []
    for jpeg in draw_all(emoji):
        drawn.append(jpeg)
        progress(len(drawn), len(emoji), "pictures drawn")
    return drawn


def _held_out(emoji: list[Emoji], config: DataConfig) -> NDArray[np.bool_]:
    """Returns which pictures are held out: the same share of every group."""
    labels_N = np.array([label_of(one.group) for one in emoji])
    held_out_N = np.zeros(len(emoji), bool)
    rng = np.random.default_rng([config.seed, 2])
    for label in np.unique(labels_N):
        places = rng.permutation(np.flatnonzero(labels_N == label))
        held_out_N[places[: round(len(places) * config.held_out_share)]] = True
    return held_out_N


def _write_tars(data: DemoData, jpegs: list[bytes], config: DataConfig) -> None:
    numbered = iter(enumerate(jpegs))
    number = 0
    while some := list(islice(numbered, config.pictures_per_tar)):
        members = ((f"emoji-{place:04}.jpg", jpeg) for place, jpeg in some)
        atomic.publish_bytes(data.path / f"pictures-{number:03}.tar", _tar(members))
        number += 1


def _write_evaluation_set(data: DemoData, labelled: list[tuple[bytes, int]]) -> None:
    """Writes pictures with their labels as CLIP_benchmark's `webdataset_builder` does, one tar."""
    atomic.make_folder(data.held_out / "test")
    members = [
        member
        for place, (jpeg, label) in enumerate(labelled)
        for member in ((f"{place:04}.cls", str(label).encode()), (f"{place:04}.jpg", jpeg))
    ]
    for name, lines in (
        ("classnames.txt", CLASS_NAMES.values()),
        ("zeroshot_classification_templates.txt", TEMPLATES),
        ("test/nshards.txt", ["1"]),
    ):
        atomic.publish_bytes(data.held_out / name, "".join(f"{line}\n" for line in lines).encode())
    atomic.publish_bytes(data.held_out / "test" / "0.tar", _tar(members))


def _tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Returns a tar of `members` that depends on nothing else: no times, no users."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


def _fit(
    data: DemoData, emoji: list[Emoji], drawn: list[bytes], config: DataConfig, progress: Progress
) -> dict[str, Any]:
    """Fits the teacher's map on all pictures and their names, writes it, and returns how good it is."""
    from pipeline.demo.teacher import TextEncoder

    texts = TextEncoder()
    pooled_NF = _pooled(drawn, progress)
    names_ND = texts.encode([one.name for one in emoji])
    alignment = fit_alignment(pooled_NF, names_ND)
    prompts = [alignment.text_features(texts.encode(prompts_of(label))) for label in range(len(CLASS_NAMES))]
    class_KD = unit_rows(np.stack([of_class.mean(axis=0) for of_class in prompts]))
    labels_N = np.array([label_of(one.group) for one in emoji])
    num_folds = min(_NUM_FOLDS, len(emoji))
    image_ND = cross_fitted_features(pooled_NF, names_ND, num_folds=num_folds, seed=config.seed)
    atomic.publish_bytes(data.alignment, alignment.to_bytes())
    return {
        "fitted_on": len(emoji),
        "cross_fitted_top1": float(((image_ND @ class_KD.T).argmax(axis=1) == labels_N).mean()),
    }


def _pooled(drawn: list[bytes], progress: Progress) -> NDArray[np.float32]:
    """Returns pooled_NF: the image encoder's features of the pictures as they are in the tars."""
    from PIL import Image

    from pipeline.demo.teacher import ImageEncoder
    from stages.images.preprocess import normalise, prepare_pixels

    images = ImageEncoder()
    pooled = []
    for first in range(0, len(drawn), _BATCH):
        some = drawn[first : first + _BATCH]
        pixels = [prepare_pixels(Image.open(io.BytesIO(jpeg)).convert("RGB"), images.preprocess) for jpeg in some]
        pooled.append(images.encode(normalise(np.stack(pixels), images.preprocess)))
        progress(first + len(some), len(drawn), "pictures for the teacher's map")
    return np.concatenate(pooled)
