"""A matrix of another kind is refused by its header; what cannot be a feature keeps its row."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import DamagedError, RefusedError
from cache_schema.verify import verify_cache
from stages.feature_files.matrix import matrix_of
from stages.files.opened import planned_file
from tests.corpora.extracts import import_config, import_features, outcomes_in
from tests.corpora.foreign_features import (
    keys_of,
    sentences_of,
    vectors,
    write_npy,
)

NPY_FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "objects": (lambda a: a.astype(object), "Python objects"),
    "Fortran order": (np.asfortranarray, "Fortran order"),
    "big-endian": (lambda a: a.astype(">f4"), "not little-endian"),
    "integers": (lambda a: a.astype(np.int32), "not little-endian"),
    "complex": (lambda a: a.astype(np.complex64), "not little-endian"),
    "one axis": (lambda a: a[0], "has shape"),
    "three axes": (lambda a: a[:, :, None], "has shape"),
    "no width": (lambda a: a[:, :0], "has shape"),
    "named fields": (lambda a: np.zeros(6, [("x", "<f4")]), "not little-endian"),
}


@pytest.mark.parametrize("fault", NPY_FAULTS)
def test_a_matrix_of_another_kind_is_refused_by_its_header(fault: str, tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(6), sentences_of(6), vectors(6))
    make, words = NPY_FAULTS[fault]
    np.save(path, make(vectors(6)), allow_pickle=True)
    with pytest.raises(RefusedError, match=words):
        import_features(import_config(tmp_path / "cache", image_features=(str(path),)))
    assert not (tmp_path / "cache").exists()


def test_a_header_that_claims_a_terabyte_is_refused_without_allocating_it(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(6), sentences_of(6), vectors(6))
    claim = b"(99999999999, 8), }"
    path.write_bytes(path.read_bytes().replace(b"(6, 8), }" + b" " * 10, claim))
    with pytest.raises(DamagedError, match=r"its header .* needs .*: it is cut or damaged"):
        import_features(import_config(tmp_path / "cache", image_features=(str(path),)))


def test_a_header_with_any_byte_changed_is_refused_or_means_the_same(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(6), sentences_of(6), vectors(6))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for at in range(128):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            with planned_file(str(path)) as file:
                matrix = matrix_of(str(path), file)
            assert (matrix.num_rows * matrix.dim, matrix.dtype.itemsize) == (48, 4)
        except RefusedError:
            refused += 1
    assert refused > 60


def test_values_that_cannot_be_features_keep_their_rows_with_a_status(tmp_path: Path) -> None:
    features = vectors(8)
    features[1, 3], features[2, 0], features[3] = np.nan, np.inf, 0
    features[4] = 3e38
    path = write_npy(tmp_path / "f.npy", keys_of(8), sentences_of(8), features)
    assert import_features(import_config(tmp_path / "cache", image_features=(str(path),)))["image/clip.v0"]["bad"] == 3
    bad = {key: status for key, (status, _) in outcomes_in(tmp_path / "cache").items() if status != "ok"}
    assert bad == {"k0001": "feature-not-finite", "k0002": "feature-not-finite", "k0003": "feature-zero-norm"}
    assert verify_cache(tmp_path / "cache") == []
