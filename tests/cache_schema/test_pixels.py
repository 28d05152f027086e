"""The pixels of a part are one Arrow file that anybody can read, and no damaged picture leaves it."""

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import google_crc32c
import pyarrow as pa
import pytest

from cache_schema import atomic
from cache_schema.errors import DamagedError, LockedError
from cache_schema.json_file import seal
from cache_schema.layout import Layout
from cache_schema.pixels import (
    PixelRow,
    PixelsOfPart,
    PixelsRecipe,
    PixelsRecord,
    commit_pixels,
    publish_pixels_recipe,
    read_pixels_recipe,
    read_pixels_record,
)
from tests.corpora.damaged_files import DAMAGE

RECIPE = PixelsRecipe({"side": 64, "quality": 90}, {"exif": True}, "9" * 64, {"pillow": "11"})


def rows_of(num_rows: int, missing: tuple[int, ...] = ()) -> list[PixelRow]:
    digests = [hashlib.blake2b(b"%d" % i, digest_size=16).digest() for i in range(num_rows)]
    return [PixelRow(d, None if i in missing else b"jpeg %d" % i) for i, d in enumerate(digests)]


def commit(root: Path, rows: list[PixelRow], part: int = 0) -> PixelsRecord:
    return commit_pixels(Layout(root), RECIPE, part, rows, part_fingerprint="a" * 64, fence=None)


def opened(root: Path, record: PixelsRecord) -> PixelsOfPart:
    return PixelsOfPart(Layout(root).pixels(record.part), record)


def rewrite(path: Path, columns: list, schema: pa.Schema | None = None, batches: int = 1) -> None:
    """Replaces the Arrow file at `path` by another with these columns."""
    if schema is None:
        fields = [("digest", pa.binary(16)), ("crc32c", pa.uint32()), ("jpeg", pa.binary())]
        schema = pa.schema([pa.field(name, kind, nullable=name != "crc32c") for name, kind in fields])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    with pa.ipc.new_file(str(path), schema) as writer:
        for _ in range(batches):
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def same_size(root: Path, record: PixelsRecord) -> PixelsOfPart:
    """Opens the file of `record` as if the record had been written for a file of its size."""
    return opened(root, replace(record, num_bytes=Layout(root).pixels(record.part).stat().st_size))


def test_plain_arrow_reads_digests_checksums_and_jpegs(tmp_path: Path) -> None:
    rows = [*rows_of(3, missing=(1,)), PixelRow(None, None)]
    commit(tmp_path, rows)
    table = pa.ipc.open_file(str(tmp_path / "image/pixels/00000.arrow")).read_all()
    assert {f.name: str(f.type) for f in table.schema} == {
        "digest": "fixed_size_binary[16]",
        "crc32c": "uint32",
        "jpeg": "binary",
    }
    assert table.to_pylist() == [
        {"digest": row.digest, "crc32c": google_crc32c.value(row.jpeg or b""), "jpeg": row.jpeg} for row in rows
    ]


def test_the_record_measures_the_file_and_is_the_one_on_disk(tmp_path: Path) -> None:
    record = commit(tmp_path, rows_of(5, missing=(0, 4)), part=3)
    data = (tmp_path / "image/pixels/00003.arrow").read_bytes()
    assert record == PixelsRecord(
        part=3,
        num_rows=5,
        num_pictures=3,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        fingerprint=RECIPE.fingerprint,
        part_fingerprint="a" * 64,
    )
    assert read_pixels_record(Layout(tmp_path), 3) == record


def test_equal_rows_make_equal_files(tmp_path: Path) -> None:
    one, again = (commit(tmp_path / name, rows_of(7, missing=(2,))) for name in ("one", "again"))
    assert one == again


