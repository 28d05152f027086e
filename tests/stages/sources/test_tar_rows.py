"""Tars whose samples give several rows, and tars of sentences."""

import json
from pathlib import Path
from typing import Any

import pytest

from cache_schema.errors import MismatchError, RefusedError, UsageError
from cache_schema.layout import Modality
from stages.sources.tar import TarSource
from tests.corpora.pictures import jpeg
from tests.corpora.samples import rows_of, samples_of
from tests.corpora.webdataset import write_tar

IMAGE = jpeg(16, 12)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.tar"


def source_of(path: Path, modality: Modality = "text", **options: str) -> TarSource:
    return TarSource(str(path), modality, options)


def captions(value: Any, key: str = "caption") -> bytes:
    return json.dumps({key: value}).encode()


def test_every_sentence_of_a_sample_is_a_row_and_txt_comes_before_json(path: Path) -> None:
    members = [
        ("a.jpg", IMAGE),
        ("a.txt", b"one line\n"),
        ("a.json", captions("not this one")),
        ("b.0.txt", b"two\nlines\r\n"),
        ("b.1.TXT", b""),
        ("c.cls", b"3"),
        ("d.json", captions(["first", "second", None, "third"])),
        ("e.json", captions("only", key="text")),
        ("f.json", captions([])),
        ("g.json", captions(5)),
        ("h.json", b'{"caption": '),
        ("i.json", captions("\ud800")),
        ("j.json", b"[]"),
    ]
    assert rows_of(source_of(write_tar(path, members))) == [
        ("a", b"one line", "ok"),
        ("b", b"two\nlines", "ok"),
        ("b#1", b"", "ok"),
        ("c", None, "src-no-text"),
        ("d", b"first", "ok"),
        ("d#1", b"second", "ok"),
        ("d#2", None, "text-type"),
        ("d#3", b"third", "ok"),
        ("e", b"only", "ok"),
        ("f", None, "src-no-text"),
        ("g", None, "text-type"),
        ("h", None, "text-json"),
        ("i", None, "text-encoding"),
        ("j", None, "text-json"),
    ]
    assert source_of(path).scan().ignored == {".jpg": 1, ".json": 1, ".cls": 1}


def test_the_extension_and_the_key_of_the_sentences_can_be_chosen(path: Path) -> None:
    both = json.dumps({"caption": "short", "alt": ["a", "b"]}).encode()
    write_tar(path, [("a.txt", b"plain"), ("a.json", both), ("b.txt", b"plain")])
    assert rows_of(source_of(path, ext="json")) == [("a", b"short", "ok"), ("b", None, "src-no-text")]
    assert [key for key, _, _ in rows_of(source_of(path, ext="json", json_key="alt"))] == ["a", "a#1", "b"]
    with pytest.raises(RefusedError, match=r"no .json has text under 'nothing' \(the first has caption, alt\)"):
        source_of(path, ext="json", json_key="nothing").scan()


def test_options_of_the_other_modality_and_unknown_values_are_usage_errors(path: Path) -> None:
    for modality, options, words in (
        ("text", {"images": "all"}, "not for texts"),
        ("image", {"ext": "txt"}, "not for images"),
        ("image", {"images": "both"}, "known: all, first"),
        ("text", {"ext": "csv"}, "known: json, txt"),
    ):
        with pytest.raises(UsageError, match=words):
            source_of(path, modality, **options)  # type: ignore[arg-type]


def test_a_tar_without_a_sentence_is_a_usage_error(path: Path) -> None:
    with pytest.raises(UsageError, match=r"no texts .*found \.jpg.*KEY\.txt or KEY\.json"):
        source_of(write_tar(path, [("a.jpg", IMAGE)])).scan()


def test_all_images_of_a_sample_are_rows_only_when_asked_for(path: Path) -> None:
    members = [("a.jpg", IMAGE), ("a.seg.png", b"second"), ("a.txt", b"x"), ("b.txt", b"x"), ("c.depth.webp", b"third")]
    write_tar(path, members)
    assert rows_of(source_of(path, "image")) == [
        ("a", IMAGE, "ok"),
        ("b", None, "src-no-image"),
        ("c", None, "src-no-image"),
    ]
    assert rows_of(source_of(path, "image", images="all")) == [
        ("a", IMAGE, "ok"),
        ("a#1", b"second", "ok"),
        ("b", None, "src-no-image"),
        ("c", b"third", "ok"),
    ]
    assert source_of(path, "image", images="all").scan().ignored == {".txt": 2}


def test_a_sample_named_like_the_second_row_of_another_is_refused(path: Path) -> None:
    write_tar(path, [("a.json", captions(["x", "y"])), ("a#1.txt", b"z")])
    with pytest.raises(RefusedError, match=r"'a#1' comes twice .* at offset 0 and again at 1,024"):
        source_of(path).scan()


def test_the_fingerprint_sees_what_decides_how_many_rows_there_are(path: Path) -> None:
    before = source_of(write_tar(path, [("a.json", captions(["x", "y"]))])).scan()
    after = source_of(write_tar(path, [("a.json", captions(['x", y']))])).scan()
    assert (before.num_samples, after.num_samples) == (2, 1) and before.fingerprint != after.fingerprint
    images = source_of(write_tar(path, [("a.jpg", IMAGE), ("a.png", IMAGE), ("a.txt", b"x")]), "image").scan()
    others = [source_of(path, "image", images="all").scan(), source_of(path).scan()]
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_large_members_are_set_aside_unread_and_too_many_rows_are_refused(path: Path) -> None:
    write_tar(path, [("a.txt", b"x" * 1_048_577), ("b.json", captions("x" * 1_048_577)), ("c.txt", b"fine")])
    assert [status for _, _, status in rows_of(source_of(path))] == ["text-too-long", "text-too-long", "ok"]
    write_tar(path, [("a.json", captions(["x"] * 511))])
    assert len(rows_of(source_of(path))) == 511
    write_tar(path, [("a.json", captions(["x"] * 512))])
    with pytest.raises(RefusedError, match="sample 'a' has 512 texts, over 511"):
        source_of(path).scan()


def test_a_caption_that_changed_is_refused_when_it_is_read_again(path: Path) -> None:
    source = source_of(write_tar(path, [("a.json", captions(["first", "second"]))]))
    sample = samples_of(source)[1]
    write_tar(path, [("a.json", captions(["first", "2nd"]))])
    with pytest.raises(MismatchError, match=r"text 2 of the \.json .*restore it"):
        source.read_one(sample.key, sample.offset_bytes, sample.size_bytes)
