"""Parquet: which columns are images or sentences, keys, and files that are not what they must be."""

from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import DamagedError, RefusedError, UsageError
from cache_schema.layout import Modality
from stages.sources.parquet import ParquetSource
from tests.corpora.pictures import encoded, jpeg, noise
from tests.corpora.samples import samples_of

IMAGES = [jpeg(8, 8, number) for number in range(5)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.parquet"


def source_of(path: Path, modality: Modality = "image", **options: str) -> ParquetSource:
    return ParquetSource(str(path), modality, options)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_image_bytes_are_read_in_order(kind: pa.DataType, path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array(IMAGES, kind)}), path, row_group_size=2)
    samples = samples_of(source_of(path))
    assert [sample.payload for sample in samples] == IMAGES
    assert [sample.key for sample in samples] == ["0", "1", "2", "3", "4"]


def test_a_struct_of_bytes_and_path_is_an_image_column(path: Path) -> None:
    png = encoded(noise(8, 8), "PNG")
    records = [
        {"bytes": IMAGES[0], "path": "a.jpg"},
        {"bytes": png, "path": "b.jpg"},
        None,
        {"bytes": None, "path": "c"},
    ]
    pq.write_table(pa.table({"image": records}), path)
    found = [(sample.payload, sample.status, sample.reason) for sample in samples_of(source_of(path))]
    assert found == [
        (IMAGES[0], "ok", ""),
        (png, "ok", "misnamed"),
        (None, "src-no-image", "null"),
        (None, "src-no-image", "null"),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_sentences_are_read_and_nulls_keep_their_rows(kind: pa.DataType, path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", None, "", "b\nc"]).cast(kind)}), path)
    found = [(sample.payload, sample.status) for sample in samples_of(source_of(path, "text"))]
    assert found == [(b"a", "ok"), (None, "text-type"), (b"", "ok"), (b"b\nc", "ok")]


def test_a_missing_or_unfit_column_is_refused_listing_the_found_ones(path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"], "score": [0.5], "url": ["x"]}), path)
    with pytest.raises(RefusedError, match=r"no column 'text' .*caption: string, score: double, url: string"):
        source_of(path, "text").scan()
    with pytest.raises(RefusedError, match=r"column 'score' is double, not text"):
        source_of(path, "text", column="score").scan()
    with pytest.raises(RefusedError, match=r"column 'caption' is string, not bytes"):
        source_of(path, "image", column="caption").scan()
    with pytest.raises(RefusedError, match=r"no column 'id'"):
        source_of(path, "text", column="caption", key_column="id").scan()
    with pytest.raises(RefusedError, match=r"key column 'score' is double"):
        source_of(path, "text", column="caption", key_column="score").scan()
    assert source_of(path, "text", column="caption").scan().num_samples == 1


def test_keys_come_from_the_key_column_and_must_be_there_once(path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": [7, 8, 9]}), path, row_group_size=1)
    source = source_of(path, "text", key_column="id")
    assert [sample.key for sample in samples_of(source)] == ["7", "8", "9"]
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": ["x", "y", "x"]}), path, row_group_size=1)
    with pytest.raises(RefusedError, match=r"key 'x' stands in row 0 and again in row 2"):
        source_of(path, "text", key_column="id").scan()
    pq.write_table(pa.table({"text": ["a", "b"], "id": ["x", None]}), path)
    with pytest.raises(RefusedError, match=r"row 1 has no key"):
        source_of(path, "text", key_column="id").scan()


def test_what_is_no_whole_parquet_file_is_refused(path: Path) -> None:
    table = pa.table({"text": ["a"] * 100})
    pq.write_table(table, path)
    whole = path.read_bytes()
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(DamagedError, match="not a Parquet file"):
        source_of(path, "text").scan()
    for size in (0, 3, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedError):
            source_of(path, "text").scan()
    footer_bytes = int.from_bytes(whole[-8:-4], "little")
    path.write_bytes(whole[: -8 - footer_bytes] + b"\xff" * footer_bytes + whole[-8:])
    with pytest.raises(DamagedError):
        source_of(path, "text").scan()


def test_damaged_pages_are_refused_when_read(path: Path) -> None:
    pq.write_table(pa.table({"text": [f"sentence {number}" for number in range(1000)]}), path, compression="snappy")
    source = source_of(path, "text")
    scan = source.scan()
    damaged = bytearray(path.read_bytes())
    damaged[60:200] = b"\xff" * 140
    path.write_bytes(damaged)
    with pytest.raises(DamagedError, match="damaged"):
        list(source.read(0, scan.num_samples, 0))


def test_a_table_without_rows_is_a_usage_error(path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(UsageError, match="no rows"):
        source_of(path, "text").scan()


def of_extension_type(values: pa.Array, name: str) -> pa.Table:
    field = pa.field("other", values.type, metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": "boom"})
    return pa.table([["a"], values], schema=pa.schema([pa.field("text", pa.string()), field]))


@pytest.mark.parametrize("name", ["evil", "arrow.py_extension_type", "arrow.json"])
def test_an_extension_type_is_refused_before_any_hook_runs(name: str, path: Path) -> None:
    pq.write_table(of_extension_type(pa.array(["x"]), name), path)
    with pytest.raises(RefusedError, match=r"extension type.*plain columns"):
        source_of(path, "text").scan()


class _Noisy(pa.ExtensionType):
    seen: ClassVar[list[bytes]] = []

    def __init__(self) -> None:
        super().__init__(pa.string(), "tests.noisy")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"hook"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "_Noisy":
        cls.seen.append(serialized)
        return cls()


def test_the_hook_of_a_registered_extension_type_is_not_called(path: Path) -> None:
    nested = pa.StructArray.from_arrays([pa.ExtensionArray.from_storage(_Noisy(), pa.array(["x"]))], ["inner"])
    pq.write_table(pa.table({"text": ["a"], "nested": nested}), path)
    pa.register_extension_type(_Noisy())
    try:
        with pytest.raises(RefusedError, match="extension type"):
            source_of(path, "text").scan()
        assert _Noisy.seen == []
        pq.read_schema(path)
        assert _Noisy.seen, "the file has what it takes to call the hook"
    finally:
        pa.unregister_extension_type("tests.noisy")


def test_forms_of_images_that_are_not_supported_are_refused(path: Path) -> None:
    for record in ({"image": {"bytes": IMAGES[0]}}, {"data": IMAGES[0]}, {"bytes": "text"}, [IMAGES[0]]):
        pq.write_table(pa.table({"image": [record]}), path)
        with pytest.raises(RefusedError, match="not bytes, or a struct with a field 'bytes'"):
            source_of(path).scan()
    pq.write_table(pa.table({"image": [{"bytes": IMAGES[0], "path": 7}]}), path)
    assert [sample.payload for sample in samples_of(source_of(path))] == IMAGES[:1]


def test_text_that_is_not_utf_8_keeps_its_row_but_a_key_must_be(path: Path) -> None:
    broken = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken, "id": ["x", "y"]}), path)
    assert [sample.status for sample in samples_of(source_of(path, "text"))] == ["ok", "text-encoding"]
    with pytest.raises(DamagedError):
        source_of(path, "text", column="id", key_column="text").scan()


def test_paths_lead_to_images_below_the_root(path: Path) -> None:
    (path.parent / "in").mkdir()
    for number, image in enumerate(IMAGES):
        (path.parent / "in" / f"{number}.jpg").write_bytes(image)
    names = ["0.jpg", "3.jpg", None, "../table.parquet", "9.jpg", ""]
    pq.write_table(pa.table({"file": names, "n": [1.5] * 6}), path, row_group_size=2)
    source = source_of(path, path_column="file", root=str(path.parent / "in"))
    samples = samples_of(source)
    assert [(sample.status, sample.payload) for sample in samples] == [
        ("ok", IMAGES[0]),
        ("ok", IMAGES[3]),
        ("src-no-image", None),
        ("src-unreadable", None),
        ("src-unreadable", None),
        ("src-no-image", None),
    ]
    assert source.read_one("1", samples[1].offset_bytes, samples[1].size_bytes) == IMAGES[3]
    with pytest.raises(RefusedError, match=r"column 'n' is double, not text .*path_column=NAME"):
        source_of(path, path_column="n").scan()
    with pytest.raises(UsageError, match="drop one"):
        source_of(path, "text", path_column="file")
