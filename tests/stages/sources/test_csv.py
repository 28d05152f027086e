"""CSV: rows as the standard library reads them, with their places in the file; and files that are refused."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_schema.errors import RefusedError, UsageError
from stages.sources import csv as csv_module
from stages.sources import expand
from stages.sources.csv import CsvSource, fields_of
from tests.corpora.samples import rows_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def source_of(path: Path, **options: str) -> CsvSource:
    return CsvSource(str(path), "text", options)


pieces = st.lists(st.sampled_from(["a", "é", '"', '""', ",", "\n", "\r\n", " ", ';"']), max_size=40).map("".join)


@given(content=pieces, piece_bytes=st.sampled_from([1, 2, 3, 1 << 20]))
def test_rows_and_fields_are_those_of_the_standard_library(content: str, piece_bytes: int) -> None:
    source = CsvSource("/nowhere.csv", "text", {"header": "no", "column": "1"})
    data = content.encode()
    expected = [row or [""] for row in csv.reader(io.StringIO(content, newline=""))]
    before, csv_module._PIECE_BYTES = csv_module._PIECE_BYTES, piece_bytes
    try:
        # Not at 0, where the first characters may be a signature or look like UTF-16.
        entries = list(source._rows(io.BytesIO(data), 1000))
    except RefusedError:
        with pytest.raises(csv.Error):
            list(csv.reader(io.StringIO(content, newline=""), strict=True))
        return
    finally:
        csv_module._PIECE_BYTES = before
    assert b"".join(entry.data or b"" for entry in entries) == data
    assert [entry.offset_bytes for entry in entries] == [
        1000 + sum(len(entry.data or b"") for entry in entries[:number]) for number in range(len(entries))
    ]
    found = [fields_of(entry.data or b"", b",") for entry in entries]
    assert found == [[field.encode() for field in row] for row in expected]


def test_columns_are_found_by_name_and_rows_may_span_lines(path: Path) -> None:
    path.write_bytes(b'id,"text",n\r\nx,"one\r\ntwo ""quoted"", three",1\r\ny,plain,2\r\nz,"",3')
    assert rows_of(source_of(path)) == [
        ("1", b'one\r\ntwo "quoted", three', "ok"),
        ("2", b"plain", "ok"),
        ("3", b"", "ok"),
    ]
    assert [key for key, _, _ in rows_of(source_of(path, key_column="id"))] == ["x", "y", "z"]


def test_without_a_header_columns_are_numbers(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfone;1\ntwo;2\n")
    options = {"header": "no", "delimiter": ";"}
    assert [text for _, text, _ in rows_of(source_of(path, **options, column="1"))] == [b"one", b"two"]
    with pytest.raises(RefusedError, match="no column '3'"):
        source_of(path, **options, column="3").scan()
    for column in ("0", "text"):
        with pytest.raises(UsageError, match="count from 1"):
            source_of(path, **options, column=column)
    with pytest.raises(UsageError, match="by its number"):
        source_of(path, **options)


def test_tabs_cut_a_tsv_and_quotes_may_mean_nothing(path: Path) -> None:
    tsv = path.with_suffix(".tsv")
    tsv.write_bytes(b'text\turl\n"an inch is 1"\tx\n"open\ty\n')
    assert [text for _, text, _ in rows_of(source_of(tsv, quotes="no"))] == [b'"an inch is 1"', b'"open']
    path.write_bytes(tsv.read_bytes())
    assert len(rows_of(source_of(path, quotes="no", delimiter="tab"))) == 2


def test_a_quote_that_is_never_closed_is_refused_naming_its_line(path: Path) -> None:
    path.write_bytes(b'text\none\n"two\nlines"\n"never closed\nfour\n' + b"five\n" * 1000)
    with pytest.raises(RefusedError, match=r"row at line 5 \(offset 21\) is never closed"):
        source_of(path).scan()


def test_rows_with_another_number_of_fields_keep_their_rows_until_they_are_many(path: Path) -> None:
    good = b"a,b\n" * 150
    path.write_bytes(b"text,n\n" + good + b"a, b,c\n" + good + b"\n" + b"d\re,f\n" + good)
    statuses = [status for _, _, status in rows_of(source_of(path))]
    assert {number: status for number, status in enumerate(statuses) if status != "ok"} == {
        150: "text-csv",
        301: "text-empty",
        302: "text-csv",
    }
    path.write_bytes(b"text,n\n" + b"a,b\n" * 97 + b"a\n" * 3)
    with pytest.raises(RefusedError, match=r"3 of 100 rows are broken, the first in line 99"):
        source_of(path).scan()


def test_latin_1_is_refused_with_a_hint_unless_declared(path: Path) -> None:
    path.write_bytes("text\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(RefusedError, match=r"not in utf-8.*declare its encoding"):
        source_of(path).scan()
    assert rows_of(source_of(path, encoding="latin-1")) == [("1", "caf\xe9".encode(), "ok")]
    path.write_bytes("text\na sentence\n".encode("utf-16"))
    with pytest.raises(RefusedError, match="iconv"):
        source_of(path).scan()


def test_a_missing_or_doubled_column_is_refused_listing_the_found_ones(path: Path) -> None:
    path.write_bytes(b"caption,caption,id\na,b,c\n")
    with pytest.raises(RefusedError, match=r"no column 'text' \(found caption, caption, id\)"):
        source_of(path).scan()
    with pytest.raises(RefusedError, match="more than one column 'caption'"):
        source_of(path, column="caption").scan()
    with pytest.raises(RefusedError, match="no column 'key'"):
        source_of(path, column="id", key_column="key").scan()


def test_a_repeated_key_is_refused_with_both_lines(path: Path) -> None:
    path.write_bytes(b'text,id\n"a\nb",x\nc,y\nd,x\n')
    with pytest.raises(RefusedError, match="key 'x' stands in line 2 and again in line 5"):
        source_of(path, key_column="id").scan()


def test_a_row_of_ten_megabytes_is_set_aside_unread_and_shifts_nothing(path: Path) -> None:
    path.write_bytes(b'text\nbefore\n"' + (b"x" * 1000 + b'\n""') * 10_000 + b'"\nafter\n')
    assert [(status, text) for _, text, status in rows_of(source_of(path))] == [
        ("ok", b"before"),
        ("text-too-long", None),
        ("ok", b"after"),
    ]


def test_nul_in_a_field_shifts_nothing(path: Path) -> None:
    path.write_bytes(b"text,n\na\x00b,1\nc,2\n")
    assert [text for _, text, _ in rows_of(source_of(path))] == [b"a\0b", b"c"]


@pytest.mark.parametrize("content", [b"", b"text\n", b"\xef\xbb\xbf"], ids=["empty", "header only", "signature only"])
def test_a_table_without_rows_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises((UsageError, RefusedError)):
        source_of(path).scan()


def test_misspelt_options_are_usage_errors(path: Path) -> None:
    path.write_bytes(b"text\na\n")
    for option in ("delimiter=x", "encoding=utf8", "header=maybe", "quotes=0"):
        with pytest.raises(UsageError, match="known:"):
            expand(f"{path}?{option}", "text")
