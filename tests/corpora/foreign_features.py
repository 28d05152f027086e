"""Writes one set of features in every format that `pipeline import` reads, as other programs write them."""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache_schema.layout import Modality


def keys_of(num_rows: int, first: int = 0) -> list[str]:
    return [f"k{number:04d}" for number in range(first, first + num_rows)]


def sentences_of(num_rows: int, first: int = 0) -> list[str]:
    return [f"sentence № {number}" for number in range(first, first + num_rows)]


def vectors(num_rows: int, dim: int = 8, *, seed: int = 0) -> np.ndarray:
    """Returns float32 rows of norms around 10: foreign features need not be of unit norm."""
    values = np.random.default_rng(seed).standard_normal((num_rows, dim))
    return (10 * values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def write_feature_tsv(path: Path, keys: Sequence[str], features: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(keys, features.astype("<f4"), strict=True)
    path.write_text("".join(f"{key}\t{base64.b64encode(row.tobytes()).decode()}\n" for key, row in rows))
    return path


def write_text_tsv(path: Path, keys: Sequence[str], texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{k}\t{json.dumps({'captions': [t]})}\n" for k, t in zip(keys, texts, strict=True)))
    return path


def write_image_tsv(path: Path, keys: Sequence[str], payloads: Sequence[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{k}\t{base64.b64encode(p).decode()}\n" for k, p in zip(keys, payloads, strict=True)))
    return path


def write_clip_retrieval(
    folder: Path,
    paths: Sequence[str],
    captions: Sequence[str],
    image_features: np.ndarray,
    text_features: np.ndarray,
    *,
    rows_per_partition: int,
) -> Path:
    """Writes what clip-retrieval's inference writes: float16 of unit norm, numbers padded with zeros."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    firsts = range(0, len(paths), rows_per_partition)
    width = len(str(len(firsts)))
    for number, first in enumerate(firsts):
        part = slice(first, first + rows_per_partition)
        label = str(number).zfill(width)
        np.save(folder / "img_emb" / f"img_emb_{label}.npy", unit(image_features[part]).astype(np.float16))
        np.save(folder / "text_emb" / f"text_emb_{label}.npy", unit(text_features[part]).astype(np.float16))
        table = pa.table({"image_path": list(paths[part]), "caption": list(captions[part])})
        pq.write_table(table, folder / "metadata" / f"metadata_{label}.parquet")
    return folder


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)


def write_npy(path: Path, keys: Sequence[str], texts: Sequence[str], features: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, features)
    pq.write_table(pa.table({"key": list(keys), "text": list(texts)}), path.with_suffix(".parquet"), row_group_size=5)
    return path


def write_parquet(path: Path, keys: Sequence[str], texts: Sequence[str], features: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"key": list(keys), "embedding": list(features), "text": list(texts)}
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return path


def _example_clip_retrieval(folder: Path, modality: Modality, keys: list[str], features: np.ndarray) -> str:
    texts = sentences_of(len(keys))
    write_clip_retrieval(folder, keys, texts, features, features, rows_per_partition=len(keys))
    return f"clip-retrieval:{folder}"


EXAMPLES: dict[str, Callable[[Path, Modality, list[str], np.ndarray], str]] = {
    "clip-retrieval": _example_clip_retrieval,
    "dime-fm": lambda folder, _, keys, features: str(write_feature_tsv(folder / "f.feat.tsv", keys, features)),
    "npy": lambda folder, _, keys, features: str(write_npy(folder / "f.npy", keys, sentences_of(len(keys)), features)),
    "parquet": lambda folder, _, keys, features: str(
        write_parquet(folder / "f.parquet", keys, sentences_of(len(keys)), features)
    ),
}
"""Format -> writes rows of one file with these keys below a folder, and returns the URI that names it."""
