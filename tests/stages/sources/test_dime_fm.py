"""TSV files of DIME-FM: keys, captions, base64, and files that are cut."""

import base64
import json
from pathlib import Path

import pytest

from cache_schema.errors import DamagedError, MismatchError, RefusedError
from stages.files import keyed_lines
from stages.sources.dime_fm import DimeFmSource, caption_of
from tests.corpora.pictures import jpeg
from tests.corpora.samples import outcomes_of, rows_of


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def images(path: Path) -> DimeFmSource:
    return DimeFmSource(str(path), "image", {})


def texts(path: Path) -> DimeFmSource:
    return DimeFmSource(str(path), "text", {})


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ('{"captions": ["a dog"]}', "a dog"),
        ('{"captions": "a dog"}', "a dog"),
        ('{"caption": ["a dog"]}', "a dog"),
        ('[{"captions": ["a dog"]}, {"captions": ["a cat"]}]', "a dog"),
        ('"a dog"', "a dog"),
        ("a dog", "a dog"),
        ("  a dog ", "a dog"),
        ("2019", "2019"),
        ("{braces but no JSON", "{braces but no JSON"),
        ('{"captions": ["caf\\u00e9"]}', "café"),
    ],
)
def test_a_caption_is_found_where_the_official_reader_finds_it(column: str, expected: str) -> None:
    assert caption_of(column.encode()) == (expected.encode(), "")


@pytest.mark.parametrize(
    ("column", "why"),
    [
        ('{"captions": ["a dog", "a cat"]}', "several captions"),
        ('{"tags": "dog"}', "a prompt drawn at random"),
        ('{"task": "classification", "class_name": "dog"}', "a prompt drawn at random"),
        ('{"captions": []}', "no caption"),
        ('{"captions": [7]}', "no caption"),
        ("[]", "no caption"),
        ('{"url": "x"}', "no caption"),
    ],
)
def test_a_caption_that_nobody_can_know_is_a_bad_row(column: str, why: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "a\tfirst", f"b\t{column}", "c\tlast")
    assert outcomes_of(texts(path)) == [("a", "ok", ""), ("b", "text-type", why), ("c", "ok", "")]


def test_bad_base64_and_a_missing_column_keep_their_rows(tmp_path: Path) -> None:
    good = base64.b64encode(jpeg(9, 8, 1)).decode()
    path = write(tmp_path / "i.tsv", f"a\t{good}", "b\t!!!!", f"c\t{good[:-3]}", "d", f"e\t {good} \tmore")
    assert outcomes_of(images(path)) == [
        ("a", "ok", ""),
        ("b", "src-encoding", "not base64"),
        ("c", "src-encoding", "not base64"),
        ("d", "src-no-image", "no second column"),
        ("e", "ok", ""),
    ]


def test_a_cut_file_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "i.tsv"
    path.write_bytes(b"a\tQUJD\nb\tQUJ")
    with pytest.raises(DamagedError, match=r"i\.tsv ends inside line 2 \(byte 7\).*cut"):
        images(path).scan()


def test_a_line_index_of_another_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "i.feat.tsv", "a\tQUJD", "b\tQUJD", "c\tQUJD")
    index = tmp_path / "i.feat.lineidx"
    index.write_text("0\n7\n14\n")
    assert images(path).scan().num_samples == 3
    index.write_text("0\n7\n14\n21\n")
    with pytest.raises(DamagedError, match=r"starts at byte 14, .*lineidx says 21"):
        images(path).scan()


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="key 'b' stands in line 2 and again in line 4"):
        texts(write(tmp_path / "t.tsv", "a\tx", "b\tx", "c\tx", "b\ty")).scan()


@pytest.mark.parametrize("line", ["", "\tx", "  \tx"])
def test_a_line_without_a_key_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"line 2 \(byte 4\) has no key"):
        texts(write(tmp_path / "t.tsv", "a\tx", line)).scan()


def test_a_file_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"t\.tsv is empty \(0 bytes\)"):
        texts(write(tmp_path / "t.tsv")).scan()


def test_endless_bytes_without_a_tab_are_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"x" * (1 << 20))
    with pytest.raises(DamagedError, match="no tab in 65,536 bytes"):
        texts(path).scan()


def test_zeros_and_bare_carriage_returns_are_refused_and_a_byte_order_mark_is_no_letter(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    for content, said in (
        (b"a\tx\n" + bytes(5000), "zero bytes stand in place of text from line 2"),
        (b"a\tx\nb\ty" + bytes(50), "ends inside line 2"),
        (b"a\tx\nb\ty\rc\tz\n", "a carriage return without a line feed in line 2"),
    ):
        path.write_bytes(content)
        with pytest.raises(RefusedError, match=said):
            texts(path).scan()
    path.write_bytes(b"\xef\xbb\xbfa\tx\r\nb\ty\r\n")
    assert rows_of(texts(path)) == [("a", b"x", "ok"), ("b", b"y", "ok")]


def test_lines_are_the_same_wherever_chunks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        f"key {i}\t{json.dumps({'captions': ['é' * i]})}" + ("\tthird\tcolumns" if i % 3 else "") for i in range(20)
    ]
    source = texts(write(tmp_path / "t.tsv", *lines, "no column"))
    whole = source.scan(), list(source.read(0, 21, 0))
    for chunk_bytes in (1, 2, 7, 64):
        monkeypatch.setattr(keyed_lines, "_CHUNK_BYTES", chunk_bytes)
        scan = source.scan()
        assert scan.offsets.tolist() == whole[0].offsets.tolist() and scan.fingerprint == whole[0].fingerprint
        assert list(source.read(0, 21, 0)) == whole[1]


def test_a_changed_caption_or_picture_is_not_returned(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "a\tone two three")
    source = texts(path)
    (sample,) = source.read(0, 1, 0)
    write(path, "a\tone two")
    with pytest.raises(MismatchError, match="restore"):
        source.read_one("a", sample.offset_bytes, sample.size_bytes)
