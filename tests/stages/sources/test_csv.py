"""CSV: rows as the standard library reads them, with their places in the file; and files that are refused."""

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_schema.errors import DamagedError, RefusedError, UsageError
from stages.sources import csv as csv_module
from stages.sources import expand
from stages.sources.csv import CsvSource, fields_of
from tests.corpora.compressing import write_compressed
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
        assert is_refused_by_the_standard_library(content)
        return
    finally:
        csv_module._PIECE_BYTES = before
    assert b"".join(entry.data or b"" for entry in entries) == data
    assert [entry.offset_bytes for entry in entries] == [
        1000 + sum(len(entry.data or b"") for entry in entries[:number]) for number in range(len(entries))
    ]
    found = [fields_of(entry.data or b"", b",") for entry in entries]
    assert found == [[field.encode() for field in row] for row in expected]
    # Blanks behind a closing quote are the one thing that is allowed beyond it.
    assert not is_refused_by_the_standard_library(content) or re.search(r'" +(,|\r?\n|$)', content)


def is_refused_by_the_standard_library(content: str) -> bool:
    try:
        list(csv.reader(io.StringIO(content, newline=""), strict=True))
    except csv.Error:
        return True
    return False


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
    path.write_bytes(b"text,n\n" + good + b"a, b,c\n" + good + b"\n" + good)
    statuses = [status for _, _, status in rows_of(source_of(path))]
    assert {number: status for number, status in enumerate(statuses) if status != "ok"} == {
        150: "text-csv",
        301: "text-empty",
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


def test_a_table_of_nothing_is_refused_and_one_with_only_a_header_is_an_empty_shard(path: Path) -> None:
    for content in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(content)
        with pytest.raises(RefusedError):
            source_of(path).scan()
    for content in (b"text\n", b"\xef\xbb\xbftext,id"):
        path.write_bytes(content)
        assert source_of(path).scan().num_samples == 0
    compressed = write_compressed(path.with_name("t.csv.gz"), b"")
    assert source_of(compressed).scan().num_samples == 0


@pytest.mark.parametrize("behind", ["x", ' "x"', "  x"])
def test_text_behind_a_closing_quote_is_refused_with_its_line(behind: str, path: Path) -> None:
    rows = [f"caption {number}\turl {number}\n" for number in range(60)]
    rows[10], rows[50] = '"open here\turl 10\n', f'"{behind} there\turl 50\n'
    path = path.with_suffix(".tsv")
    path.write_text("text\turl\n" + "".join(rows))
    with pytest.raises(
        RefusedError, match=r"closing quote in line 52, in the row that starts at line 12 .*\?quotes=no"
    ):
        source_of(path).scan()
    assert [text for _, text, _ in rows_of(source_of(path, quotes="no"))] == [
        row.split("\t")[0].encode() for row in rows
    ]


def test_blanks_behind_a_closing_quote_belong_to_the_field_as_in_the_standard_library(path: Path) -> None:
    path.write_bytes(b'text,n\n"a" ,1\n"b",2 \n"c,d"\t,3\n"e""",4\n')
    assert [text for _, text, _ in rows_of(source_of(path))] == [b"a ", b"b", b"c,d\t", b'e"']


@pytest.mark.parametrize(
    ("suffix", "delimiter", "num_between"), [(".tsv", "\t", 0), (".tsv", "\t", 40), (".csv", ",", 40)]
)
def test_a_quote_that_swallows_whole_rows_is_refused_unless_quotes_are_said_to_be_right(
    suffix: str, delimiter: str, num_between: int, path: Path
) -> None:
    between = [f"caption {number}{delimiter}url" for number in range(num_between)]
    lines = [f'"open here{delimiter}url', *between, f'a screen of 15"{delimiter}url']
    path = path.with_suffix(suffix)
    path.write_text("\n".join([f"text{delimiter}url", f"first{delimiter}url", *lines, f"last{delimiter}url", ""]))
    said = rf"a quote opened in line 3 is closed in line {num_between + 4}.*\?quotes=no .*\?quotes=yes"
    with pytest.raises(RefusedError, match=said):
        source_of(path).scan()
    assert len(rows_of(source_of(path, quotes="yes"))) == 3
    assert len(rows_of(source_of(path, quotes="no"))) == num_between + 4


def test_sentences_of_several_lines_are_no_swallowed_rows(path: Path) -> None:
    address = '"12 High Street\nLondon, UK"'
    poem = '"' + "\n".join(["a line, with a comma"] * 7) + '"'
    path.write_text(f"id,text\n1,{address}\n2,{poem}\n")
    assert [status for _, _, status in rows_of(source_of(path))] == ["ok", "ok"]
    path.with_suffix(".tsv").write_text('id\ttext\n1\t"one\ntwo"\n2\t"a\tb\nc"\n')
    assert [status for _, _, status in rows_of(source_of(path.with_suffix(".tsv")))] == ["ok", "ok"]


def test_carriage_returns_are_letters_only_inside_quotes(path: Path) -> None:
    path.write_bytes(b'text,n\r\n"a\rb",1\r\nc,2\r\n')
    assert [text for _, text, _ in rows_of(source_of(path))] == [b"a\rb", b"c"]
    for content, options in ((b"text,n\na,1\nb\rc,2\n", {}), (b'text\na\n"b\rc"\n', {"quotes": "no"})):
        path.write_bytes(content)
        with pytest.raises(RefusedError, match=r"a carriage return .* in line 3 \(offset .*tr"):
            source_of(path, **options).scan()
    path.write_bytes(b"text,n\ra,1\rb,2\r")
    with pytest.raises(RefusedError, match="carriage return outside quotes"):
        source_of(path).scan()


@pytest.mark.parametrize(
    "content", [b"text\na\nb" + bytes(700), b"text\na\n" + bytes(5000) + b"\nb\n"], ids=["tail", "hole"]
)
def test_zeros_of_a_download_that_was_cut_are_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"zero bytes .* from line 3 .*fetch it again"):
        source_of(path).scan()


def test_misspelt_options_are_usage_errors(path: Path) -> None:
    path.write_bytes(b"text\na\n")
    for option in ("delimiter=x", "encoding=utf8", "header=maybe", "quotes=0"):
        with pytest.raises(UsageError, match="known:"):
            expand(f"{path}?{option}", "text")
