"""An index gives the true nearest rows of the cache, or is refused before a byte of it is parsed."""

from pathlib import Path

import numpy as np
import pytest

from cache_schema.cache import Cache, CachedArray, create_cache
from cache_schema.errors import DamagedError, EnvironmentProblem, MismatchError, UnfinishedError, UsageError
from stages.search import index as index_module
from stages.search.index import build_index, index_device, index_is_current, load_index, search
from tests.corpora.tiny_cache import add_array, unit_features


def array_of(path: Path, features: np.ndarray, **how: tuple) -> CachedArray:
    cache = create_cache(path, 1024)
    add_array(cache, "text", features, **how)
    return Cache.open(path).array("text")


def nearest_by_brute_force(array: CachedArray, queries: np.ndarray, k: int) -> np.ndarray:
    rows = array.ok_rows()
    scores = queries.astype(np.float64) @ array.features.gather_unit(rows).astype(np.float64).T
    return rows[np.argsort(-scores, axis=1)[:, :k]]


def test_a_search_finds_the_rows_that_brute_force_finds_and_never_a_bad_one(tmp_path: Path) -> None:
    array = array_of(tmp_path / "cache", unit_features(3000, 24), bad=(0, 7, 2999), not_finite=(1500,))
    info = build_index(array)
    assert (info.kind, info.num_rows, info.recall_at_10) == ("flat", 2996, 1.0)
    queries = unit_features(50, 24, seed=5).astype(np.float32)
    ids, scores = search(load_index(array), queries, 10)
    assert np.array_equal(ids, nearest_by_brute_force(array, queries, 10))
    assert (np.diff(scores, axis=1) <= 0).all()
    assert not np.isin([0, 7, 1500, 2999], ids).any()


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> CachedArray:
    """4,000 rows around 100 centres, above a limit of exactness lowered to 2,000 by the tests."""
    rng = np.random.default_rng(0)
    features = unit_features(100, 16)[rng.integers(0, 100, 4000)] + 0.2 * rng.standard_normal((4000, 16))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    return array_of(tmp_path_factory.mktemp("index") / "cache", features, bad=(3,))


