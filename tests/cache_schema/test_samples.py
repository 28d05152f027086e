"""A sample table is ordinary Parquet with one schema per modality, and any other file is refused."""

import hashlib
import io
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import DamagedError
from cache_schema.layout import Modality
from cache_schema.samples import Sample, digest_of, encode_table, read_table, table_of
from tests.corpora.damaged_files import DAMAGE

IMAGE = Sample(0, "a/雪.jpg", 0, 2**40, 7, bytes(range(16)), "ok", "tiny", width=640, height=480)
UNREADABLE = Sample(1, "b.jpg", 2**31 - 1, 0, 0, None, "img-unreadable", "gone")
TEXT = Sample(2**40, "line 1", 0, 0, 9, bytes(16), "ok", "", text="a cat\u2028on a mat 🐈")
EMPTY = Sample(2**40 + 1, "", 0, 9, 0, bytes(16), "text-empty", "")


def written(path: Path, samples: list[Sample], modality: Modality) -> Path:
    path.write_bytes(encode_table(table_of(samples, modality)))
    return path


@pytest.mark.parametrize(("modality", "samples"), [("image", [IMAGE, UNREADABLE]), ("text", [TEXT, EMPTY])])
def test_samples_come_back_the_same_through_plain_parquet(
    tmp_path: Path, modality: Modality, samples: list[Sample]
) -> None:
    path = written(tmp_path / "00000.parquet", samples, modality)
    own = {"width", "height"} if modality == "image" else {"text"}
    expected = [{k: v for k, v in asdict(s).items() if k not in {"width", "height", "text"} - own} for s in samples]
    assert pq.ParquetFile(path).read().to_pylist() == expected
    assert [Sample(**row) for row in read_table(path, modality).to_pylist()] == samples


def test_the_columns_and_their_types_are_those_that_were_promised() -> None:
    shared = {"row": "int64", "key": "string", "source": "int32", "offset_bytes": "int64", "size_bytes": "int64"}
    shared |= {"digest": "fixed_size_binary[16]", "status": "string", "reason": "string"}
    own: dict[Modality, dict] = {"image": {"width": "int32", "height": "int32"}, "text": {"text": "string"}}
    for modality, columns in own.items():
        in_memory = table_of([], modality)
        on_disk = pq.read_schema(io.BytesIO(encode_table(in_memory)))
        for schema, letters in ((on_disk, "string"), (in_memory.schema, "large_string")):
            types = {name: letters if kind == "string" else kind for name, kind in (shared | columns).items()}
            assert {field.name: str(field.type) for field in schema} == types
            assert {field.name for field in schema if field.nullable} == {"digest", *columns}


@pytest.mark.parametrize(("modality", "samples"), [("image", [IMAGE, UNREADABLE]), ("text", [TEXT, EMPTY])])
def test_a_table_of_few_letters_has_the_bytes_that_pyarrow_gives_to_plain_strings(
    modality: Modality, samples: list[Sample]
) -> None:
    table = table_of(samples, modality)
    plain = pa.schema([f.with_type(pa.string()) if f.type == pa.large_string() else f for f in table.schema])
    columns = {name: [getattr(sample, name) for sample in samples] for name in plain.names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=plain), buffer, compression="zstd")
    assert encode_table(table) == buffer.getvalue()


@pytest.mark.parametrize("most", [0, 2**31 - 1], ids=["beyond the limit of an array", "below it"])
def test_tables_beyond_and_below_the_limit_of_an_array_of_strings_are_read_alike(tmp_path: Path, most: int) -> None:
    table = table_of([TEXT, EMPTY], "text")
    (tmp_path / "t").write_bytes(encode_table(table, most_bytes_of_strings=most))
    on_disk = pq.read_schema(tmp_path / "t").field("text").type
    assert str(on_disk) == ("string" if most else "large_string")
    assert read_table(tmp_path / "t", "text").equals(table)
    assert read_table(tmp_path / "t", "text", ["text", "row"]).equals(table.select(["text", "row"]))


