"""An index is used only when its sidecar, its file and the features of the array belong together."""

import hashlib
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, UnfinishedError, UsageError
from cache_schema.indexes import (
    IndexInfo,
    describe_indexes,
    publish_index_info,
    read_index_info,
    require_current_index,
    verify_indexes,
)
from cache_schema.json_file import seal
from cache_schema.plan import SourceEntry, write_plan
from tests.corpora.damaged_files import DAMAGE
from tests.corpora.tiny_cache import add_array, append_segment, make_cache, unit_features

FILE = b"bytes that only FAISS can read"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache whose images have an index that is called flat."""
    made = make_cache(tmp_path / "cache", num_texts=3)
    atomic.make_folder(made.layout.indexes("image"))
    atomic.publish_bytes(made.layout.index("image", "imaginary.v0", "flat"), FILE)
    publish_index_info(sidecar_of(made), info_of(made), fence=None)
    return made


def sidecar_of(cache: Cache) -> Path:
    return cache.layout.index_sidecar("image", "imaginary.v0", "flat")


def info_of(cache: Cache) -> IndexInfo:
    array = cache.array("image")
    digests = (array.recipe.fingerprint, array.digest())
    sha256 = hashlib.sha256(FILE).hexdigest()
    return IndexInfo("image", array.name, *digests, "flat", 40, 8, 0, 0, 1.0, sha256, "1.12")


def problems(cache: Cache) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    verify_indexes(Cache.open(cache.path), lambda where, what, remedy: found.append((where.name, what, remedy)))
    return found


def states(cache: Cache) -> list[object]:
    return [found["state"] for found in describe_indexes(Cache.open(cache.path))]


def test_an_index_of_the_array_as_it_is_is_current_and_nothing_is_wrong(cache: Cache) -> None:
    assert read_index_info(sidecar_of(cache)) == info_of(cache)
    assert require_current_index(cache.array("image"), "flat") == info_of(cache)
    assert problems(cache) == []
    assert describe_indexes(cache) == [
        {
            "modality": "image",
            "index": "imaginary.v0.flat",
            "state": "current",
            "array": "imaginary.v0",
            "kind": "flat",
            "num_rows": 40,
            "recall_at_10": 1.0,
        }
    ]


def test_only_the_modalities_asked_for_are_described(cache: Cache) -> None:
    assert describe_indexes(cache, ["text"]) == describe_indexes(cache, []) == []
    assert len(describe_indexes(cache, ["text", "image"])) == 1


def test_an_array_without_the_index_says_how_to_get_one(cache: Cache) -> None:
    for array, name in ((cache.array("image"), "ivf"), (cache.array("text"), "flat")):
        with pytest.raises(UsageError, match=rf"^{array.modality} array .* has no index: run `pipeline extract` again"):
            require_current_index(array, name)


def test_an_index_of_features_that_grew_is_refused_with_both_digests_and_reported(cache: Cache) -> None:
    before = cache.array("image").digest()
    append_segment(cache, "image", unit_features(5, 8, seed=9))
    array = Cache.open(cache.path).array("image")
    said = rf"flat\.faiss was built from features {before[:12]} .*, image array .* holds {array.digest()[:12]} .*: run"
    with pytest.raises(MismatchError, match=said):
        require_current_index(array, "flat")
    assert states(cache) == ["stale: run `pipeline extract` again"]
    ((where, what, remedy),) = problems(cache)
    assert (where, remedy) == ("imaginary.v0.flat.faiss", "run `pipeline extract` again to build it anew")
    assert f"was built from features {before[:12]}" in what and array.digest()[:12] in what


def test_an_index_of_what_is_committed_is_right_while_further_parts_are_pending(cache: Cache) -> None:
    source = SourceEntry("/nowhere/more", "text", "1" * 64, 3)
    write_plan(cache.layout.plan("image"), cache.plan("image").extended([source], [{0: 0, 1: 1, 2: 2}]))
    assert problems(cache) == [] and states(cache) == ["current"]
    with pytest.raises(UnfinishedError, match="is unfinished"):
        require_current_index(Cache.open(cache.path).array("image"), "flat")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": "0" * 64}, r"was built from features .* \(recipe 000000000000\)"),
        ({"num_rows": 39}, r"is said to be of .*39, 8\), .* is .*40, 8\) \(rows, width\)"),
        ({"dim": 9}, r"is said to be of .*40, 9\), .* is .*40, 8\)"),
        ({"modality": "text"}, r"is said to be of \('text', 'imaginary.v0'"),
    ],
    ids=str,
)
def test_a_sidecar_of_another_recipe_or_size_is_refused_although_its_digest_is_right(
    cache: Cache, changes: dict[str, Any], said: str
) -> None:
    publish_index_info(sidecar_of(cache), replace(info_of(cache), **changes), fence=None)
    with pytest.raises(MismatchError, match=said):
        require_current_index(cache.array("image"), "flat")
    ((where, what, _),) = problems(cache)
    assert where == "imaginary.v0.flat.faiss" and re.search(said, what)
    assert states(cache) == ["stale: run `pipeline extract` again"]


@pytest.mark.parametrize("changes", [{"num_rows": "40"}, {"dim": 8.0}, {"kind": 1}, {"num_lists": True}], ids=str)
def test_a_sidecar_with_a_field_of_another_type_describes_no_index(cache: Cache, changes: dict[str, Any]) -> None:
    atomic.publish_json(sidecar_of(cache), seal({**asdict(info_of(cache)), **changes}))
    (name,) = changes
    with pytest.raises(DamagedError, match=rf"does not describe an index \({name} is "):
        require_current_index(cache.array("image"), "flat")
    assert [where for where, _, _ in problems(cache)] == ["imaginary.v0.flat.json"]
    assert f"({name} is" in str(states(cache)[0])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_missing_index_file_is_refused_and_reported(cache: Cache, damage: str) -> None:
    DAMAGE[damage](cache.layout.index("image", "imaginary.v0", "flat"))
    with pytest.raises(DamagedError, match="is missing or not the file that was built: delete it and run `pipeline"):
        require_current_index(cache.array("image"), "flat")
    ((where, what, _),) = problems(cache)
    assert (where, what) == ("imaginary.v0.flat.faiss", "is missing or not the index that was built")
    assert states(cache) == ["current"], "sidecars are read, not the files"


@pytest.mark.parametrize("damage", ["one byte short", "emptied", "half"])
def test_a_damaged_sidecar_is_reported_and_its_words_are_not_shown(cache: Cache, damage: str) -> None:
    DAMAGE[damage](sidecar_of(cache))
    with pytest.raises(DamagedError, match=r"flat\.json is damaged"):
        require_current_index(cache.array("image"), "flat")
    (described,) = describe_indexes(cache)
    assert "is damaged" in str(described["state"]) and described["kind"] is None
    assert [where for where, _, _ in problems(cache)] == ["imaginary.v0.flat.json"]


def test_a_sidecar_of_other_fields_describes_no_index(cache: Cache) -> None:
    atomic.publish_json(sidecar_of(cache), seal({**asdict(info_of(cache)), "colour": 1}))
    with pytest.raises(DamagedError, match=r"does not describe an index \(.*colour.*\): run `pipeline extract` again"):
        read_index_info(sidecar_of(cache))


def test_an_index_of_an_array_that_is_gone_is_reported_at_its_sidecar(cache: Cache) -> None:
    publish_index_info(sidecar_of(cache), replace(info_of(cache), array="imaginery.v0"), fence=None)
    ((where, what, _),) = problems(cache)
    assert where == "imaginary.v0.flat.json" and "did you mean 'imaginary.v0'" in what
    (described,) = describe_indexes(Cache.open(cache.path))
    assert "did you mean" in str(described["state"])
    assert described["array"] is described["num_rows"] is None, "nothing of it is shown as if it were true"


def test_a_sidecar_under_the_name_of_another_array_is_reported(cache: Cache) -> None:
    info = info_of(cache)
    add_array(cache, "image", unit_features(40, 8), name="other.v0")
    array = Cache.open(cache.path).array("image", "other.v0")
    of_other = replace(info, array="other.v0", fingerprint=array.recipe.fingerprint, digest=array.digest())
    publish_index_info(sidecar_of(cache), of_other, fence=None)
    ((where, what, _),) = problems(cache)
    assert where == "imaginary.v0.flat.json" and "describes an index of image array other.v0" in what
