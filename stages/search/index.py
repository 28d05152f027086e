"""FAISS indexes of finished arrays: exact below 100,000 rows, inverted lists above, bound to what they were built from.

Ids in an index are row numbers of the cache. What is kept beside an index file is in `cache_schema.indexes`.

Shape letters: Q queries, D width of a feature, K neighbours.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_schema import atomic
from cache_schema.cache import CachedArray
from cache_schema.errors import DamagedError, EnvironmentProblem, RefusedError, UsageError
from cache_schema.features import FeatureReader
from cache_schema.indexes import REBUILD, IndexInfo, publish_index_info, require_current_index
from cache_schema.progress import Progress
from cache_schema.sha256 import sha256_of_file
from stages.device import AUTO, free_gpu_bytes
from stages.search.index_content import require_index_of

EXACT_BELOW_ROWS = 100_000
MIN_RECALL = 0.95
"""Recall@10 against exact search that the number of probed lists is raised for."""

INDEX_NAME = "nearest"
_TRAINING_ROWS_PER_LIST = 64
_RECALL_QUERIES = 256
_BATCH_ROWS = 16_384
_MAX_GPU_K = 2048
"""Neighbours and probed lists of one query on a GPU. Source: FAISS, `getMaxKSelection`."""

# Lists grow by reallocation, and FAISS takes 1.5 GiB for its own work.
_ROOM_ON_GPU = 1.5
_GPU_WORKSPACE_BYTES = 2 << 30


@dataclass(frozen=True)
class LoadedIndex:
    """An index in memory, and what it is."""

    info: IndexInfo
    faiss_index: Any
    on_gpu: bool = False


def build_index(
    array: CachedArray, *, device: str = "cpu", fence: atomic.Fence | None = None, progress: Progress | None = None
) -> IndexInfo:
    """Builds and publishes the index of a finished `array`; returns what it is. Replaces an index of other features.

    Args:
        array: finished, with at least one ok row.
        device: where inverted lists are trained and filled: "auto", "cpu" or "cuda".
        fence: the fence of the cache's lock.
        progress: called with (rows added, rows, unit).

    Raises:
        UnfinishedError: the array lacks parts.
        DamagedError: a feature is not the one that was committed.
        EnvironmentProblem: there is no GPU for "cuda", or the file cannot be written.
    """
    array.require_complete()
    rows = array.ok_rows()
    exact = len(rows) < EXACT_BELOW_ROWS
    device = index_device(device, 0 if exact else index_bytes(len(rows), array.recipe.dim))
    if device != "cpu":
        require_gpu()
    index = _flat(array, rows, progress) if exact else _inverted_lists(array, rows, device, progress)
    recall = 1.0 if exact else _tune_probes(array, rows, index)
    layout, place = array.cache.layout, (array.modality, array.name, INDEX_NAME)
    path = layout.index(*place)
    require_index_of(index, array, path)
    atomic.make_folder(path.parent)
    atomic.publish_with(path, lambda partial: load_faiss().write_index(index, str(partial)), fence=fence)
    sha256 = sha256_of_file(path)
    assert sha256 is not None, "it was just published"
    info = IndexInfo(
        modality=array.modality,
        array=array.name,
        fingerprint=array.recipe.fingerprint,
        digest=array.digest(),
        kind="flat" if exact else "ivf",
        num_rows=len(rows),
        dim=array.recipe.dim,
        num_lists=0 if exact else index.nlist,
        num_probes=0 if exact else index.nprobe,
        recall_at_10=recall,
        sha256=sha256,
        faiss=load_faiss().__version__,
    )
    publish_index_info(layout.index_sidecar(*place), info, fence=fence)
    return info


def build_missing_indexes(
    arrays: Iterable[CachedArray], *, device: str, fence: atomic.Fence | None, progress: Progress | None = None
) -> None:
    """Builds the index of every finished array of view 0 that has none of what it holds now; errors as `build_index`.

    Args:
        arrays: unfinished ones, further views and those without an ok row are passed over.
        device: where inverted lists are trained and filled: "auto", "cpu" or "cuda".
        fence: the fence of the cache's lock.
        progress: called with (rows added, rows, unit).
    """
    for array in arrays:
        if not array.recipe.view and not array.pending() and array.num_ok and not index_is_current(array):
            build_index(array, device=device, fence=fence, progress=progress)


def index_bytes(num_rows: int, dim: int) -> int:
    """Returns about how many bytes the file of an index of `num_rows` vectors has."""
    id_bytes = 8
    if num_rows < EXACT_BELOW_ROWS:
        return num_rows * (4 * dim + id_bytes)
    return num_rows * (2 * dim + id_bytes) + num_lists_for(num_rows) * (4 * dim + id_bytes)


def index_is_current(array: CachedArray) -> bool:
    """Returns whether `array` has an index of its present features. Reads the sidecar and the file's bytes."""
    try:
        require_current_index(array, INDEX_NAME)
    except (RefusedError, UsageError):
        return False
    return True


