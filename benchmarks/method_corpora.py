"""The two corpora of `benchmarks.method`: pictures to train on, class vectors, and labelled pictures to judge by.

Shape letters: N pictures, K classes, D width of a feature, H and W pixels, C colours.
"""

import io
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from benchmarks.commands import run_pipeline
from cache_schema import atomic
from cache_schema.binding import Binding
from cache_schema.cache import Cache
from cache_schema.features import unit_rows
from cache_schema.json_file import read_json
from cache_schema.selections import Selection, write_selection
from pipeline.demo.data import DataConfig, training_labels
from pipeline.demo.imagenet import checkpoint_of
from pipeline.demo.steps import NEIGHBOURS
from pipeline.demo.teacher import IMAGE_ARCHITECTURE, make
from stages.distill.payloads import Originals
from stages.evaluate.data import open_evaluation_set
from stages.evaluate.metrics import top1
from stages.export.model_folder import load_trained
from stages.images.preprocess import Preprocess, normalise, prepare_pixels
from stages.students.encoder import StudentEncoder
from stages.teachers.class_vectors import class_vectors

REAL_FILES = (
    "cifar10_500img_openai_vitb32.npz",
    "cifar10_test_jpg.tar",
    "class_text_openai_vitb32.npz",
    "unsplash_541_400px.tar",
    "unsplash_541img_openai_vitb32.npz",
)
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_IN_LVIS = (
    *("airplane", "car_(automobile)", "bird", "cat", "deer", "dog", "frog", "horse", "cargo_ship", "truck"),
)
VALIDATION_NUMBERS = range(100, 200)
TEST_NUMBERS = range(200, 400)
"""Of every class, by the number in its file name. The 500 to train on have numbers below 60."""

NUM_FOLDS = 5
_BATCH = 256


@dataclass(frozen=True)
class Labelled:
    """Pictures that are judged by.

    Attributes:
        pictures: N of them, upright, RGB.
        labels_N: the places of their classes.
        teacher_ND: the teacher's features of them, unit norm, where they are known.
    """

    pictures: tuple[Image.Image, ...]
    labels_N: NDArray[np.int64]
    teacher_ND: NDArray[np.float32] | None = None
    _prepared: dict[str, NDArray[np.uint8]] = field(default_factory=dict, repr=False, compare=False)

    def judge(self, run: Path, class_KD: NDArray[np.float32]) -> dict[str, float]:
        """Returns of the trained student of `run` its `accuracy`: the share of pictures whose class is the nearest.

        And `cosine`, the mean with the teacher's features, where these are known.
        """
        encoder = StudentEncoder(load_trained(run))
        pixels_NHWC = self._pixels(encoder.preprocess)
        image_ND = unit_rows(
            np.concatenate(
                [
                    encoder.encode_images(normalise(pixels_NHWC[first : first + _BATCH], encoder.preprocess))
                    for first in range(0, len(pixels_NHWC), _BATCH)
                ]
            )
        )
        judgement = {"accuracy": top1(image_ND @ class_KD.T, self.labels_N)}
        if self.teacher_ND is not None:
            judgement["cosine"] = float((image_ND * self.teacher_ND).sum(axis=1).mean())
        return judgement

    def _pixels(self, preprocess: Preprocess) -> NDArray[np.uint8]:
        key = str(preprocess)
        if key not in self._prepared:
            self._prepared[key] = np.stack([prepare_pixels(picture, preprocess) for picture in self.pictures])
        return self._prepared[key]


@dataclass(frozen=True)
class Corpus:
    """What students learn from and are judged by.

    Attributes:
        name: `real` or `demo`.
        cache: the folder of the cache.
        class_KD: the teacher's class vectors, float32, unit norm.
        judged_by: `validation` (to choose by) or `test` -> labelled pictures that no student of it sees.
        teacher_top1: of the teacher, and `teacher_on` says on which pictures.
        images: selection of images that students see; None for all.
    """

    name: str
    cache: Path
    class_KD: NDArray[np.float32]
    judged_by: Mapping[str, Labelled]
    teacher_top1: float
    teacher_on: str
    images: str | None = None


def real_corpus(data: Path, work: Path) -> Corpus:
    """Returns 1,041 pictures with features of OpenAI's CLIP ViT-B/32 and 2,000 class sentences, through `import`.

    Raises:
        SystemExit: a file of `REAL_FILES` is not in the folder `data`; says which, and what to do.
    """
    missing = [name for name in REAL_FILES if not (data / name).is_file()]
    if missing:
        raise SystemExit(
            f"{data} lacks {', '.join(missing)}: put the files that docs/distilling.md describes there, or drop --real"
        )
    cifar = np.load(data / REAL_FILES[0], allow_pickle=False)
    texts = np.load(data / REAL_FILES[2], allow_pickle=False)
    cache = work / "real-cache"
    if not (cache / "cache.json").exists():
        _import_real(data, work / "real-given", cifar, texts, cache)
        _mine(cache)
    names = texts["lvis_names"].tolist()
    lvis_KD = unit_rows(texts["detic_lvis_v1_clip_a+cname"].astype(np.float32))
    class_KD = lvis_KD[[names.index(name) for name in CIFAR_IN_LVIS]]
    return Corpus(
        name="real",
        cache=cache,
        class_KD=class_KD,
        judged_by={
            "validation": _cifar(data / REAL_FILES[1], VALIDATION_NUMBERS),
            "test": _cifar(data / REAL_FILES[1], TEST_NUMBERS),
        },
        teacher_top1=top1(unit_rows(cifar["image_emb"]) @ class_KD.T, cifar["label"]),
        teacher_on="the 500 CIFAR pictures that it has features of, which students train on",
    )


