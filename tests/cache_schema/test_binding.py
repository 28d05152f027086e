"""A binding holds for the parts that it saw: it survives what is appended, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.binding import Binding
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, UnfinishedError
from tests.corpora.tiny_cache import add_array, append_segment, create_cache, make_cache, unit_features


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path / "cache", num_images=40, num_texts=0, part_rows=16)


def whole(binding: Binding, cache: Cache) -> int:
    return binding.require_whole(Cache.open(cache.path).array("image"), "it", "make it again")


@pytest.mark.parametrize("says_how_many", [True, False])
def test_a_binding_holds_for_its_parts_when_others_are_appended(cache: Cache, says_how_many: bool) -> None:
    binding = Binding.of(cache.array("image"))
    binding = binding if says_how_many else replace(binding, num_parts=None)
    assert whole(binding, cache) == 3
    append_segment(cache, "image", unit_features(5, 8, seed=9))
    assert whole(binding, cache) == 3
    assert whole(Binding.of(Cache.open(cache.path).array("image")), cache) == 4


@pytest.mark.parametrize("says_how_many", [True, False])
def test_other_rows_another_recipe_and_fewer_parts_are_refused(tmp_path: Path, says_how_many: bool) -> None:
    def cache_of(name: str, num_images: int, *, bad: tuple[int, ...] = (), **recipe: object) -> Cache:
        made = create_cache(tmp_path / name, 16)
        add_array(made, "image", unit_features(40, 8)[:num_images], bad=bad, **recipe)
        return Cache.open(made.path)

    binding = Binding.of(cache_of("one", 40).array("image"))
    binding = binding if says_how_many else replace(binding, num_parts=None)
    others = [cache_of("bad", 40, bad=(20,)), cache_of("recipe", 40, logit_scale=50.0), cache_of("fewer", 32)]
    for other in others:
        with pytest.raises(MismatchError, match=r"it came from .*: make it again"):
            whole(binding, other)


def test_a_part_that_is_no_longer_committed_or_is_damaged_is_said(cache: Cache) -> None:
    binding = Binding.of(cache.array("image"))
    rows = cache.layout.row_hashes("image", "imaginary.v0", 1)
    rows.write_bytes(bytes(len(rows.read_bytes())))
    with pytest.raises(DamagedError, match=r"00001\.rows"):
        whole(binding, cache)
    cache.layout.record("image", "imaginary.v0", 1).unlink()
    with pytest.raises(UnfinishedError, match=r"lacks 1 of 3 parts \(1\)"):
        whole(binding, cache)
