"""A file of probes gives them back, runs nothing, and is refused when anything in it is not what it must be."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_schema.errors import DamagedError
from stages.teachers import load_teacher
from stages.teachers.probes import compute_probes, probes_from_bytes, probes_to_bytes
from tests.corpora.stub_teacher import STUB
from tests.corpora.traps import Trap


@pytest.fixture(scope="module")
def data() -> bytes:
    return probes_to_bytes(compute_probes(load_teacher(STUB), "text"))


def test_the_file_gives_back_the_probes_and_holds_no_objects(data: bytes) -> None:
    probes = compute_probes(load_teacher(STUB), "text")
    for name, value in probes_from_bytes(data, where="probes.npz").items():
        assert np.array_equal(value, probes[name])
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert {"digests.npy", "features.npy"} <= set(file.namelist())
        assert all(b"|O" not in file.read(name)[:128] for name in file.namelist())


def test_every_flipped_bit_and_every_cut_is_found_or_changes_nothing(data: bytes) -> None:
    whole = probes_from_bytes(data, where="probes.npz")
    flipped = (data[:at] + bytes([data[at] ^ 0x09]) + data[at + 1 :] for at in range(len(data)))
    cut = (data[:length] for length in range(0, len(data), 5))
    num_damaged = 0
    for other in (*flipped, *cut):
        try:
            probes = probes_from_bytes(other, where="probes.npz")
        except DamagedError:
            num_damaged += 1
        else:
            assert all(np.array_equal(probes[name], whole[name]) for name in whole)
    assert num_damaged > len(data) // 2


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_a_file_with_pickled_objects_is_refused_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    trap = np.array([Trap(marker)], dtype=object)
    for bad in (npz(digests=trap, features=trap), npz(digests=np.zeros((16, 16), np.uint8), features=trap)):
        with pytest.raises(DamagedError, match=r"probes\.npz is damaged"):
            probes_from_bytes(bad, where="probes.npz")
    assert not marker.exists()


DIGESTS, FEATURES = np.zeros((16, 16), np.uint8), np.full((16, 4), 0.5, np.float32)


@pytest.mark.parametrize(
    "arrays",
    [
        {"digests": DIGESTS},
        {"features": FEATURES},
        {"digests": DIGESTS[:15], "features": FEATURES},
        {"digests": DIGESTS, "features": FEATURES[:15]},
        {"digests": DIGESTS.astype(np.int8), "features": FEATURES},
        {"digests": DIGESTS, "features": FEATURES.astype(np.float64)},
        {"digests": DIGESTS, "features": FEATURES[:, 0]},
        {"digests": DIGESTS, "features": FEATURES * np.nan},
        {"digests": DIGESTS, "features": FEATURES * 0},
        {"digests": DIGESTS, "features": FEATURES * 2},
        {"digests": DIGESTS, "features": FEATURES, "arithmetic": np.zeros(2)},
        {"digests": DIGESTS, "features": FEATURES, "arithmetic": np.array(["float32"])},
    ],
)
def test_arrays_that_are_no_probes_are_refused(arrays: dict[str, np.ndarray]) -> None:
    assert probes_from_bytes(npz(digests=DIGESTS, features=FEATURES), where="probes.npz")
    with pytest.raises(DamagedError, match=r"probes\.npz is damaged"):
        probes_from_bytes(npz(**arrays), where="probes.npz")


def test_a_lone_array_or_other_bytes_are_refused() -> None:
    lone = io.BytesIO()
    np.save(lone, FEATURES)
    for bad in (lone.getvalue(), b"", b"text", json.dumps({"digests": []}).encode()):
        with pytest.raises(DamagedError, match="restore it from a copy"):
            probes_from_bytes(bad, where="probes.npz")
