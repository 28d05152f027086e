"""An index that is not of its array's features is refused at load, although its sidecar is sealed over it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from cache_schema.cache import Cache, CachedArray, create_cache
from cache_schema.errors import DamagedError
from stages.search import index as index_module
from stages.search.index import build_index, load_index
from stages.search.mine import mine
from tests.corpora.resealed import reseal, rewrite_features
from tests.corpora.tiny_cache import add_array, unit_features

NUM_ROWS, DIM = 300, 8
ROWS = np.delete(np.arange(NUM_ROWS), 7)
FEATURES = unit_features(NUM_ROWS, DIM)


@pytest.fixture
def array(tmp_path: Path) -> CachedArray:
    """300 rows, the eighth of them bad, with an index."""
    cache = create_cache(tmp_path / "cache", 1024)
    add_array(cache, "text", FEATURES, bad=(7,))
    made = Cache.open(cache.path).array("text")
    build_index(made)
    return made


def put(array: CachedArray, index: Any, **changes: object) -> None:
    """Replaces the index of `array` by another, with a sidecar that is sealed over it."""
    path = array.cache.layout.index("text", array.name, "nearest")
    faiss.write_index(index, str(path))
    sidecar = array.cache.layout.index_sidecar("text", array.name, "nearest")
    reseal(sidecar, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), **changes)


def exact(vectors: np.ndarray, ids: np.ndarray, metric: Callable[[int], Any] = faiss.IndexFlatIP) -> Any:
    """Returns stock FAISS's own exact index of `vectors` under `ids`."""
    index = faiss.IndexIDMap2(metric(vectors.shape[1]))
    index.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids)
    return index


def right() -> Any:
    wide = FEATURES.astype(np.float32)
    return exact((wide / np.linalg.norm(wide, axis=1, keepdims=True))[ROWS], ROWS)


def spoilt(value: float) -> np.ndarray:
    vectors = FEATURES[ROWS].astype(np.float32)
    vectors[100, 2] = value
    return vectors


def doubled() -> np.ndarray:
    ids = ROWS.copy()
    ids[5] = ids[6]
    return ids


def moved(row: int) -> np.ndarray:
    ids = ROWS.copy()
    ids[5] = row
    return ids


def lists(vectors: np.ndarray, ids: np.ndarray, num_lists: int = 4) -> Any:
    flat = faiss.IndexFlatIP(DIM)
    kind = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(flat, DIM, num_lists, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(FEATURES.astype(np.float32))
    index.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids)
    index.nprobe = 2
    return index


def short_list() -> Any:
    index = lists(FEATURES[ROWS], ROWS)
    index.invlists.resize(0, index.invlists.list_size(0) - 1)
    return index


def spoilt_list() -> Any:
    index = lists(FEATURES[ROWS], ROWS)
    codes = faiss.rev_swig_ptr(index.invlists.get_codes(0), 2 * DIM).view(np.float16)
    codes[3] = np.nan
    return index


IVF = {"kind": "ivf", "num_lists": 4, "num_probes": 2}


def test_the_same_index_made_by_stock_faiss_is_taken(array: CachedArray) -> None:
    put(array, right())
    assert load_index(array).info.num_rows == 299
    put(array, lists(FEATURES[ROWS], ROWS), **IVF)
    assert load_index(array).info.kind == "ivf"


@pytest.mark.parametrize(
    ("make", "changes", "what"),
    [
        (lambda: exact(unit_features(NUM_ROWS, DIM, seed=9)[ROWS], ROWS), {}, "has another vector for row"),
        (lambda: exact(FEATURES[ROWS][:, :4], ROWS), {}, "has width 4 and metric 0"),
        (lambda: exact(FEATURES[ROWS], ROWS, faiss.IndexFlatL2), {}, "has width 8 and metric 1"),
        (lambda: exact(FEATURES[ROWS][:-1], ROWS[:-1]), {}, "has 298, .* has 299 ok rows"),
        (lambda: exact(FEATURES, np.arange(NUM_ROWS)), {}, "has 300, .* has 299 ok rows"),
        (lambda: exact(FEATURES[ROWS], doubled()), {}, "has ids that are not the ok rows"),
        (lambda: exact(FEATURES[ROWS], moved(300)), {}, "has ids that are not the ok rows"),
        (lambda: exact(FEATURES[ROWS], moved(7)), {}, "has ids that are not the ok rows"),
        (lambda: exact(FEATURES[ROWS], moved(-1)), {}, "has ids that are not the ok rows"),
        (lambda: exact(FEATURES[ROWS], ROWS[::-1]), {}, "has another vector for row"),
        (lambda: exact(spoilt(np.nan), ROWS), {}, "has a vector for row 101 that is not finite"),
        (lambda: exact(spoilt(np.inf), ROWS), {}, "has a vector for row 101 that is not finite"),
        (lambda: faiss.IndexFlatIP(DIM), {}, "is of kind IndexFlatIP"),
        (spoilt_list, IVF, r"has a vector for row \d+ that is not finite"),
        (lambda: lists(FEATURES[ROWS], doubled()), IVF, "has ids that are not the ok rows"),
        (lambda: lists(FEATURES[ROWS], ROWS[::-1]), IVF, "has another vector for row"),
        (short_list, IVF, "says that it has 299 vectors and has 298"),
        (lambda: lists(FEATURES[ROWS], ROWS), {}, r"is \('ivf', 4, 2\), its sidecar says \('flat', 0, 0\)"),
        (lambda: lists(FEATURES[ROWS], ROWS), {**IVF, "num_lists": 5}, r"its sidecar says \('ivf', 5, 2\)"),
        (lambda: lists(FEATURES[ROWS], ROWS), {**IVF, "num_probes": 4}, r"its sidecar says \('ivf', 4, 4\)"),
    ],
)
def test_another_index_under_a_resealed_sidecar_is_refused(
    array: CachedArray, make: Callable[[], Any], changes: dict[str, object], what: str
) -> None:
    put(array, make(), **changes)
    with pytest.raises(DamagedError, match=rf"index .*nearest\.faiss .*{what}.*run `pipeline extract` again to build"):
        load_index(array)
    with pytest.raises(DamagedError, match=what):
        mine(array.cache, from_array=array, to_array=array, k=2, name="near")


def test_bytes_that_faiss_cannot_read_under_a_resealed_sidecar_are_refused(array: CachedArray) -> None:
    path = array.cache.layout.index("text", array.name, "nearest")
    for data in (b"", b"IxFI" * 99, path.read_bytes()[:-100]):
        path.write_bytes(data)
        sidecar = array.cache.layout.index_sidecar("text", array.name, "nearest")
        reseal(sidecar, sha256=hashlib.sha256(data).hexdigest())
        with pytest.raises(DamagedError, match="is no index that FAISS reads"):
            load_index(array)


@pytest.mark.parametrize("exact_below", [2, 10_000], ids=["lists", "exact"])
@pytest.mark.parametrize("value", [np.nan, 0.0], ids=["not finite", "zero"])
def test_a_row_that_is_not_finite_or_zero_never_enters_an_index(
    array: CachedArray, value: float, exact_below: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "EXACT_BELOW_ROWS", exact_below)
    rewrite_features(array, 0, lambda rows: rows.__setitem__(5, value))
    with pytest.raises(DamagedError, match=r"row 5 .* in part 0 of text array"):
        build_index(Cache.open(array.cache.path).array("text"))
