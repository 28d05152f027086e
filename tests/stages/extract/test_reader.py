"""Sentences and images from every kind of file, extracted into one cache: each row under its key, none lost."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache_schema.cache import Cache
from cache_schema.verify import verify_cache
from tests.corpora.compressing import write_compressed
from tests.corpora.extracts import extract, extract_config
from tests.corpora.pictures import jpeg
from tests.corpora.webdataset import write_tar


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
    texts = rows_of(cache, "text", ["key", "text", "status"])
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
    assert rows_of(cache, "image", ["key", "width", "status"]) == [
        ("1", 24, "ok"),
        ("2", None, "src-unreadable"),
        ("3", 24, "ok"),
        ("4", None, "src-unreadable"),
        ("1", 24, "ok"),
        ("2", 24, "ok"),
        ("k", 20, "ok"),
        ("k#1", 20, "ok"),
    ]


def rows_of(cache: Cache, modality: str, columns: list[str]) -> list[tuple]:

    rows = np.arange(cache.plan(modality).num_rows)  # type: ignore[arg-type]
    return [tuple(row[name] for name in columns) for row in cache.sample_rows(modality, rows, columns)]  # type: ignore[arg-type]
