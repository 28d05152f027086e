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


def test_the_sentence_is_the_txt_else_all_of_the_json_and_never_a_member_with_further_dots(path: Path) -> None:
    members = [
        ("a.jpg", IMAGE),
        ("a.txt", b"one line\n"),
        ("a.json", captions("not this one")),
        ("b.0.txt", b"dotted"),
        ("b.TXT", b"two\nlines\r\n"),
        ("c.cls", b"3"),
        ("d.json", captions(["first", "second", None, "third"])),
        ("e.json", captions("only", key="text")),
        ("f.json", captions([])),
        ("g.json", captions(5)),
        ("h.json", b'{"caption": '),
        ("i.json", captions("\ud800")),
        ("j.json", b"[]"),
        ("k.url.txt", b"https://example.org"),
        ("k.json", b'{"uid": 1}'),
        ("l.url.txt", b"https://example.org"),
        ("l.syn.json", captions("dotted")),
    ]
    assert rows_of(source_of(write_tar(path, members))) == [
        ("a", b"one line", "ok"),
        ("b", b"two\nlines", "ok"),
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
        ("k", None, "text-type"),
        ("l", None, "src-no-text"),
    ]
    ignored = {".jpg": 1, ".json": 1, ".0.txt": 1, ".cls": 1, ".url.txt": 2, ".syn.json": 1}
    assert source_of(path).scan().ignored == ignored


def data_comp_dr(path: Path, num_samples: int) -> Path:
    members = []
    for number in range(num_samples):
        members += [
            (f"{number:032d}.url.txt", b"https://example.org/1.jpg"),
            (f"{number:032d}.syn.json", captions([f"{number} first", f"{number} second"], key="syn_text")),
            (f"{number:032d}.paug.json", b'{"param_aug": "[[0, 1]]"}'),
            (f"{number:032d}.npz", b"PK"),
            (f"{number:032d}.json", b'{"uid": "x", "sha256": "y"}'),
        ]
    return write_tar(path, members)


def test_the_captions_of_data_comp_dr_are_read_with_one_option_and_named_where_it_is_missing(path: Path) -> None:
    data_comp_dr(path, 2)
    found = [(text, status) for _, text, status in rows_of(source_of(path, ext="syn.json"))]
    assert found == [(b"0 first", "ok"), (b"0 second", "ok"), (b"1 first", "ok"), (b"1 second", "ok")]
    with pytest.raises(
        RefusedError, match=r"the first has uid, sha256.*\?ext=NAME \(found url\.txt, syn\.json, paug\.json"
    ):
        source_of(path).scan()


def test_the_first_extension_that_is_there_counts_and_a_star_takes_all_of_its_kind(path: Path) -> None:
    members = [
        ("a.txt", b"plain"),
        ("a.caption.txt", b"dotted"),
        ("b.txt", b"plain"),
        ("c.0.txt", b"0"),
        ("c.1.TXT", b"1"),
    ]
    write_tar(path, members)
    assert rows_of(source_of(path, ext="caption.txt")) == [
        ("a", b"dotted", "ok"),
        ("b", None, "src-no-text"),
        ("c", None, "src-no-text"),
    ]
    assert [text for _, text, _ in rows_of(source_of(path, ext="caption.txt,txt"))] == [b"dotted", b"plain", None]
    every = [("a", b"plain"), ("a#1", b"dotted"), ("b", b"plain"), ("c", b"0"), ("c#1", b"1")]
    assert [(key, text) for key, text, _ in rows_of(source_of(path, ext="*.txt"))] == every


def test_a_json_without_the_key_is_no_row_where_another_member_has_a_sentence(path: Path) -> None:
    write_tar(path, [("a.json", b'{"uid": 1}'), ("a.meta.json", captions("here")), ("b.json", b'{"uid": 2}')])
    for extensions in ("json,meta.json", "*.json"):
        assert rows_of(source_of(path, ext=extensions)) == [("a", b"here", "ok"), ("b", None, "text-type")]


def test_a_byte_order_mark_at_the_start_of_a_member_is_no_letter(path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    members = [("a.txt", mark + b"caption\r\n"), ("b.json", mark + captions(["x", "y"])), ("c.txt", b"in " + mark)]
    expected = [b"caption", b"x", b"y", b"in " + mark]
    assert [text for _, text, _ in rows_of(source_of(write_tar(path, members)))] == expected
    with pytest.raises(MismatchError, match=r"an earlier version, which took other members of sample 'b'"):
        list(source_of(path).read(1, 1, 1024))
    old = source_of(path).read_one("a", 512, 10)
    assert old == mark + b"caption", "as earlier versions planned it"


def test_a_text_that_ends_in_zero_bytes_is_set_aside(path: Path) -> None:
    write_tar(path, [("a.txt", b"torn sent\0\0\0"), ("b.txt", b"a\0b")])
    assert rows_of(source_of(path)) == [("a", None, "text-encoding"), ("b", b"a\0b", "ok")]


def test_what_an_earlier_version_planned_of_other_members_is_refused_and_the_rest_has_its_old_fingerprint(
    path: Path,
) -> None:
    same = [("a.txt", b"x"), ("b.json", captions("x")), ("c.json", b'{"uid": 1}')]
    scan = source_of(write_tar(path, same)).scan()
    # Of the version before.
    assert scan.fingerprint == "b886c143637623fea2463154c93e87c60d677a2ab7e556234b303ad05da2c357"
    assert scan.offsets.tolist() == [0, 1024, 2048]
    other = [("a.txt", b"x"), ("b.0.txt", b"x"), ("b.1.txt", b"x")]
    source = source_of(write_tar(path, other))
    scan = source.scan()
    assert len(list(source.read(0, 2, int(scan.offsets[0])))) == scan.num_samples == 2
    with pytest.raises(MismatchError, match=r"an earlier version, which took other members of sample 'b'"):
        list(source.read(1, 1, 1024))


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
