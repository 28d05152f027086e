"""The note of the part under way stays where the process dies, and is nobody's who lost the lock."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.cache import create_cache
from cache_schema.errors import LockedError
from cache_schema.plan import Part, Span
from stages.parts.pending import PartTask
from stages.parts.under_way import UnderWay

TASK = PartTask("text", Part(2, 32, (Span(0, 0, 16, 0),)), "f" * 64, ("a",))


def test_the_part_under_way_is_told_until_it_is_over(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    with cache.lock() as lock:
        note = UnderWay(cache.layout, lock.fence)
        assert note.left() is None
        note.begin(TASK)
        note.begin(replace(TASK, modality="image", part=Part(11, 0, ())))
        assert UnderWay(cache.layout, lock.fence).left() == ("image", 11)
        note.end()
        assert note.left() is None and not cache.layout.under_way_json.exists()
        note.end()


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b"null", b'{"part": 3}', b"\0" * 40, b"\xff"])
def test_a_note_that_a_power_cut_tore_is_as_good_as_none(tmp_path: Path, torn: bytes) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    cache.layout.under_way_json.write_bytes(torn)
    with cache.lock() as lock:
        note = UnderWay(cache.layout, lock.fence)
        assert note.left() is None
        note.begin(TASK)
        assert note.left() == ("text", 2)


def test_who_lost_the_lock_neither_writes_the_note_nor_removes_it(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    with cache.lock() as lost:
        note = UnderWay(cache.layout, lost.fence)
        note.begin(TASK)
    with pytest.raises(LockedError, match="the lock was lost"):
        note.begin(replace(TASK, modality="image"))
    note.end()
    assert note.left() == ("text", 2)
