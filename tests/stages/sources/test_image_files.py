"""Tables of paths: images in files of their own, none of them outside the root."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import MismatchError, UsageError
from stages.sources import Source, expand, open_source
from tests.corpora.pictures import encoded, jpeg, noise
from tests.corpora.samples import samples_of

IMAGE = jpeg(16, 12)


def write_jsonl(path: Path, paths: list[str]) -> Path:
    path.write_text("".join(json.dumps({"p": one}) + "\n" for one in paths))
    return path


def write_csv(path: Path, paths: list[str]) -> Path:
    path.write_text("p\n" + "".join(f'"{one}"\n' for one in paths))
    return path


def write_parquet(path: Path, paths: list[str]) -> Path:
    pq.write_table(pa.table({"p": paths}), path)
    return path


WRITERS: dict[str, Callable[[Path, list[str]], Path]] = {
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".parquet": write_parquet,
}


@pytest.fixture(params=list(WRITERS))
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[list[str], str], Source]:
    def written(paths: list[str], options: str = "") -> Source:
        path = WRITERS[request.param](tmp_path / f"table{request.param}", paths)
        (source,) = expand(f"{path}?path_column=p{options}", "image")
        return source

    return written


def test_paths_start_from_the_folder_of_the_table_or_from_the_root(
    table: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "in" / "b.jpg").write_bytes(encoded(noise(8, 8), "PNG"))
    samples = samples_of(table(["in/a.jpg", "in/b.jpg", str(tmp_path / "in" / "a.jpg")]))
    assert [(sample.status, sample.reason) for sample in samples] == [("ok", ""), ("ok", "misnamed"), ("ok", "")]
    monkeypatch.chdir(tmp_path)
    source = table(["a.jpg", "./a.jpg"], "&root=in")
    monkeypatch.chdir("/")
    again = open_source(source.uri, source.kind, "image", source.options)
    assert [sample.payload for sample in samples_of(again)] == [IMAGE, IMAGE]
    with pytest.raises(UsageError, match="is not a folder"):
        table(["a.jpg"], f"&root={tmp_path}/nowhere").scan()


def test_nothing_outside_the_root_is_opened(table: Callable[..., Source], tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(IMAGE)
    root = tmp_path / "root"
    root.mkdir()
    (root / "ok.jpg").write_bytes(IMAGE)
    os.symlink("ok.jpg", root / "link.jpg")
    os.symlink(tmp_path / "secret.jpg", root / "out.jpg")
    os.symlink(tmp_path, root / "up")
    os.symlink("loop.jpg", root / "loop.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / "folder.jpg").mkdir()
    expected = {
        "ok.jpg": ("ok", ""),
        "link.jpg": ("ok", ""),
        "../secret.jpg": ("src-unreadable", "leads out of the root"),
        "x/../ok.jpg": ("src-unreadable", "leads out of the root"),
        "%2e%2e/secret.jpg": ("src-unreadable", "leads out of the root"),
        str(tmp_path / "secret.jpg"): ("src-unreadable", "leads out of the root"),
        f"{root}-sibling/ok.jpg": ("src-unreadable", "leads out of the root"),
        "out.jpg": ("src-unreadable", "leads out of the root"),
        "up/secret.jpg": ("src-unreadable", "leads out of the root"),
        "loop.jpg": ("src-unreadable", "cannot be read"),
        "pipe.jpg": ("src-unreadable", "not a regular file"),
        "folder.jpg": ("src-unreadable", "not a regular file"),
        "missing.jpg": ("src-unreadable", "gone"),
        "ok.jpg/below": ("src-unreadable", "gone"),
        "a" * 5000: ("src-unreadable", "cannot be read"),
        "https://host.invalid/x.jpg": ("src-unreadable", "gone"),
    }
    samples = samples_of(table(list(expected), f"&root={root}"))
    found = {name: (sample.status, sample.reason) for name, sample in zip(expected, samples, strict=True)}
    assert found == expected


def test_a_path_with_nul_or_half_a_surrogate_pair_is_not_a_path(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", ["a\x00b.jpg", "\ud800.jpg"])
    (source,) = expand(f"{path}?path_column=p", "image")
    assert [sample.reason for sample in samples_of(source)] == ["not a path", "not a path"]


def test_an_image_that_changed_or_is_gone_is_refused_in_training(table: Callable[..., Source], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    source = table(["a.jpg"])
    (sample,) = samples_of(source)
    assert source.read_one(sample.key, sample.offset_bytes, sample.size_bytes) == IMAGE
    (tmp_path / "a.jpg").write_bytes(IMAGE + b"x")
    with pytest.raises(MismatchError, match=r"changed; restore it"):
        source.read_one(sample.key, sample.offset_bytes, sample.size_bytes)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(MismatchError, match="restore it"):
        source.read_one(sample.key, sample.offset_bytes, sample.size_bytes)
