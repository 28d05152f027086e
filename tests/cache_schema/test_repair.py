"""What cannot be made again is not taken back."""

from pathlib import Path

import pytest

from cache_schema.errors import DamagedError
from cache_schema.repair import withdraw
from cache_schema.verify import verify_cache
from tests.corpora.damaged_files import flip_bit
from tests.corpora.tiny_cache import make_cache


def test_a_damaged_plan_cannot_be_repaired_and_nothing_is_taken_back(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    flip_bit(cache.layout.plan("text"))
    with pytest.raises(DamagedError, match="cannot restore it"):
        withdraw(cache, verify_cache(cache.path))
    assert cache.layout.record("text", cache.arrays("text")[0], 0).exists()