def _import_real(data: Path, given: Path, cifar: Any, texts: Any, cache: Path) -> None:
    """Writes the features as a user's own would come, and imports them."""
    given.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for place, (pixels, label) in enumerate(zip(cifar["image_u8"], cifar["label"].tolist(), strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        pictures[f"{place:03}-{CIFAR_CLASSES[label]}.png"] = buffer.getvalue()
    _write_tar(given / "cifar.tar", pictures)
    _write_features(given / "cifar", cifar["image_emb"], [Path(name).stem for name in pictures])
    unsplash = np.load(data / REAL_FILES[4], allow_pickle=False)
    names = [Path(name).stem for name in unsplash["image_file"].tolist()]
    _write_features(given / "unsplash", unsplash["image_emb"], names)
    sentences = [
        prefix + name.partition(",")[0]
        for prefix in ("a ", "a photo of a ")
        for name in texts["imagenet_names"].tolist()
    ]
    vectors = np.concatenate([texts["imagenet_a_name"], texts["imagenet_a_photo_of_a_name"]])
    _write_features(given / "sentences", vectors, [f"{place:04}" for place in range(len(sentences))], sentences)
    options: list[object] = ["--teacher-name", "openai-ViT-B-32", "--cache", cache, "--logit-scale", 100]
    for pixels_of, features in ((given / "cifar.tar", "cifar"), (data / REAL_FILES[3], "unsplash")):
        options += ["--images", pixels_of, "--image-features", f"npy:{given / features}.npy"]
    run_pipeline("import", *options, "--text-features", f"npy:{given / 'sentences'}.npy")


def _write_features(
    path: Path, features_ND: NDArray[np.floating], keys: list[str], texts: list[str] | None = None
) -> None:
    np.save(path.with_suffix(".npy"), unit_rows(features_ND.astype(np.float32)))
    columns = {"key": keys, **({} if texts is None else {"text": texts})}
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))


def _write_tar(path: Path, payloads: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, payload in payloads.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def _mine(cache: Path) -> None:
    run_pipeline("mine", "--cache", cache, "--from", "image", "--to", "text", "--k", 32, "--name", NEIGHBOURS)


def _cifar(path: Path, numbers: range) -> Labelled:
    """Returns the pictures `test/CLASS/NUMBER.jpg` of a tar."""
    with tarfile.open(path) as tar:
        wanted = [
            (label, f"test/{name}/{number:04}.jpg") for label, name in enumerate(CIFAR_CLASSES) for number in numbers
        ]
        pictures = [Image.open(tar.extractfile(name)).convert("RGB") for _, name in wanted]  # type: ignore[arg-type]
    return Labelled(tuple(pictures), np.array([label for label, _ in wanted]))


def demo_corpus(demo: Path, work: Path, *, fold: int = 0) -> Corpus:
    """Returns the demo's training pictures, a fifth of which students do not see, to choose by.

    The demo's own held-out pictures are the test. Its cache is copied, so that only the copy gets the selection.

    Args:
        demo: the folder that `pipeline demo --out` filled.
        work: for the copy.
        fold: which fifth is kept, from 0.

    Raises:
        SystemExit: `demo` is none.
    """
    if not (demo / "data" / "data.json").is_file() or not (demo / "cache" / "cache.json").is_file():
        raise SystemExit(f"{demo} holds no finished demo: make one with `pipeline demo --out {demo}`, or drop --demo")
    copied = work / "demo-cache"
    if not copied.exists():
        shutil.copytree(demo / "cache", copied)
    cache = Cache.open(copied)
    images = cache.array("image")
    rows = images.ok_rows()
    labels_N = np.array(training_labels(DataConfig(**read_json(demo / "data" / "data.json")["config"])))
    fold_N = np.random.default_rng([fold, NUM_FOLDS]).permutation(len(rows)) % NUM_FOLDS
    name = f"without-fold-{fold}"
    if name not in cache.layout.selection_names():
        method = {"name": "without a fold", "fold": fold, "of": NUM_FOLDS}
        write_selection(cache, Selection(name, Binding.of(images), method, {}, rows[fold_N != fold]))
    kept = rows[fold_N == fold]
    payloads = [
        Originals().payload(row, location) for row, location in zip(kept.tolist(), cache.locations(kept), strict=True)
    ]
    kept_labels_N = labels_N[fold_N == fold]
    kept_ND = images.features.gather_unit(kept)
    held_out = open_evaluation_set(demo / "data" / "held-out")
    pictures = list(held_out.pictures())
    teacher = make(str(demo / "data" / "alignment.npz"))
    class_KD = class_vectors(teacher, held_out.prompts(), batch_size=_BATCH)
    return Corpus(
        name="demo",
        cache=copied,
        class_KD=class_KD,
        judged_by={
            "validation": Labelled(tuple(map(_opened, payloads)), kept_labels_N, kept_ND),
            "test": Labelled(
                tuple(_opened(picture.payload) for picture in pictures),
                np.array([picture.label for picture in pictures]),
            ),
        },
        teacher_top1=top1(kept_ND @ class_KD.T, kept_labels_N),
        teacher_on="the pictures to choose by",
        images=name,
    )


def start_weights(work: Path) -> Path:
    """Returns a file of the ImageNet weights that the demo's teacher begins with, for `--init`; writes it once."""
    path = work / "imagenet.safetensors"
    if not path.exists():
        atomic.make_folder(work)
        atomic.publish_bytes(path, checkpoint_of(IMAGE_ARCHITECTURE))
    return path


def _opened(payload: bytes) -> Image.Image:
    return Image.open(io.BytesIO(payload)).convert("RGB")