def load_index(array: CachedArray, *, device: str = "cpu") -> LoadedIndex:
    """Returns the index of `array`: the file is checked before any of its bytes are parsed, and then what it holds.

    Raises:
        UsageError, MismatchError, DamagedError: as `require_current_index`.
        DamagedError: it holds other things than its sidecar says, or than `array` has.
        EnvironmentProblem: there is no GPU for "cuda", or too little memory.
    """
    info = require_current_index(array, INDEX_NAME)
    path = array.cache.layout.index(array.modality, array.name, INDEX_NAME)
    index = _parsed(path)
    require_index_of(index, array, path)
    is_ivf = isinstance(index, load_faiss().IndexIVF)
    found = ("ivf", index.nlist, index.nprobe) if is_ivf else ("flat", 0, 0)
    if found != (info.kind, info.num_lists, info.num_probes):
        said = (info.kind, info.num_lists, info.num_probes)
        raise DamagedError(f"index {path} is {found}, its sidecar says {said} (kind, lists, probes): {REBUILD}")
    if device == "cpu":
        return LoadedIndex(info, index)
    require_gpu()
    return LoadedIndex(info, load_faiss().index_cpu_to_gpu(load_faiss().StandardGpuResources(), 0, index), on_gpu=True)


def _parsed(path: Path) -> Any:
    try:
        return load_faiss().read_index(str(path))
    except RuntimeError as error:
        raise DamagedError(f"index {path} is no index that FAISS reads ({error}): delete it and {REBUILD}") from error
    except MemoryError as error:
        raise EnvironmentProblem(f"index {path} does not fit into memory: free some and run again") from error


def search(index: LoadedIndex, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns row numbers ids_QK (int64, best first) and cosines scores_QK (float32) of the nearest rows.

    Args:
        index: loaded.
        queries_QD: unit vectors, float32.
        k: neighbours per query, at most the rows of the index (2,048 on a GPU).

    Raises:
        UsageError: `k` or the width is out of range, or a query is zero or not finite; says the limit.
    """
    info = index.info
    most = min(info.num_rows, _MAX_GPU_K) if index.on_gpu else info.num_rows
    if not 1 <= k <= most:
        raise UsageError(f"k is {k}: {info.modality} {info.array} has {info.num_rows:,} rows, use 1 to {most:,}")
    queries = np.ascontiguousarray(queries_QD, np.float32)
    if queries.ndim != 2 or queries.shape[1] != info.dim:
        raise UsageError(f"queries have shape {queries.shape}, {info.modality} {info.array} needs (Q, {info.dim})")
    norms = np.linalg.norm(queries, axis=1)
    unusable = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(unusable):
        what = "zero" if norms[unusable[0]] == 0 else "not finite"
        raise UsageError(f"a query is {what} (row {unusable[0]}), so nothing is near it: leave it out")
    scores, ids = index.faiss_index.search(queries, k)
    short = np.flatnonzero((ids < 0).any(axis=1))
    if len(short):
        ids[short], scores[short] = _search_everywhere(index, queries[short], k)
    return ids, scores


def _search_everywhere(index: LoadedIndex, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Searches all lists: the probed ones may hold fewer than k rows, and padding must never reach a caller."""
    inner = index.faiss_index
    before = inner.nprobe
    inner.nprobe = inner.nlist
    scores, ids = inner.search(queries, k)
    inner.nprobe = before
    assert (ids >= 0).all()
    return ids, scores


def index_device(
    name: str, num_bytes: int, *, num_probes: int = 0, num_gpus: int | None = None, free_bytes: int | None = None
) -> str:
    """Returns the device that `name` stands for: "auto" is a GPU that FAISS sees and whose memory holds the index.

    Args:
        name: "auto", "cpu" or "cuda".
        num_bytes: of the index; one of 0 has no use for a GPU.
        num_probes: lists that a search looks into; GPUs look into a limited number of them.
        num_gpus: that FAISS sees; None asks it.
        free_bytes: of the first GPU's memory; None asks torch.
    """
    if name != AUTO:
        return name
    if not num_bytes or num_probes > _MAX_GPU_K or not (_num_gpus() if num_gpus is None else num_gpus):
        return "cpu"
    free = free_gpu_bytes() if free_bytes is None else free_bytes
    return "cuda" if _ROOM_ON_GPU * num_bytes + _GPU_WORKSPACE_BYTES <= free else "cpu"


def _num_gpus() -> int:
    faiss = load_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def require_gpu() -> None:
    """Raises `EnvironmentProblem` when FAISS sees no GPU here."""
    faiss = load_faiss()
    if not _num_gpus():
        raise EnvironmentProblem(
            f"index device cuda is not there: faiss {faiss.__version__} sees no GPU: "
            "use --index-device cpu, or install faiss-gpu and a driver"
        )


def _flat(array: CachedArray, rows: np.ndarray, progress: Progress | None) -> Any:
    faiss = load_faiss()
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(array.recipe.dim))
    _add(index, array, rows, progress)
    return index


