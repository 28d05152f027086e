"""Folders of images: order, what is left out, and files that are not what they seem."""

import os
from pathlib import Path

import pytest

from cache_schema.errors import MismatchError, RefusedError, UsageError
from stages.sources import RawSample
from stages.sources.folder import FolderSource
from tests.corpora.pictures import encoded, jpeg, noise

IMAGE = jpeg(16, 12)


def source_of(path: Path) -> FolderSource:
    return FolderSource(str(path), "image", {})


def write(path: Path, data: bytes = IMAGE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def by_key(samples: list[RawSample]) -> dict[str, tuple[str, str]]:
    return {sample.key: (sample.status, sample.reason) for sample in samples}


def test_files_come_in_the_order_of_their_names_with_their_paths_as_keys(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.PNG", "a.webp", "c.jpeg", "notes.txt", ".hidden.jpg", ".git/x.jpg", "model.pt"):
        write(tmp_path / name)
    source = source_of(tmp_path)
    scan = source.scan()
    assert [sample.key for sample in source.read(0, 4)] == ["a.webp", "b/10.PNG", "b/2.jpg", "c.jpeg"]
    assert scan.ignored == {".txt": 1, ".pt": 1}


def test_files_that_cannot_be_read_keep_their_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    write(tmp_path / "b.jpg")
    write(tmp_path / "c.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink("nowhere.jpg", tmp_path / "dangling.jpg")
    os.symlink("a.jpg", tmp_path / "link.jpg")
    (tmp_path / "zfolder.jpg").mkdir()
    source = source_of(tmp_path)
    assert source.scan().num_samples == 6
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c.jpg").unlink()
    (tmp_path / "c.jpg").mkdir()
    samples = list(source.read(0, 6))
    assert by_key(samples) == {
        "a.jpg": ("ok", ""),
        "b.jpg": ("src-unreadable", "gone"),
        "c.jpg": ("src-unreadable", "not a regular file"),
        "dangling.jpg": ("src-unreadable", "not a readable file"),
        "link.jpg": ("ok", ""),
        "pipe.jpg": ("src-unreadable", "not a readable file"),
    }
    assert all((sample.payload is None) == (sample.status != "ok") for sample in samples)


def test_a_file_of_another_size_than_listed_has_changed(tmp_path: Path) -> None:
    for name in ("grown.jpg", "shrunk.jpg"):
        write(tmp_path / name)
    source = source_of(tmp_path)
    source.scan()
    write(tmp_path / "grown.jpg", IMAGE + b"x")
    write(tmp_path / "shrunk.jpg", IMAGE[:50])
    assert {sample.status for sample in source.read(0, 2)} == {"src-changed"}
    with pytest.raises(MismatchError, match="changed since it was planned"):
        source.read_one("grown.jpg", 0, len(IMAGE))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").chmod(0)
    source = source_of(tmp_path)
    source.scan()
    assert by_key(list(source.read(0, 1))) == {"a.jpg": ("src-unreadable", "no permission")}


def test_an_empty_folder_is_a_usage_error_that_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it is empty"):
        source_of(tmp_path).scan()
    write(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match=r"found 1 \.txt"):
        source_of(tmp_path).scan()
    write(tmp_path / "0.tar")
    with pytest.raises(UsageError, match=r"it holds 1 tars.*\*\.tar"):
        source_of(tmp_path).scan()


def test_a_folder_that_changed_since_the_plan_is_refused_when_listed_anew(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write(tmp_path / name)
    scan = source_of(tmp_path).scan()
    planned = source_of(tmp_path)
    planned.require_planned(scan.fingerprint, scan.state)
    write(tmp_path / "aa.jpg")
    assert [sample.key for sample in planned.read(0, 2, 0)] == ["a.jpg", "b.jpg"]
    with pytest.raises(MismatchError, match="changed since it was planned"):
        source_of(tmp_path).require_planned(scan.fingerprint, scan.state)


def test_a_resized_file_is_its_own_rows_matter_where_it_is_newer_than_all_that_were_planned(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write(tmp_path / name)
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    scan = source_of(tmp_path).scan()
    (tmp_path / "b.jpg").write_bytes(b"longer than before")
    source_of(tmp_path).require_planned(scan.fingerprint, scan.state)
    os.utime(tmp_path / "b.jpg", ns=(10**18, 10**18))
    with pytest.raises(MismatchError, match="resized"):
        source_of(tmp_path).require_planned(scan.fingerprint, scan.state)


def test_a_picture_under_a_wrong_extension_is_ok_and_noted(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", encoded(noise(8, 8), "PNG"))
    source = source_of(tmp_path)
    source.scan()
    assert by_key(list(source.read(0, 1))) == {"a.jpg": ("ok", "misnamed")}


def test_a_name_that_is_not_utf_8_keeps_its_row_under_an_escaped_key(tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"\xe9.jpg"), "wb") as file:
        file.write(IMAGE)
    source = source_of(tmp_path)
    source.scan()
    assert by_key(list(source.read(0, 1))) == {"\\xe9.jpg": ("src-unreadable", "not a readable file")}


def test_a_key_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jpg")
    write(tmp_path / "secret.jpg")
    for key in ("../secret.jpg", str(tmp_path / "secret.jpg")):
        with pytest.raises(RefusedError, match="leads out"):
            source_of(tmp_path / "in").read_one(key, 0, len(IMAGE))