@pytest.mark.parametrize("num_rows", [1, 1023, 1024, 1025, 2500])
def test_rows_lie_in_batches_of_1024_and_each_comes_back(tmp_path: Path, num_rows: int) -> None:
    rows = rows_of(num_rows, missing=(5,))
    record = commit(tmp_path, rows)
    file = pa.ipc.open_file(str(Layout(tmp_path).pixels(0)))
    sizes = [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
    assert sum(sizes) == num_rows and all(size == 1024 for size in sizes[:-1]) and 0 < sizes[-1] <= 1024
    pixels = opened(tmp_path, record)
    for offset in {0, 5, 1022, 1023, 1024, 2047, 2048, num_rows - 1} & set(range(num_rows)):
        assert pixels.row(offset) == rows[offset]


def test_a_part_without_a_readable_image_has_rows_and_no_pictures(tmp_path: Path) -> None:
    record = commit(tmp_path, [PixelRow(None, None)] * 3)
    assert (record.num_rows, record.num_pictures) == (3, 0)
    assert opened(tmp_path, record).row(2) == PixelRow(None, None)


def test_a_row_outside_the_part_is_never_another_row(tmp_path: Path) -> None:
    pixels = opened(tmp_path, commit(tmp_path, rows_of(3)))
    with pytest.raises(IndexError):
        pixels.row(3)


def test_a_picture_is_given_only_to_whoever_names_its_original(tmp_path: Path) -> None:
    rows = rows_of(3, missing=(1,))
    pixels = opened(tmp_path, commit(tmp_path, rows))
    assert pixels.picture(0, rows[0].digest) == b"jpeg 0"
    made_from, other = (rows[i].digest.hex()[:12] for i in (0, 2))
    with pytest.raises(DamagedError, match=rf"original {made_from} and has a picture, the cache has original {other}:"):
        pixels.picture(0, rows[2].digest)
    with pytest.raises(DamagedError, match=r"row 0 .* the cache has original none: run `pipeline verify`"):
        pixels.picture(0, None)
    with pytest.raises(DamagedError, match=r"row 1 of pixels .* has no picture"):
        pixels.picture(1, rows[1].digest)


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "one bit flipped"])
def test_a_file_of_another_length_is_refused_when_it_is_opened(tmp_path: Path, damage: str) -> None:
    record = commit(tmp_path, rows_of(3))
    DAMAGE[damage](Layout(tmp_path).pixels(0))
    with pytest.raises(DamagedError, match=r"00000\.arrow are (missing or damaged|not those that were committed): run"):
        opened(tmp_path, record)


def test_a_file_of_the_same_length_that_is_not_arrow_is_refused(tmp_path: Path) -> None:
    record = commit(tmp_path, rows_of(3))
    Layout(tmp_path).pixels(0).write_bytes(b"\xff" * record.num_bytes)
    with pytest.raises(DamagedError, match="are missing or damaged"):
        opened(tmp_path, record)


def test_a_flipped_bit_of_a_jpeg_is_found_when_its_row_is_read_and_spoils_no_other(tmp_path: Path) -> None:
    rows = rows_of(3)
    record = commit(tmp_path, rows)
    path = Layout(tmp_path).pixels(0)
    data = path.read_bytes()
    assert data.count(b"jpeg 1") == 1
    path.write_bytes(data.replace(b"jpeg 1", b"jpeg 9"))
    pixels = opened(tmp_path, record)
    assert [pixels.row(i) for i in (0, 2)] == [rows[0], rows[2]]
    with pytest.raises(DamagedError, match=r"the picture of row 1 of pixels .* is not the one that was stored"):
        pixels.row(1)


def test_a_whole_file_of_as_many_rows_and_another_length_is_refused(tmp_path: Path) -> None:
    record = commit(tmp_path / "one", rows_of(2))
    commit(tmp_path / "other", [replace(row, jpeg=b"x" * 1000) for row in rows_of(2)])
    Layout(tmp_path / "other").pixels(0).replace(Layout(tmp_path / "one").pixels(0))
    with pytest.raises(DamagedError, match="are not those that were committed"):
        opened(tmp_path / "one", record)


def test_a_file_with_another_schema_is_refused(tmp_path: Path) -> None:
    record = commit(tmp_path, rows_of(2))
    schema = pa.schema([("digest", pa.binary(16)), ("crc32c", pa.uint64()), ("jpeg", pa.binary())])
    rewrite(Layout(tmp_path).pixels(0), [[None] * 2, [0] * 2, [None] * 2], schema)
    with pytest.raises(DamagedError, match="are not those that were committed"):
        same_size(tmp_path, record)


def test_a_file_with_more_batches_or_other_rows_than_its_record_says_is_refused(tmp_path: Path) -> None:
    record = commit(tmp_path, rows_of(2))
    columns = [[None] * 2, [0] * 2, [None] * 2]
    rewrite(Layout(tmp_path).pixels(0), columns)
    assert same_size(tmp_path, record).row(1) == PixelRow(None, None)
    rewrite(Layout(tmp_path).pixels(0), columns, batches=2)
    with pytest.raises(DamagedError, match="are not those that were committed"):
        same_size(tmp_path, record)
    rewrite(Layout(tmp_path).pixels(0), [[None] * 3, [0] * 3, [None] * 3])
    with pytest.raises(DamagedError, match="have other rows than their record says"):
        same_size(tmp_path, record).row(1)


