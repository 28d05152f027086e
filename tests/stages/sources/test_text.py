"""Text files: lines, line ends, encodings and sizes."""

from pathlib import Path

import pytest

from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError
from stages.sources import text as text_module
from stages.sources.text import TextSource
from tests.corpora.samples import rows_of


def source_of(path: Path, **options: str) -> TextSource:
    return TextSource(str(path), "text", options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.txt"


def test_every_line_is_a_row_empty_ones_too(path: Path) -> None:
    path.write_bytes(b"one\n\nthree\r\n \nlast without a line end")
    assert rows_of(source_of(path)) == [
        ("1", b"one", "ok"),
        ("2", b"", "ok"),
        ("3", b"three", "ok"),
        ("4", b" ", "ok"),
        ("5", b"last without a line end", "ok"),
    ]


def test_only_the_line_feed_ends_a_line(path: Path) -> None:
    text = "a\u2028b\x0bc\x85d\x00e"
    path.write_bytes(text.encode() + b"\n")
    assert rows_of(source_of(path)) == [("1", text.encode(), "ok")]


def test_a_signature_at_the_start_of_the_file_is_not_text(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbffirst\n\xef\xbb\xbfsecond\n")
    assert rows_of(source_of(path)) == [("1", b"first", "ok"), ("2", b"\xef\xbb\xbfsecond", "ok")]


def test_a_signature_is_not_text_whatever_the_declared_encoding(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbffirst\nsecond\n")
    assert [text for _, text, _ in rows_of(source_of(path, encoding="latin-1"))] == [b"first", b"second"]


def test_a_file_of_nothing_is_refused_and_one_with_only_a_signature_is_an_empty_shard(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(DamagedError, match=r"lines\.txt is empty \(0 bytes\): fetch it again, or leave it out"):
        source_of(path).scan()
    path.write_bytes(b"\xef\xbb\xbf")
    assert source_of(path).scan().num_samples == 0


@pytest.mark.parametrize("size", [10, 5000])
@pytest.mark.parametrize("cut", [9, 12, 3_000])
def test_a_tail_of_zeros_is_a_download_that_was_cut(cut: int, size: int, path: Path) -> None:
    path.write_bytes((b"sentence\n" * 1000)[:cut] + bytes(size))
    with pytest.raises(
        DamagedError,
        match=rf"zero bytes stand in place of text from line {cut // 9 + 1:,} \(offset {cut:,}\) on: .*fetch it again",
    ):
        source_of(path).scan()


def test_a_carriage_return_alone_is_refused_with_its_line_and_one_before_a_line_feed_is_an_end(path: Path) -> None:
    path.write_bytes(b"one\r\ntwo\r\nthree\r")
    assert [text for _, text, _ in rows_of(source_of(path))] == [b"one", b"two", b"three"]
    for content, line in ((b"a\rb\rc\r", 1), (b"a\r\nb\rc\r\n", 2), (b"a\nb\r\r\n", 2), (b"a\n" * 5000 + b"\rb", 5001)):
        path.write_bytes(content)
        with pytest.raises(
            RefusedError, match=rf"a carriage return without a line feed in line {line:,} \(offset .*tr"
        ):
            source_of(path).scan()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_refused_with_a_hint(encoding: str, path: Path) -> None:
    path.write_bytes("a sentence\nanother one\n".encode(encoding))
    with pytest.raises(RefusedError, match="iconv"):
        source_of(path).scan()


def test_latin_1_is_refused_with_a_hint_unless_declared(path: Path) -> None:
    path.write_bytes("caf\xe9\nplain\nna\xefve\n".encode("latin-1"))
    with pytest.raises(RefusedError, match=r"2 of 3 lines are not UTF-8, the first is line 1.*encoding=latin-1"):
        source_of(path).scan()
    assert [line for _, line, _ in rows_of(source_of(path, encoding="latin-1"))] == [
        "caf\xe9".encode(),
        b"plain",
        "na\xefve".encode(),
    ]
    with pytest.raises(UsageError, match="did you mean 'latin-1'"):
        source_of(path, encoding="latin1")


def test_one_damaged_line_in_many_keeps_its_row_for_the_cleaning_to_judge(path: Path) -> None:
    path.write_bytes(b"good\n" * 150 + b"\xff\xfe\n" + b"good\n" * 150)
    assert rows_of(source_of(path))[150] == ("151", b"\xff\xfe", "ok")


def test_a_byte_that_the_declared_encoding_lacks_sets_its_line_aside(path: Path) -> None:
    path.write_bytes(b"fine\n\x81\n")
    assert rows_of(source_of(path, encoding="cp1252"))[1] == ("2", None, "text-encoding")


def test_a_line_of_ten_megabytes_is_set_aside_unread_and_shifts_nothing(path: Path) -> None:
    path.write_bytes(b"before\n" + b"x" * 10_000_000 + b"\nafter\n" + b"y" * 1_048_576 + b"\nlast\n")
    assert [(key, line and line[:6], status) for key, line, status in rows_of(source_of(path))] == [
        ("1", b"before", "ok"),
        ("2", None, "text-too-long"),
        ("3", b"after", "ok"),
        ("4", b"yyyyyy", "ok"),
        ("5", b"last", "ok"),
    ]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64])
def test_lines_are_found_whatever_the_chunks_they_are_read_in(
    chunk_bytes: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "\ufeff" + "\u00e9\u00e8\n\n\U0001f600 x\r\n" * 5 + "end"
    path.write_bytes(content.encode())
    expected = rows_of(source_of(path))
    monkeypatch.setattr(text_module, "_CHUNK_BYTES", chunk_bytes)
    assert rows_of(source_of(path)) == expected
    assert len(expected) == 16


def test_a_damaged_line_longer_than_a_chunk_is_counted_without_raising(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_module, "_CHUNK_BYTES", 8)
    path.write_bytes(b"ok\n" + b"\xff" * 100 + b"\n" + b"ok\n" * 300)
    assert source_of(path).scan().num_samples == 302


def test_a_file_that_shrinks_after_its_scan_is_refused_when_read(path: Path) -> None:
    path.write_bytes(b"one\ntwo\nthree\n")
    source = source_of(path)
    source.scan()
    path.write_bytes(b"one\n")
    with pytest.raises(MismatchError, match="ends after 1 lines"):
        list(source.read(0, 3, 0))
    with pytest.raises(MismatchError, match=r"line 3 of .* is not 5 bytes"):
        source.read_one("3", 8, 5)