def _inverted_lists(array: CachedArray, rows: np.ndarray, device: str, progress: Progress | None) -> Any:
    index = trained_lists(array.features, rows, device=device)
    _add(index, array, rows, progress)
    return index if device == "cpu" else load_faiss().index_gpu_to_cpu(index)


def trained_lists(features: FeatureReader, rows: np.ndarray, *, device: str = "cpu") -> Any:
    """Returns empty inverted lists of float16 vectors for about as many rows, trained on a seeded sample of `rows`.

    The same features, rows and number of threads give the same lists.

    Args:
        features: the features of the array that the rows belong to.
        rows: with a feature.
        device: where they are trained and then live: "cpu" or "cuda".
    """
    faiss = load_faiss()
    dim, num_lists = features.shape[1], num_lists_for(len(rows))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, num_lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = 0
    if device != "cpu":
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    sample = np.random.default_rng(0).permutation(rows)[: num_lists * _TRAINING_ROWS_PER_LIST]
    index.train(features.gather_unit(np.sort(sample)))
    return index


def num_lists_for(num_rows: int) -> int:
    """Returns how many inverted lists so many vectors are divided among."""
    return 2 ** round(math.log2(4 * math.sqrt(num_rows)))


def _add(index: Any, array: CachedArray, rows: np.ndarray, progress: Progress | None) -> None:
    for start in range(0, len(rows), _BATCH_ROWS):
        batch = rows[start : start + _BATCH_ROWS]
        index.add_with_ids(array.features.gather_unit(batch), batch)
        if progress is not None:
            progress(start + len(batch), len(rows), f"{array.modality} rows indexed")


def _tune_probes(array: CachedArray, rows: np.ndarray, index: Any) -> float:
    """Sets the least number of probed lists, in powers of two, that reaches `MIN_RECALL`; returns the recall@10."""
    asked = np.sort(np.random.default_rng(1).choice(rows, _RECALL_QUERIES, replace=False))
    queries = array.features.gather_unit(asked)
    truth = _exact_nearest(array, rows, queries, 10)
    recall, num_probes = 0.0, 1
    while recall < MIN_RECALL and num_probes <= index.nlist:
        index.nprobe = num_probes
        found = index.search(queries, 10)[1]
        recall = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)]))
        num_probes *= 2
    return round(recall, 4)


def _exact_nearest(array: CachedArray, rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    best_rows = np.full((len(queries), k), -1, np.int64)
    for start in range(0, len(rows), _BATCH_ROWS):
        batch = rows[start : start + _BATCH_ROWS]
        scores = np.concatenate([best_scores, queries @ array.features.gather_unit(batch).T], axis=1)
        ids = np.concatenate([best_rows, np.broadcast_to(batch, (len(queries), len(batch)))], axis=1)
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best_scores, best_rows = np.take_along_axis(scores, top, 1), np.take_along_axis(ids, top, 1)
    return best_rows


def load_faiss() -> Any:
    """Returns the module; raises `EnvironmentProblem` when it cannot be imported."""
    try:
        import faiss
    except ImportError as error:
        raise EnvironmentProblem(
            f"FAISS cannot be imported ({error}): install faiss-gpu (Linux x86-64) or faiss-cpu, one of them"
        ) from error
    return faiss