def test_an_offset_that_points_out_of_the_file_is_damage_and_is_not_followed(tmp_path: Path) -> None:
    record = commit(tmp_path, [PixelRow(bytes(16), b"x" * 77), PixelRow(bytes(16), b"y" * 1000)])
    path = Layout(tmp_path).pixels(0)
    data, offsets = path.read_bytes(), b"".join(n.to_bytes(4, "little") for n in (0, 77, 1077))
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, b"".join(n.to_bytes(4, "little") for n in (0, 77, 2**30))))
    with pytest.raises(DamagedError, match=r"rows of pixels .* are damaged"):
        opened(tmp_path, record).row(1)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_is_replaced_or_removed_while_it_is_read_is_noticed(tmp_path: Path, replaced: bool) -> None:
    record = commit(tmp_path, rows_of(2))
    pixels = opened(tmp_path, record)
    assert pixels.row(0).jpeg == b"jpeg 0"
    path = Layout(tmp_path).pixels(0)
    data = path.read_bytes()
    path.unlink()
    if replaced:
        atomic.publish_bytes(path, data)
    with pytest.raises(DamagedError, match="changed while they were read, or are gone: stop whatever writes there"):
        pixels.row(0)


@pytest.mark.parametrize("change", [{"surprise": 1}, {"num_rows": None}, {"num_rows": "1"}, {"part": False}], ids=str)
def test_a_record_with_a_field_too_many_or_too_few_is_refused(tmp_path: Path, change: dict) -> None:
    record = asdict(commit(tmp_path, rows_of(1))) | change
    value = {name: field for name, field in record.items() if field is not None}
    atomic.publish_json(Layout(tmp_path).pixels_record(0), seal(value))
    with pytest.raises(DamagedError, match=r"00000\.json is not a record of pixels \(.*\): run `pipeline verify`"):
        read_pixels_record(Layout(tmp_path), 0)


def test_a_missing_record_and_the_record_of_another_part_are_refused(tmp_path: Path) -> None:
    commit(tmp_path, rows_of(1))
    layout = Layout(tmp_path)
    layout.pixels_record(0).rename(layout.pixels_record(1))
    with pytest.raises(DamagedError, match=r"00001\.json is the record of part 0"):
        read_pixels_record(layout, 1)
    with pytest.raises(DamagedError, match=r"00000\.json is missing"):
        read_pixels_record(layout, 0)


def test_a_writer_that_lost_the_lock_stores_nothing(tmp_path: Path) -> None:
    fence = atomic.Fence(tmp_path / "lock.json", "mine")
    with pytest.raises(LockedError):
        commit_pixels(Layout(tmp_path), RECIPE, 0, rows_of(1), part_fingerprint="a" * 64, fence=fence)
    assert list((tmp_path / "image/pixels").iterdir()) == []
    with pytest.raises(LockedError):
        publish_pixels_recipe(Layout(tmp_path), RECIPE, fence=fence)
    assert read_pixels_recipe(Layout(tmp_path)) is None


def test_a_lock_lost_after_the_arrow_file_leaves_the_part_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock.json"
    lock.write_text('{"token": "mine"}')

    def replace_and_lose(source: Path, path: Path) -> None:
        os.rename(source, path)
        lock.write_text('{"token": "of another"}')

    monkeypatch.setattr(os, "replace", replace_and_lose)
    with pytest.raises(LockedError):
        commit_pixels(
            Layout(tmp_path), RECIPE, 0, rows_of(1), part_fingerprint="a" * 64, fence=atomic.Fence(lock, "mine")
        )
    assert [path.name for path in (tmp_path / "image/pixels").iterdir()] == ["00000.arrow"]


def test_the_fingerprint_covers_rule_decoding_and_probe_and_not_the_tools() -> None:
    covered = {"rule": RECIPE.rule, "decoding": RECIPE.decoding, "probe": RECIPE.probe}
    spelt = json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()
    assert RECIPE.fingerprint == hashlib.sha256(spelt).hexdigest()
    assert replace(RECIPE, tools={}).fingerprint == RECIPE.fingerprint


def test_the_recipe_of_the_pixels_is_published_once_and_never_changed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert read_pixels_recipe(layout) is None
    publish_pixels_recipe(layout, RECIPE, fence=None)
    assert read_pixels_recipe(layout) == RECIPE
    publish_pixels_recipe(layout, replace(RECIPE, probe="0" * 64), fence=None)
    assert read_pixels_recipe(layout) == RECIPE


def test_a_recipe_of_other_fields_or_without_its_seal_is_refused(tmp_path: Path) -> None:
    path = Layout(tmp_path).pixels_json
    path.parent.mkdir()
    atomic.publish_json(path, seal({"rule": {}}))
    with pytest.raises(DamagedError, match=r"pixels\.json does not describe pixels \(.*\): restore it from a copy"):
        read_pixels_recipe(Layout(tmp_path))
    path.write_text(json.dumps(asdict(RECIPE)))
    with pytest.raises(DamagedError, match="is not a sealed JSON object"):
        read_pixels_recipe(Layout(tmp_path))