def test_many_rows_get_inverted_lists_with_a_measured_recall(
    clustered: CachedArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "EXACT_BELOW_ROWS", 2000)
    info = build_index(clustered)
    assert info.kind == "ivf"
    assert 1 <= info.num_probes <= info.num_lists == 256
    assert info.recall_at_10 >= index_module.MIN_RECALL
    queries = clustered.features.gather_unit(clustered.ok_rows()[:200])
    found, truth = search(load_index(clustered), queries, 10)[0], nearest_by_brute_force(clustered, queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
    assert recall > index_module.MIN_RECALL - 0.05


def test_padding_of_short_lists_never_reaches_a_caller(clustered: CachedArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "EXACT_BELOW_ROWS", 2000)
    build_index(clustered)
    ids, _ = search(load_index(clustered), clustered.features.gather_unit(clustered.ok_rows()[:5]), 3999)
    for row in ids:
        assert sorted(row) == clustered.ok_rows().tolist()


@pytest.fixture
def array(tmp_path: Path) -> CachedArray:
    made = array_of(tmp_path / "cache", unit_features(300, 8))
    build_index(made)
    return made


def index_file(array: CachedArray) -> Path:
    (path,) = array.cache.layout.indexes("text").glob("*.faiss")
    return path


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone", "foreign"])
def test_a_damaged_index_is_refused_and_built_anew(array: CachedArray, damage: str) -> None:
    path = index_file(array)
    data = path.read_bytes()
    assert index_is_current(array)
    if damage == "gone":
        path.unlink()
    else:
        wrong = {"cut": data[:-5], "flipped": data[:50] + b"\xff" + data[51:], "empty": b"", "foreign": b"IxFI" * 99}
        path.write_bytes(wrong[damage])
    assert not index_is_current(array)
    with pytest.raises(DamagedError, match="not the file that was built"):
        load_index(array)
    build_index(array)
    assert load_index(array).info.num_rows == 300


def test_an_index_of_other_features_is_refused(array: CachedArray, tmp_path: Path) -> None:
    other = array_of(tmp_path / "other", unit_features(300, 8, seed=1))
    build_index(other)
    for path in array.cache.layout.indexes("text").iterdir():
        path.write_bytes((other.cache.layout.indexes("text") / path.name).read_bytes())
    assert not index_is_current(array)
    with pytest.raises(MismatchError, match="was built from features"):
        load_index(array)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((1, 8)), 0, "use 1 to 300"),
        (np.ones((1, 8)), 301, "use 1 to 300"),
        (np.ones((1, 7)), 5, r"needs \(Q, 8\)"),
        (np.ones(8), 5, r"needs \(Q, 8\)"),
        (np.full((1, 8), np.nan), 5, "not finite"),
    ],
)
def test_a_search_that_cannot_be_is_an_error_with_the_limit(
    array: CachedArray, queries: np.ndarray, k: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        search(load_index(array), queries, k)


def test_an_unfinished_array_gets_no_index(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    add_array(cache, "text", unit_features(40, 8), parts=(0, 1))
    with pytest.raises(UnfinishedError, match="2 of 3 parts"):
        build_index(Cache.open(cache.path).array("text"))


def test_a_gpu_that_is_not_there_is_an_error_and_never_the_cpu(array: CachedArray) -> None:
    import faiss

    if getattr(faiss, "get_num_gpus", lambda: 0)():
        pytest.skip("this machine has one")
    with pytest.raises(EnvironmentProblem, match="sees no GPU"):
        build_index(array, device="cuda")
    with pytest.raises(EnvironmentProblem, match="sees no GPU"):
        load_index(array, device="cuda")


def test_a_query_of_zeros_or_beyond_float32_is_refused(array: CachedArray) -> None:
    queries = unit_features(3, 8).astype(np.float64)
    queries[1] = 0
    with pytest.raises(UsageError, match=r"a query is zero \(row 1\)"):
        search(load_index(array), queries, 5)
    queries[1] = 1e200
    with np.errstate(over="ignore"), pytest.raises(UsageError, match=r"a query is not finite \(row 1\)"):
        search(load_index(array), queries, 5)


GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "num_bytes", "num_probes", "num_gpus", "free_bytes", "expected"),
    [
        ("auto", GIB, 16, 1, 80 * GIB, "cuda"),
        ("auto", GIB, 16, 0, 0, "cpu"),
        ("auto", 60 * GIB, 16, 1, 80 * GIB, "cpu"),
        ("auto", GIB, 16, 1, 3 * GIB, "cpu"),
        ("auto", GIB, 4096, 1, 80 * GIB, "cpu"),
        ("auto", 0, 0, 1, 80 * GIB, "cpu"),
        ("cuda", 60 * GIB, 16, 1, 80 * GIB, "cuda"),
        ("cpu", GIB, 16, 1, 80 * GIB, "cpu"),
    ],
)
def test_auto_is_a_gpu_that_faiss_sees_and_whose_memory_holds_the_index(
    name: str, num_bytes: int, num_probes: int, num_gpus: int, free_bytes: int, expected: str
) -> None:
    found = index_device(name, num_bytes, num_probes=num_probes, num_gpus=num_gpus, free_bytes=free_bytes)
    assert found == expected


@pytest.mark.gpu
def test_lists_made_by_auto_on_a_gpu_have_the_recall_of_their_certificate(
    clustered: CachedArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    if index_device("auto", GIB) == "cpu":
        pytest.skip("FAISS sees no GPU")
    monkeypatch.setattr(index_module, "EXACT_BELOW_ROWS", 2000)
    info = build_index(clustered, device="auto")
    queries = clustered.features.gather_unit(clustered.ok_rows()[:200])
    found, truth = search(load_index(clustered), queries, 10)[0], nearest_by_brute_force(clustered, queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
    assert info.recall_at_10 >= index_module.MIN_RECALL and recall > index_module.MIN_RECALL - 0.05
