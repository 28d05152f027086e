"""A part is read row by row: every planned row with its sample, and its picture where there is one to look at."""

import base64
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError
from cache_schema.layout import Layout, Modality
from cache_schema.plan import Plan
from cache_schema.samples import digest_of
from cache_schema.verify import verify_cache
from stages.extract.grow_plan import grown_plan
from stages.extract.part import in_batches
from stages.extract.reader import PartReader, Row
from stages.images.decode import Limits
from stages.images.preprocess import Preprocess
from stages.images.views import ViewRule
from stages.parts.worker import StageClock
from stages.sources import SOURCES, RawSample
from stages.sources.text import TextSource
from tests.corpora.compressing import write_compressed
from tests.corpora.extracts import extract, extract_config
from tests.corpora.foreign_features import keys_of, sentences_of, vectors, write_npy
from tests.corpora.pictures import jpeg
from tests.corpora.webdataset import write_tar

PREPROCESS = Preprocess((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def plan_of(modality: Modality, *uris: object, part_rows: int = 16) -> Plan:
    return grown_plan(Plan(modality, part_rows), [str(uri) for uri in uris]).plan


def reader_of(
    plan: Plan, *, decode_workers: int = 0, num_views: int = 0, preprocess: Preprocess | None = PREPROCESS
) -> PartReader:
    return PartReader(
        {plan.modality: plan.sources},
        preprocess,
        begun=None,
        layout=Layout(Path("/nowhere")),
        num_views=num_views,
        decode_workers=decode_workers,
        limits=Limits(),
        clock=StageClock("read", "decode"),
    )


def rows_of(plan: Plan, number: int = 0, **views: Any) -> list[Row]:
    reader = reader_of(plan, num_views=len(views.get("views", ())))
    return list(reader.originals(plan.modality, plan.part(number), **views))


def folder_of(path: Path, payloads: list[bytes]) -> Path:
    path.mkdir()
    for number, payload in enumerate(payloads):
        (path / f"{number:03d}.jpg").write_bytes(payload)
    return path


def test_every_planned_image_is_a_row_and_only_those_that_can_be_looked_at_have_a_picture(tmp_path: Path) -> None:
    payloads = [jpeg(20, 12, 0), b"", jpeg(9, 30, 1), b"<html>"]
    plan = plan_of("image", folder_of(tmp_path / "pictures", payloads))
    rows = rows_of(plan, views=(None, ViewRule(1, 0)))
    assert [(row.offset, row.sample.row, row.sample.key, row.sample.source) for row in rows] == [
        (number, number, f"{number:03d}.jpg", 0) for number in range(4)
    ]
    assert [row.sample.digest for row in rows] == [digest_of(payload) for payload in payloads]
    assert [row.sample.status for row in rows] == ["ok", "img-empty", "ok", "img-unknown-format"]
    assert [(row.sample.width, row.sample.height) for row in rows if row.picture] == [(20, 12), (9, 30)]
    shapes = [None if row.picture is None or row.picture.pixels is None else row.picture.pixels.shape for row in rows]
    assert shapes == [(2, 8, 8, 3), None, (2, 8, 8, 3), None]


@pytest.mark.parametrize("decode_workers", [0, 1])
def test_a_picture_that_nobody_looks_at_is_decoded_for_its_size_alone(tmp_path: Path, decode_workers: int) -> None:
    plan = plan_of("image", folder_of(tmp_path / "pictures", [jpeg(20, 12), jpeg(20, 12)[:90]]))
    reader = reader_of(plan, decode_workers=decode_workers)
    samples = [row.sample for row in reader.originals("image", plan.part(0))]
    reader.close()
    assert [(sample.status, sample.width) for sample in samples] == [("ok", 20), ("img-truncated", samples[1].width)]


def test_a_sentence_is_a_row_with_its_text_and_a_bad_one_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b" one \n\n" + b"\x00two\n")
    (tmp_path / "b.txt").write_text("three\nfour\n")
    plan = plan_of("text", tmp_path / "a.txt", tmp_path / "b.txt", part_rows=4)
    rows = [*rows_of(plan), *rows_of(plan, 1)]
    assert [(row.sample.row, row.sample.source, row.sample.text, row.sample.status) for row in rows] == [
        (0, 0, "one", "ok"),
        (1, 0, None, "text-empty"),
        (2, 0, "two", "ok"),
        (3, 1, "three", "ok"),
        (4, 1, "four", "ok"),
    ]
    assert [row.offset for row in rows] == [0, 1, 2, 3, 0] and not any(row.picture for row in rows)


def test_images_known_by_their_features_alone_need_nobody_who_decodes(tmp_path: Path) -> None:
    plan = plan_of("image", f"features:{write_npy(tmp_path / 'f.npy', keys_of(4), sentences_of(4), vectors(4))}")
    rows = list(reader_of(plan, preprocess=None).originals("image", plan.part(0)))
    assert [(row.offset, row.sample.key, row.sample.status, row.picture) for row in rows] == [
        (number, key, "ok", None) for number, key in enumerate(keys_of(4))
    ]
    assert [row.sample.digest for row in rows] == [digest_of(vector.tobytes()) for vector in vectors(4)]


def test_images_known_by_their_features_alone_are_not_decoded_beside_pictures(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "pictures", [jpeg(20, 12, seed) for seed in range(3)])
    features = write_npy(tmp_path / "f.npy", keys_of(4), sentences_of(4), vectors(4))
    rows = rows_of(plan_of("image", pictures, f"features:{features}"))
    assert [(row.sample.status, row.sample.width) for row in rows] == [("ok", 20)] * 3 + [("ok", None)] * 4


def test_a_part_never_holds_more_than_a_payload_or_two(tmp_path: Path) -> None:
    payload_bytes = 4 << 20
    plan = plan_of("image", folder_of(tmp_path / "pictures", [bytes(payload_bytes) for _ in range(12)]))
    reader = reader_of(plan)
    tracemalloc.start()
    rows = list(reader.originals("image", plan.part(0)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 12 and peak < 3 * payload_bytes


class ForgetfulSource(TextSource):
    """A source that ends two samples early without a word."""

    def read(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        yield from list(super().read(first_sample, num_samples, offset_bytes))[:-2]


class GenerousSource(TextSource):
    """A source that gives one sample more than it is asked for."""

    def read(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        yield from super().read(first_sample, num_samples + 1, offset_bytes)


def test_a_source_that_ends_early_is_named_with_the_part_and_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n3\n4\n5\n6\n")
    plan = plan_of("text", tmp_path / "a.txt", part_rows=4)
    monkeypatch.setitem(SOURCES, "text", ForgetfulSource)
    said = r"part 0 of the texts has 4 planned rows, its sources gave 2: .*a\.txt changed after it was planned; restore"
    with pytest.raises(MismatchError, match=said):
        rows_of(plan)


def test_a_part_takes_no_more_than_its_planned_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n3\n4\n5\n6\n")
    plan = plan_of("text", tmp_path / "a.txt", part_rows=4)
    monkeypatch.setitem(SOURCES, "text", GenerousSource)
    assert [row.sample.text for row in rows_of(plan)] == ["1", "2", "3", "4"]


def test_batches_hold_so_many_ok_rows_and_the_bad_ones_between_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\na\nb\n\nc\nd\n\ne\n\n\n")
    rows = rows_of(plan_of("text", tmp_path / "a.txt"))
    assert [[row.sample.text for row in batch] for batch in in_batches(rows, 2)] == [
        [None, "a", "b"],
        [None, "c", "d"],
        [None, "e", None, None],
    ]
    assert [len(batch) for batch in in_batches(rows, 5)] == [8, 2], "bad rows at the end are not lost"
    assert list(in_batches([], 2)) == []


def write_texts(folder: Path) -> tuple[str, ...]:
    lines = [json.dumps({"caption": f"line {number}", "id": f"j{number}"}) for number in range(200)]
    lines[3], lines[150] = json.dumps({"caption": None, "id": "j3"}), "{broken"
    write_compressed(folder / "a.jsonl.zst", "\n".join(lines).encode())
    rows = [f'"row {number},\nsecond line",{number}' for number in range(60)]
    (folder / "b.csv").write_text("\n".join(["caption,n", *rows]))
    captions = [
        ("x.json", {"caption": ["first", "second"]}),
        ("y.json", {"caption": "only"}),
        ("z.json", {"caption": []}),
    ]
    write_tar(folder / "c.tar", [(name, json.dumps(value).encode()) for name, value in captions])
    write_compressed(folder / "d.txt.gz", b"".join(b"text %d\n" % number for number in range(100)))
    names = ("a.jsonl.zst?column=caption&key_column=id", "b.csv?column=caption", "c.tar", "d.txt.gz")
    return tuple(f"{folder}/{name}" for name in names)


def write_images(folder: Path) -> tuple[str, ...]:
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(jpeg(24, 20, number))
    (folder / "paths.csv").write_text("file\n0.jpg\n../secret.jpg\n1.jpg\ngone.jpg\n")
    inline = [base64.b64encode(jpeg(24, 20, number)).decode() for number in (2, 3)]
    (folder / "inline.jsonl").write_text("".join(json.dumps({"image": image}) + "\n" for image in inline))
    write_tar(folder / "both.tar", [("k.jpg", jpeg(20, 24, 5)), ("k.mask.png", jpeg(20, 24, 6))])
    return (f"{folder}/paths.csv?path_column=file", f"{folder}/inline.jsonl", f"{folder}/both.tar?images=all")


def test_every_kind_of_file_gives_its_rows_under_their_keys(tmp_path: Path) -> None:
    sources = {"texts": write_texts(tmp_path), "images": write_images(tmp_path)}
    config = replace(extract_config(tmp_path / "cache"), **sources, max_bad_fraction=0.5)
    extract(config)
    assert verify_cache(config.cache) == []
    cache = Cache.open(config.cache)
    texts = columns_of(cache, "text", ["key", "text", "status"])
    assert len(texts) == 200 + 60 + 4 + 100
    for number, row in enumerate(texts[:200]):
        if number not in (3, 150):
            assert row == (f"j{number}", f"line {number}", "ok")
    assert [texts[3], texts[150]] == [("j3", None, "text-type"), ("#151", None, "text-json")]
    assert texts[200:202] == [("1", "row 0, second line", "ok"), ("2", "row 1, second line", "ok")]
    assert texts[260:264] == [
        ("x", "first", "ok"),
        ("x#1", "second", "ok"),
        ("y", "only", "ok"),
        ("z", None, "src-no-text"),
    ]
    assert texts[264] == ("1", "text 0", "ok") and texts[-1] == ("100", "text 99", "ok")
    assert columns_of(cache, "image", ["key", "width", "status"]) == [
        ("1", 24, "ok"),
        ("2", None, "src-unreadable"),
        ("3", 24, "ok"),
        ("4", None, "src-unreadable"),
        ("1", 24, "ok"),
        ("2", 24, "ok"),
        ("k", 20, "ok"),
        ("k#1", 20, "ok"),
    ]


def columns_of(cache: Cache, modality: str, columns: list[str]) -> list[tuple]:
    rows = np.arange(cache.plan(modality).num_rows)  # type: ignore[arg-type]
    return [tuple(row[name] for name in columns) for row in cache.sample_rows(modality, rows, columns)]  # type: ignore[arg-type]
