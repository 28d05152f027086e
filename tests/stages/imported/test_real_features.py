"""Real CLIP features, computed by others, through every format into a cache, and zero-shot from the cache alone.

Skips without the folder of real data, which is no part of the project.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_schema.cache import Cache
from cache_schema.verify import verify_cache
from stages.imported.config import ImportConfig
from tests.corpora.extracts import import_features
from tests.corpora.foreign_features import (
    write_clip_retrieval,
    write_feature_tsv,
    write_image_tsv,
    write_npy,
    write_parquet,
    write_text_tsv,
)
from tests.corpora.pictures import encoded

DATA = next((folder / "shared/data" for folder in Path(__file__).parents if (folder / "shared/data").is_dir()), None)
CLASSES = ("airplane", "car_(automobile)", "bird", "cat", "deer", "dog", "frog", "horse", "boat", "truck")
"""The classes of CIFAR-10 in the order of its labels, by their names in LVIS."""

pytestmark = pytest.mark.skipif(DATA is None, reason="needs real CLIP features beside the project")


class RealFeatures:
    """The 500 pictures of CIFAR-10 and the 1,203 class names of LVIS, with features of OpenAI's CLIP ViT-B/32."""

    def __init__(self, data: Path) -> None:
        cifar = np.load(data / "cifar10_500img_openai_vitb32.npz", allow_pickle=False)
        names = np.load(data / "class_text_openai_vitb32.npz", allow_pickle=False)
        self.image_keys = [f"{label}/{number:04d}" for number, label in enumerate(cifar["label"].tolist())]
        self.images = cifar["image_emb"]
        self.pixels = cifar["image_u8"]
        self.texts = [str(name) for name in names["lvis_names"]]
        self.text_features = names["detic_lvis_v1_clip_a+cname"]


@pytest.fixture(scope="module")
def real() -> RealFeatures:
    assert DATA is not None
    return RealFeatures(DATA)


def as_dime_fm(folder: Path, real: RealFeatures) -> dict[str, str]:
    keys = [f"t{number}" for number in range(len(real.texts))]
    payloads = [encoded(Image.fromarray(pixels), "PNG") for pixels in real.pixels]
    return {
        "image_features": str(write_feature_tsv(folder / "image.feat.tsv", real.image_keys, real.images)),
        "images": str(write_image_tsv(folder / "image.tsv", real.image_keys, payloads)),
        "text_features": str(write_feature_tsv(folder / "text.feat.tsv", keys, real.text_features)),
        "texts": str(write_text_tsv(folder / "text.tsv", keys, real.texts)),
    }


def as_clip_retrieval(folder: Path, real: RealFeatures) -> dict[str, str]:
    images, texts = (real.image_keys, real.images), (real.texts, real.text_features)
    for name, (captions, features) in (("images", images), ("texts", texts)):
        write_clip_retrieval(folder / name, captions, captions, features, features, rows_per_partition=120)
    return {"image_features": str(folder / "images"), "text_features": str(folder / "texts")}


def as_npy(folder: Path, real: RealFeatures) -> dict[str, str]:
    return {
        "image_features": str(write_npy(folder / "i.npy", real.image_keys, real.image_keys, real.images)),
        "text_features": str(write_npy(folder / "t.npy", real.texts, real.texts, real.text_features)),
    }


def as_parquet(folder: Path, real: RealFeatures) -> dict[str, str]:
    return {
        "image_features": str(write_parquet(folder / "i.parquet", real.image_keys, real.image_keys, real.images)),
        "text_features": str(write_parquet(folder / "t.parquet", real.texts, real.texts, real.text_features)),
    }


@pytest.mark.parametrize("write", [as_dime_fm, as_clip_retrieval, as_npy, as_parquet], ids=lambda write: write.__name__)
def test_zero_shot_from_imported_clip_features_is_as_good_as_from_the_files(
    write: Callable[[Path, RealFeatures], dict[str, str]], real: RealFeatures, tmp_path: Path
) -> None:
    uris = {name: (uri,) for name, uri in write(tmp_path / "features", real).items()}
    config = ImportConfig(
        cache=tmp_path / "cache", teacher_name="openai-ViT-B-32", part_rows=256, decode_workers=0, index=False, **uris
    )
    summary = import_features(config)
    assert [(array["ok"], array["bad"]) for array in summary.values()] == [(500, 0), (1203, 0)]
    assert verify_cache(config.cache) == []
    cache = Cache.open(config.cache)
    images, texts = cache.array("image"), cache.array("text")
    sentences = cache.texts(texts.ok_rows())
    class_KD = texts.features.gather_unit(texts.ok_rows()[[sentences.index(name) for name in CLASSES]])
    scores_NK = images.features.gather_unit(images.ok_rows()) @ class_KD.T
    labels_N = np.array([int(key.partition("/")[0]) for key in cache.keys("image", images.ok_rows())])
    accuracy = float((scores_NK.argmax(axis=1) == labels_N).mean())
    print(f"{write.__name__}: {accuracy:.3f}")
    assert accuracy == pytest.approx(0.902, abs=0.0045)


def test_real_photographs_in_a_tar_are_joined_to_their_real_features(tmp_path: Path) -> None:
    assert DATA is not None
    tar = DATA / "unsplash_541_400px.tar"
    stored = np.load(DATA / "unsplash_541img_openai_vitb32.npz", allow_pickle=False)
    keys = [f"{name.rpartition('.')[0]}" for name in stored["image_file"].tolist()]
    path = write_npy(tmp_path / "f.npy", keys[::-1], keys, stored["image_emb"][::-1])
    config = ImportConfig(
        cache=tmp_path / "cache",
        image_features=(str(path),),
        images=(str(tar),),
        teacher_name="openai-ViT-B-32",
        part_rows=512,
        index=False,
    )
    assert import_features(config)["image/openai-vit-b-32.v0"]["ok"] == 541
    cache = Cache.open(config.cache)
    rows = cache.array("image").ok_rows()
    expected = stored["image_emb"][[keys.index(key.rpartition("/")[2]) for key in cache.keys("image", rows)]]
    found = cache.array("image").features.gather_unit(rows)
    assert (found * expected).sum(axis=1).min() > 0.9999
    assert min(location.width for location in cache.locations(rows)) > 200