@pytest.mark.campaign
def test_more_than_two_gibibytes_of_sentences_in_one_part_are_written_read_and_taken(tmp_path: Path) -> None:
    num_rows, letters = 36, "a sentence of 64 letters that is repeated until it is too long.\n" * 2**20
    samples = [Sample(row, str(row), 0, row, 1, bytes(16), "ok", "", text=letters) for row in range(num_rows)]
    (tmp_path / "t").write_bytes(encode_table(table_of(samples, "text")))
    table = read_table(tmp_path / "t", "text")
    assert table.column("text").nbytes > 2**31
    taken = table.take(pa.array(range(num_rows))[::-1])
    assert taken.column("row").to_pylist() == list(range(num_rows))[::-1]
    assert taken.column("text")[0].as_py() == letters == taken.combine_chunks().column("text")[35].as_py()


def test_no_samples_make_a_table_without_rows(tmp_path: Path) -> None:
    assert read_table(written(tmp_path / "none", [], "image"), "image").num_rows == 0


def test_equal_samples_make_equal_bytes_and_another_order_makes_others() -> None:
    one, again, other = (encode_table(table_of(s, "text")) for s in ([TEXT, EMPTY], [TEXT, EMPTY], [EMPTY, TEXT]))
    assert one == again != other


def test_a_table_is_compressed() -> None:
    data = encode_table(table_of([TEXT], "text"))
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}


def test_a_number_too_large_or_a_digest_of_another_length_never_enters_a_table() -> None:
    for change in ({"source": 2**31}, {"row": 2**63}, {"digest": b"short"}):
        with pytest.raises((pa.ArrowException, OverflowError)):
            table_of([Sample(**{**asdict(IMAGE), **change})], "image")


def test_some_columns_are_read_in_the_order_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "t", [IMAGE, UNREADABLE], "image")
    table = read_table(path, "image", ["status", "key"])
    assert table.schema.names == ["status", "key"]
    assert table.to_pylist()[1] == {"status": "img-unreadable", "key": "b.jpg"}


def test_a_table_of_the_other_modality_is_refused_with_both_lists_of_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "t", [TEXT], "text")
    with pytest.raises(DamagedError, match=r"has columns .*'text'.*, expected .*'width', 'height'\]"):
        read_table(path, "image")


def test_a_column_of_another_type_or_one_that_may_be_null_is_refused(tmp_path: Path) -> None:
    table = table_of([TEXT], "text")
    place = table.schema.get_field_index("source")
    for field in (pa.field("source", pa.int64(), nullable=False), pa.field("source", pa.int32())):
        pq.write_table(table.set_column(place, field, table.column("source").cast(field.type)), tmp_path / "t")
        with pytest.raises(DamagedError, match="has columns"):
            read_table(tmp_path / "t", "text")
        with pytest.raises(DamagedError, match=r"has columns \['source'\], expected \['source'\]"):
            read_table(tmp_path / "t", "text", ["source"])


@pytest.mark.parametrize("damage", ["half", "emptied", "one byte short", "deleted"])
def test_a_damaged_or_missing_table_is_named_with_the_way_out(tmp_path: Path, damage: str) -> None:
    path = written(tmp_path / "00000.parquet", [IMAGE], "image")
    DAMAGE[damage](path)
    with pytest.raises(DamagedError, match=r"00000\.parquet is missing or damaged: run `pipeline verify` to see all"):
        read_table(path, "image")


@pytest.mark.parametrize("payload", [b"", b"a", bytes(range(256)) * 4096], ids=["empty", "one", "a mebibyte"])
def test_a_digest_is_sixteen_bytes_of_blake2b_over_the_payload(payload: bytes) -> None:
    assert digest_of(payload) == hashlib.blake2b(payload, digest_size=16).digest()
    assert digest_of(payload) != digest_of(payload + b"\0")
